"""How store_scale.py compares: sides, outcomes, and the stores that the parts share."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from .page_cache import files_below, warm

Run = dict[str, float]

BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    label: str
    """what it is called in the report"""
    name: str
    """function of reading.py, writing.py, syncing.py, or of lance_side.py"""
    options: dict[str, Any]
    """its arguments"""
    makes: Path | None = None
    """what it makes anew: removed before each run"""
    python: str = sys.executable
    """interpreter; Lance has one of its own"""

    def run(self) -> Run:
        """Run it once, in a process of its own."""
        if self.makes is not None:
            remove(self.makes)
        module = "scale.sides" if self.python == sys.executable else "scale.lance_side"
        command = [self.python, "-m", module, self.name, json.dumps(self.options, default=str)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=BENCHMARKS)
        if done.returncode:
            raise RuntimeError(f"{self.label}: {self.name} failed\n{done.stderr}")
        result: Run = json.loads(done.stdout.splitlines()[-1])
        return result


@dataclass(frozen=True)
class Outcome:
    """What a comparison found."""

    part: str
    """letter"""
    title: str
    """what was compared"""
    sides: dict[str, Run] = field(default_factory=dict)
    """medians of each side"""
    found: str = ""
    """the ratios, in words"""
    goals: dict[str, bool] = field(default_factory=dict)
    """goal -> whether it is met"""


class Bench:
    """Where the stores are, made when a part first needs them."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.rows, self.rounds, self.nights = options.rows, options.rounds, options.nights
        self.peers: str | None = options.peers
        self.folder = folder
        self.synced = cache(self._synced)

    def race(self, *sides: Side, rounds: int | None = None) -> dict[str, Run]:
        """Run sides in turn, some rounds of it; give the medians."""
        runs: dict[str, list[Run]] = {side.label: [] for side in sides}
        for _ in range(rounds or self.rounds):
            for side in sides:
                runs[side.label].append(side.run())
        return {
            label: {key: statistics.median(run[key] for run in got) for key in got[0]} for label, got in runs.items()
        }

    @cached_property
    def written(self) -> Path:
        """The store as one run leaves it."""
        store = self.folder / "store"
        Side("", "append_icecore", {"store": store, "rows": self.rows}, store).run()
        return store

    @cached_property
    def merged(self) -> Path:
        """The same after compaction."""
        copy = self.folder / "merged"
        Side("", "compacted_copy", {"store": self.written, "copy": copy}, copy).run()
        return copy

    @cached_property
    def npy(self) -> tuple[Path, Path]:
        """The same rows as a .npy, and their ids as a text file."""
        path, ids = self.folder / "x.npy", self.folder / "ids.txt"
        Side("", "write_npy", {"path": path, "ids": ids, "rows": self.rows}).run()
        return path, ids

    @cached_property
    def dataset(self) -> Path:
        """The same rows in Lance."""
        self.lance("write", npy=self.npy[0], dataset=self.folder / "lance").run()
        return self.folder / "lance"

    def states(self) -> Iterator[tuple[str, Path]]:
        """Give both stores, in memory as far as it goes."""
        for name, store in (("as written", self.written), ("merged", self.merged)):
            warm([*files_below(store), self.npy[0]])
            yield name, store

    def lance(self, name: str, **options: object) -> Side:
        """Give Lance's side of a comparison."""
        assert self.peers is not None
        return Side("lance", name, dict(options), options["dataset"] if name == "write" else None, self.peers)

    def _synced(self, rows: int) -> tuple[Path, Path, Run]:
        """Make a folder of empty files and sync it into a store; give both, and what the sync took."""
        files, store = self.folder / f"files-{rows}", self.folder / f"synced-{rows}"
        Side("", "make_files", {"folder": files, "files": rows}, files).run()
        return files, store, Side("", "sync_icecore", {"folder": files, "store": store}, store).run()

    def free(self) -> None:
        """Remove what the parts so far have made."""
        for path in self.folder.iterdir():
            remove(path)
        for name in ("written", "merged", "npy", "dataset"):
            self.__dict__.pop(name, None)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
