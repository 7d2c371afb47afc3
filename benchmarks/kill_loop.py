"""SIGKILL at random moments of real extractions, compactions and collections, and a look at what is left each time.

Two stores follow the same folder of photos, which changes all the time: images are added, edited, moved, deleted. One
is never disturbed. The other's jobs die: a third of them by the clock, a third at a call of the store's own code drawn
at random, and a third at such a call inside a commit, a compaction or a collection. After each kill the store opens, is
verified in full, and every row that readers see is compared with what the undisturbed store has for that content. In
the end the jobs run once more, and both stores must hold the same bytes; so must every version tagged on the way.

Goals: no row lost, doubled or shifted, no store that does not open or verify, no file that stays behind, and equal
contents in the end.

    python benchmarks/kill_loop.py [--kills 300] [--seed 0] [--json] [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import mmap
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torchvision
from icecore.extract import extract_images
from icecore.store import FeatureStore, collect, compact, undisturbed, verify_store, writer
from PIL import Image

LAYERS = ("features.2", "features.5")
COLUMNS = tuple(f"{layer}:avg:float32" for layer in LAYERS)
STORE_CODE = str(Path(writer.__file__).parent)
PHASES = ("", "commit", "compact", "collect")
"""What a job was at when it died; the number stands in memory that parent and child share."""
BAD = ("lost", "doubled", "shifted", "not opened", "not sound", "left behind", "unequal")

Rows = dict[str, bytes]
"""Image id -> its vectors, all columns side by side"""


def main() -> int:
    """Run the loop and print what was found; 1 when ``--check`` is given and anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # what a sweep finds is what we look for
    torch.set_num_threads(1)  # children are forks, which would lose a pool of threads
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder), options.seed)
        while loop.counts["kills"] < options.kills:
            loop.round()
        loop.finish()
    facts: dict[str, float] = {name: loop.counts[name] for name in (*BAD, "kills", "jobs")}
    facts |= {f"killed in {phase or 'between'}": loop.counts[f"in {phase}"] for phase in PHASES}
    facts |= {"versions kept": len(loop.tags), "rows compared": loop.counts["rows compared"]}
    facts |= {"seconds": round(time.monotonic() - began, 1)}
    table = "\n".join(f"{name:20} {value:10,.0f}" for name, value in facts.items())
    print(json.dumps(facts) if options.json else table)
    return int(options.check and any(facts[name] for name in BAD))


class Photos:
    """A folder of images that changes."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        self.contents: dict[str, bytes] = {}
        self._next = 0
        for _ in range(40):
            self.add()

    def change(self) -> None:
        """Add, edit, move, copy and delete some."""
        for _ in range(self.dice.randint(4, 10)):
            self.add()
        for _ in range(self.dice.randint(0, 3)):
            self._save(self.dice.choice(list(self.contents)))
        for _ in range(self.dice.randint(0, 3)):
            old = self.dice.choice(list(self.contents))
            new = self._name()
            (self.folder / old).rename(self.folder / new)
            self.contents[new] = self.contents.pop(old)
        while len(self.contents) > 60 or self.dice.random() < 0.5:
            gone = self.dice.choice(list(self.contents))
            (self.folder / gone).unlink()
            del self.contents[gone]

    def add(self) -> None:
        """Add an image, sometimes a copy of another."""
        name = self._name()
        if self.contents and self.dice.random() < 0.1:
            twin = self.dice.choice(list(self.contents))
            (self.folder / name).write_bytes((self.folder / twin).read_bytes())
            self.contents[name] = self.contents[twin]
        else:
            self._save(name)

    def _name(self) -> str:
        self._next += 1
        return f"{self.dice.randrange(16):x}{self._next:05}.png"

    def _save(self, name: str) -> None:
        pixels = np.random.default_rng(self.dice.randrange(1 << 30)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(self.folder / name)
        self.contents[name] = hashlib.sha256((self.folder / name).read_bytes()).digest()


class Loop:
    """The two stores and what was seen of them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        (folder / "photos").mkdir()
        self.photos = Photos(folder / "photos", self.dice)
        self.calm, self.stormy = folder / "calm", folder / "stormy"
        self.weights = folder / "weights.pth"
        torch.manual_seed(0)
        torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), self.weights)
        self.phase = mmap.mmap(-1, 1)
        self.counts: Counter[str] = Counter()
        self.truth: dict[bytes, bytes] = {}
        self.past: dict[str, set[bytes]] = {}
        self.tags: dict[str, Rows] = {}
        self.seconds = dict.fromkeys(("extract", "compact", "collect"), 0.5)
        self.calls = {(job, inside): 500 for job in self.seconds for inside in (False, True)}
        self._follow()
        self._run("extract")

    def round(self) -> None:
        """Change the photos, run a job until it is killed or done, and look."""
        if self.dice.random() < 0.6:
            self.photos.change()
            self._follow()
        job = self.dice.choices(list(self.seconds), (6, 2, 2))[0]
        before = self._seen() or {}
        if self.dice.random() < 0.1:
            self._run(job)
        elif self.dice.random() < 0.33:
            self._run(job, after=self.dice.uniform(0, self.seconds[job]))
        else:
            inside = self.dice.random() < 0.5
            self._run(job, at_call=self.dice.randint(1, self.calls[job, inside]), inside=inside)
        self._look(before)
        if self.dice.random() < 0.03:
            self._tag()

    def finish(self) -> None:
        """Let every job run to its end and compare the stores."""
        self._follow()
        for job in ("extract", "compact", "collect"):
            self._run(job)
        self._look({})
        with FeatureStore.open(self.calm) as calm, FeatureStore.open(self.stormy) as stormy:
            for column in COLUMNS:
                ours, theirs = stormy["photos"].matrix(column), calm["photos"].matrix(column)
                self.counts["unequal"] += ours.ids != theirs.ids or ours.X.tobytes() != theirs.X.tobytes()
            for tag, rows in self.tags.items():
                self.counts["unequal"] += _rows_of(stormy["photos"].as_of(tag)) != rows
        with closing(sqlite3.connect(self.stormy / "catalog.sqlite")) as db:
            known = {path for (path,) in db.execute("SELECT path FROM segments")}
        files = {path.relative_to(self.stormy).as_posix() for path in (self.stormy / "segments").rglob("*.h5*")}
        self.counts["left behind"] += len(files ^ known)

    def _follow(self) -> None:
        """Bring the undisturbed store up to date and learn what each content's vectors are."""
        assert _wait(_fork(lambda: self._extract(self.calm))) == 0
        with FeatureStore.open(self.calm) as store:
            for name, vectors in _rows_of(store["photos"]).items():
                self.truth[self.photos.contents[name]] = vectors
        for name, content in self.photos.contents.items():
            self.past.setdefault(name, set()).add(content)

    def _run(self, job: str, *, after: float | None = None, at_call: int = 0, inside: bool = False) -> None:
        self.phase[0] = 0
        jobs: dict[str, Callable[[], object]] = {
            "extract": lambda: self._extract(self.stormy),
            "compact": lambda: FeatureStore.open(self.stormy).compact(),
            "collect": lambda: FeatureStore.open(self.stormy).collect(),
        }
        self.counts["jobs"] += 1
        start = time.monotonic()
        reader, pipe = os.pipe()
        watch = Watch(self.phase, at_call, inside=inside)
        child = _fork(lambda: watch.run(jobs[job], pipe))
        os.close(pipe)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        status = _wait(child)
        with os.fdopen(reader) as told:
            calls = told.read()
        if status == -signal.SIGKILL:
            self.counts["kills"] += 1
            self.counts[f"in {PHASES[self.phase[0]]}"] += 1
            return
        assert status == 0, f"{job} ended with {status}"
        self.seconds[job] = time.monotonic() - start
        self.calls[job, False], self.calls[job, True] = (max(1, int(count)) for count in calls.split())
        if job == "extract":
            wanted = {name: self.truth[content] for name, content in self.photos.contents.items()}
            self.counts["unequal"] += self._seen() != wanted

    def _extract(self, store: Path) -> None:
        writer.FIRST_ROWS = writer.MOST_ROWS = 6  # a small folder makes many commits
        compact.COMPACT_PAST = 6
        extract_images(
            store,
            "photos",
            self.photos.folder,
            backbone_name="squeezenet1_1",
            weights=self.weights,
            layers=LAYERS,
            dtype="float32",
            preprocess_changes={"resize": 40, "crop": 32},
            batch_size=4,
            threads=1,
            device="cpu",
            max_removed=1,
        )

    def _seen(self) -> Rows | None:
        """Read all that readers see; None where that fails."""
        try:
            with FeatureStore.open(self.stormy) as store:
                ids = store["photos"].ids()
                self.counts["doubled"] += len(ids) - len(set(ids))
                return _rows_of(store["photos"])
        except Exception:  # noqa: BLE001 - whatever it is, the store did not open
            traceback.print_exc()
            return None

    def _look(self, before: Rows) -> None:
        rows = self._seen()
        if rows is None:
            self.counts["not opened"] += 1
            return
        report = verify_store(self.stormy)
        if not report.ok:
            self.counts["not sound"] += 1
            print(*report.problems, sep="\n", file=sys.stderr)
        self.counts["lost"] += len((before.keys() & self.photos.contents.keys()) - rows.keys())
        self.counts["rows compared"] += len(rows)
        for name, vectors in rows.items():
            self.counts["shifted"] += vectors not in {self.truth[content] for content in self.past[name]}

    def _tag(self) -> None:
        with FeatureStore.open(self.stormy) as store:
            name = f"kept-{len(self.tags)}"
            store["photos"].tag(name)
            self.tags[name] = _rows_of(store["photos"])


class Watch:
    """In the process of a job: says what phase it is in, and kills it at a call of the store's code."""

    def __init__(self, phase: mmap.mmap, at_call: int, *, inside: bool) -> None:
        self.phase, self.at_call, self.inside = phase, at_call, inside
        self.calls = [0, 0]
        """all, and those inside of a phase"""
        commit = writer.Writer._commit.__code__  # noqa: SLF001 - as no public name says when a commit begins
        self.codes = {commit: 1, compact.compact_generation.__code__: 2, collect.collect_store.__code__: 3}

    def run(self, job: Callable[[], object], pipe: int) -> None:
        """Run a job; where it ends, tell the number of calls."""
        self._begin_with(writer.Writer, "__init__")  # not before, as torch is many calls
        self._begin_with(compact, "compact_generation")
        self._begin_with(FeatureStore, "collect")
        self._begin_with(undisturbed._Work, "run")  # noqa: SLF001 - a thread has a profile of its own
        job()
        sys.setprofile(None)
        os.write(pipe, f"{self.calls[0]} {self.calls[1]}".encode())

    def _begin_with(self, where: Any, name: str) -> None:
        begun = getattr(where, name)

        def begin(*args: Any, **options: Any) -> Any:
            sys.setprofile(self._count)
            return begun(*args, **options)

        setattr(where, name, begin)

    def _count(self, frame: FrameType, event: str, _: Any) -> None:
        if frame.f_code in self.codes and event in ("call", "return"):
            self.phase[0] = self.codes[frame.f_code] if event == "call" else 0
        if event == "call" and frame.f_code.co_filename.startswith(STORE_CODE):
            self.calls[0] += 1
            self.calls[1] += bool(self.phase[0])
            if self.calls[self.inside] == self.at_call and (self.phase[0] or not self.inside):
                os.kill(os.getpid(), signal.SIGKILL)


def _rows_of(photos: Any) -> Rows:
    ids, X = photos.matrix(list(COLUMNS), missing="drop")
    return {name: vector.tobytes() for name, vector in zip(ids, X, strict=True)}


def _fork(job: Callable[[], object]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        job()
    except BaseException:  # noqa: BLE001 - a fork must end here
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
