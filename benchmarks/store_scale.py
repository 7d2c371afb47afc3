"""The store at a million rows, against NumPy, h5py, os.scandir and Lance: 1,000,000 rows x 512 float16 in one layer.

Each side runs in a process of its own, the sides of a comparison alternating; medians are told, with time, peak memory
(mapped file pages included) and bytes. Ratios are how many times as fast icecore is. The made-up rows are marked, and
every reader's result is checked. "As written" is the store as one long run leaves it, "merged" after compaction.

Parts, and their goals:

a  opening, ids and first matrix against np.load(mmap_mode="r"), with and without ids from a text file; no goal
b  full read to float32 against np.load(...).astype(np.float32): at least 0.9 of its speed
c  a random tenth of the rows against h5py on the same segments: at least 20 times as fast (h5py is stopped after two
   minutes, and its rest scaled); and against a memory-mapped .npy: at least 0.8 of its speed
d  100 random rows against Lance's take: from a cold page cache (dropped, and proved so by mincore) no slower, warm
   at least 10 times as fast
e  full scan to float32, and write, made durable on both sides, against Lance: at least 4 times as fast
f  the catalog opens in under 0.3 s
g  a sync that finds nothing to do over as many files takes at most twice the time of a bare os.scandir and stat
h  append at 0.8 of the speed of raw h5py, fsync on both sides; what misses it is the catalog's work, told a row
i  peak memory of a first sync (plan and append) and of one with nothing to do: from a tenth of the rows to all of
   them it grows by less than 10 % or 64 MiB
j  bytes on disk: at most 1.05 of the payload; segments, catalog and total told
k  365 nightly commits of 100 rows: reading them, number of files, before and after compaction, with the merging that
   runs do by themselves and without; no goal

The full size takes some ten minutes and 5 GB of disk. Lance has an environment of its own, named by --peers or
ICECORE_BENCH_PEERS; without it d and e are skipped. To make it:

    python -m venv peers && peers/bin/pip install "pylance==14.0.2" numpy
    python benchmarks/store_scale.py [--rows 20000] [--only b --only c] [--peers peers/bin/python] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from page_cache import files_below, warm
from scale_rows import WIDTH

Run = dict[str, float]

HERE = Path(__file__).resolve().parent
SIDES, LANCE = HERE / "scale_sides.py", HERE / "scale_lance.py"
H5PY_LIMIT = 120
"""Seconds after which h5py's fancy indexing is scaled up."""
TAKEN, TAKES = 100, 7
"""Rows of a sparse take, and how often it is done cold."""
NIGHT_ROWS = 100
COLD = 0.01
"""Most of the pages that may be in memory still when a read is called cold."""
GROWTH, GROWTH_MIB = 1.10, 64
"""What memory may grow by for ten times the rows: for each row the writer keeps a few bytes."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    label: str
    """what it is called in the report"""
    name: str
    """function of scale_sides.py, or of scale_lance.py"""
    options: dict[str, Any]
    """its arguments"""
    makes: Path | None = None
    """what it makes anew: removed before each run"""
    python: str = sys.executable
    """interpreter; Lance has one of its own"""

    def run(self) -> Run:
        """Run it once, in a process of its own."""
        if self.makes is not None:
            _remove(self.makes)
        script = SIDES if self.python == sys.executable else LANCE
        command = [self.python, str(script), self.name, json.dumps(self.options, default=str)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
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
        self._lance("write", npy=self.npy[0], dataset=self.folder / "lance").run()
        return self.folder / "lance"

    def states(self) -> Iterator[tuple[str, Path]]:
        """Give both stores, in memory as far as it goes."""
        for name, store in (("as written", self.written), ("merged", self.merged)):
            warm([*files_below(store), self.npy[0]])
            yield name, store

    def lance(self, name: str, **options: object) -> Side:
        """Give Lance's side of a comparison."""
        return self._lance(name, **options)

    def _lance(self, name: str, **options: object) -> Side:
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
            _remove(path)
        for name in ("written", "merged", "npy", "dataset"):
            self.__dict__.pop(name, None)


def _opening(bench: Bench) -> Iterator[Outcome]:
    path, ids = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore, array and ids", "open_icecore", {"store": store}),
            Side("icecore, matrix and ids", "matrix_icecore", {"store": store}),
            Side("np.load, mapped", "open_npy", {"path": path}),
            Side("np.load, mapped, and ids.txt", "open_npy", {"path": path, "ids": ids}),
        )
        alone, fair = (got[side]["seconds"] for side in ("np.load, mapped", "np.load, mapped, and ids.txt"))
        found = "; ".join(
            f"{label.removeprefix('icecore, ')}: {alone / run['seconds']:.4f} of np.load's speed, "
            f"{fair / run['seconds']:.3f} of np.load's and ids.txt's"
            for label, run in list(got.items())[:2]
        )
        yield Outcome("a", f"open, {state}", got, found)


def _full_read(bench: Bench) -> Iterator[Outcome]:
    path, _ = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "read_icecore", {"store": store}),
            Side("np.load.astype", "read_npy", {"path": path}),
            Side("np.load(mmap).astype", "read_npy", {"path": path, "mapped": True}),
        )
        ratios = {label: _ratio(got, label) for label in list(got)[1:]}
        yield Outcome(
            "b",
            f"full read to float32, {state}",
            got,
            _told(ratios),
            {"at least 0.9 of np.load.astype": ratios["np.load.astype"] >= 0.9},
        )


def _random_tenth(bench: Bench) -> Iterator[Outcome]:
    path, _ = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "tenth_icecore", {"store": store}),
            Side("np.load(mmap)[rows]", "tenth_npy", {"path": path}),
        )
        got |= bench.race(Side("h5py", "tenth_h5py", {"store": store, "limit": H5PY_LIMIT}), rounds=1)
        mapped, shuffled = (_ratio(got, "np.load(mmap)[rows]", key) for key in ("seconds", "shuffled_s"))
        h5py = _ratio(got, "h5py")
        yield Outcome(
            "c",
            f"a random tenth of the rows, {state}",
            got,
            f"{h5py:.0f} times h5py ({got['h5py']['share_read']:.0%} of it read); of the map's speed {mapped:.2f} with "
            f"ascending rows, {shuffled:.2f} with shuffled ones",
            {"at least 20 times h5py": h5py >= 20, "at least 0.8 of a mapped .npy": min(mapped, shuffled) >= 0.8},
        )


def _sparse_take(bench: Bench) -> Iterator[Outcome]:
    options = {"count": TAKEN, "rounds": TAKES}
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "take_icecore", {"store": store, **options}),
            bench.lance("take", dataset=bench.dataset, **options),
            rounds=1,
        )
        if max(run["left_in_memory"] for run in got.values()) > COLD:
            raise RuntimeError(f"the page cache did not get cold: {got}; is the folder on a disk?")
        cold, warmed = (_ratio(got, "lance", key) for key in ("cold_s", "warm_s"))
        yield Outcome(
            "d",
            f"{TAKEN} random rows, {state}",
            got,
            f"{cold:.1f} times Lance cold, {warmed:.1f} times warm",
            {"cold no slower than Lance": cold >= 1, "warm at least 10 times Lance": warmed >= 10},
        )


def _against_lance(bench: Bench) -> Iterator[Outcome]:
    for state, store in bench.states():
        warm(files_below(bench.dataset))
        got = bench.race(Side("icecore", "read_icecore", {"store": store}), bench.lance("scan", dataset=bench.dataset))
        ratio = _ratio(got, "lance")
        goals = {"scan at least 4 times Lance": ratio >= 4}
        yield Outcome("e", f"full scan to float32, {state}", got, f"{ratio:.1f} times Lance", goals)
    again = bench.folder / "again"
    got = bench.race(
        Side("icecore", "append_icecore", {"store": again, "rows": bench.rows}, again),
        bench.lance("write", npy=bench.npy[0], dataset=bench.folder / "lance-again"),
        rounds=min(bench.rounds, 2),
    )
    _remove(again)
    _remove(bench.folder / "lance-again")
    ratio = _ratio(got, "lance")
    found = f"{ratio:.2f} times Lance; without its fsync {got['lance']['unsynced_s'] / got['icecore']['seconds']:.2f}"
    yield Outcome("e", "write of all rows", got, found, {"write at least 4 times Lance": ratio >= 4})


def _catalog_open(bench: Bench) -> Iterator[Outcome]:
    got = bench.race(Side("icecore", "open_icecore", {"store": bench.written}))
    spent = got["icecore"]["open_s"]
    yield Outcome("f", "open the catalog", got, f"{spent * 1000:.1f} ms", {"under 0.3 s": spent < 0.3})


def _idle_sync(bench: Bench) -> Iterator[Outcome]:
    files, store, _ = bench.synced(bench.rows)
    facts = {"folder": files, "files": bench.rows}
    Side("", "walk_bare", facts).run()  # brings the folders into memory
    got = bench.race(Side("icecore", "plan_icecore", {**facts, "store": store}), Side("os.scandir", "walk_bare", facts))
    times = got["icecore"]["seconds"] / got["os.scandir"]["seconds"]
    title = f"sync of {bench.rows:,} files with nothing to do"
    yield Outcome("g", title, got, f"{times:.2f} of the bare walk's time", {"at most twice the bare walk": times <= 2})


def _append(bench: Bench) -> Iterator[Outcome]:
    store, raw = bench.folder / "appended", bench.folder / "raw.h5"
    got = bench.race(
        Side("icecore", "append_icecore", {"store": store, "rows": bench.rows}, store),
        Side("h5py", "append_h5py", {"path": raw, "rows": bench.rows}, raw),
    )
    _remove(store)
    _remove(raw)
    ratio = _ratio(got, "h5py")
    spent = (got["icecore"]["seconds"] - got["h5py"]["seconds"]) / bench.rows * 1e6
    found = f"{ratio:.2f} of h5py's speed; catalog, ids and checksums cost {spent:.1f} us a row"
    yield Outcome("h", "append, durable", got, found, {"at least 0.8 of raw h5py": ratio >= 0.8})


def _memory(bench: Bench) -> Iterator[Outcome]:
    counts = [bench.rows // 100, bench.rows // 10, bench.rows]
    syncs: list[float] = []
    idles: list[float] = []
    got: dict[str, Run] = {}
    for rows in counts:
        files, store, sync = bench.synced(rows)
        idle = Side("", "plan_icecore", {"folder": files, "store": store, "files": rows}).run()
        got |= {f"first sync, {rows:,}": sync, f"nothing to do, {rows:,}": idle}
        syncs.append(sync["peak_mib"])
        idles.append(idle["peak_mib"])
    found = "; ".join(
        f"{name}: {', '.join(f'{peak:.0f}' for peak in peaks)} MiB at {', '.join(f'{n:,}' for n in counts)} rows"
        for name, peaks in (("first sync", syncs), ("nothing to do", idles))
    )
    goals = {f"memory of {name} is flat": _is_flat(peaks) for name, peaks in (("sync", syncs), ("idle sync", idles))}
    yield Outcome("i", "peak memory by number of rows", got, found, goals)


def _disk(bench: Bench) -> Iterator[Outcome]:
    payload = bench.rows * WIDTH * 2
    got = {"icecore": Side("", "sizes", {"store": bench.written}).run()}
    kinds = {"segments": got["icecore"]["segments"], "catalog": got["icecore"]["catalog"]}
    share = {kind: size / payload for kind, size in kinds.items()}
    total = sum(share.values())
    words = f"segments {share['segments']:.3f}, catalog {share['catalog']:.3f}, total {total:.3f} of the payload"
    each = ", ".join(
        f"{kind} {(size - (payload if kind == 'segments' else 0)) / bench.rows:.0f}" for kind, size in kinds.items()
    )
    goals = {"segments at most 1.05 of the payload": share["segments"] <= 1.05, "total at most 1.05": total <= 1.05}
    yield Outcome("j", "bytes on disk", got, f"{words}; bytes a row beyond it: {each}", goals)


def _nights(bench: Bench) -> Iterator[Outcome]:
    for merging in (False, True):
        store = bench.folder / f"nightly-{merging}"
        facts = {"store": store, "nights": bench.nights, "rows": NIGHT_ROWS, "merging": merging}
        filled = Side("", "nightly", facts, store).run()
        before = bench.race(Side("before", "read_nightly", {"store": store}), rounds=5)["before"]
        merged = Side("", "compact_icecore", {"store": store}).run()
        after = bench.race(Side("after", "read_nightly", {"store": store}), rounds=5)["after"]
        if before["digest"] != after["digest"]:
            raise RuntimeError("compaction changed what is read")
        yield Outcome(
            "k",
            f"{bench.nights} nights of {NIGHT_ROWS} rows, {'merging by itself' if merging else 'without merging'}",
            {"before compaction": {**filled, **before}, "after compaction": {**merged, **after}},
            f"{filled['live_segments']:.0f} segments read ({filled['files']:.0f} files kept for older versions too), then "
            f"{merged['live_segments']:.0f}; after compaction reading is {before['seconds'] / after['seconds']:.1f} times "
            f"as fast; a night {filled['night_s'] * 1000:.0f} ms, the slowest {filled['slowest_night_s'] * 1000:.0f}",
        )
        _remove(store)


PARTS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "a": _opening,
    "b": _full_read,
    "c": _random_tenth,
    "d": _sparse_take,
    "e": _against_lance,
    "f": _catalog_open,
    "g": _idle_sync,
    "h": _append,
    "i": _memory,
    "j": _disk,
    "k": _nights,
}
ORDER = "hfjabcde gik"
"""Disk is freed at the space."""
NEED_LANCE = "de"


def main() -> int:
    """Run the parts and print them; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    outcomes: list[Outcome] = []
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(prefix="store-scale-", dir=options.folder) as folder:
        bench = Bench(options, Path(folder))
        for letter in ORDER:
            if letter == " ":
                bench.free()
            elif letter not in options.only:
                continue
            elif letter in NEED_LANCE and not options.peers:
                outcomes.append(Outcome(letter, "against Lance", found="skipped: no --peers or ICECORE_BENCH_PEERS"))
            else:
                print(f"part {letter}", file=sys.stderr)
                outcomes += PARTS[letter](bench)
            load.append(os.getloadavg()[0])
    outcomes.sort(key=lambda outcome: outcome.part)
    state = {"rows": options.rows, "rounds": options.rounds, "cores": os.cpu_count(), "load": [min(load), max(load)]}
    if options.json:
        print(json.dumps({**state, "outcomes": [asdict(outcome) for outcome in outcomes]}))
    else:
        _print(outcomes, state)
    return 1 if options.check and not all(met for outcome in outcomes for met in outcome.goals.values()) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be given more than once")
    parser.add_argument("--folder", type=Path, help="where to work: a disk, not memory")
    parser.add_argument("--peers", default=os.environ.get("ICECORE_BENCH_PEERS"), help="a Python that has pylance")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    options.only = options.only or list(PARTS)
    return options


def _print(outcomes: Sequence[Outcome], state: dict[str, Any]) -> None:
    low, high = state["load"]
    print(
        f"{state['rows']:,} rows x {WIDTH} float16, medians of {state['rounds']}, {state['cores']} cores, load {low:.1f} "
        f"to {high:.1f} meanwhile, this benchmark's own included"
    )
    for outcome in outcomes:
        print(f"{outcome.part}  {outcome.title}")
        for label, run in outcome.sides.items():
            print(f"     {label:30} {'  '.join(_number(key, value) for key, value in run.items() if key != 'digest')}")
        print(f"     {outcome.found}")
        for goal, met in outcome.goals.items():
            print(f"     {'met   ' if met else 'MISSED'} {goal}")


def _number(key: str, value: float) -> str:
    if key == "peak_mib":
        return f"peak {value:,.0f} MiB"
    if key == "seconds" or key.endswith("_s"):
        return f"{key.removesuffix('_s').replace('_', ' ') + ' ' if key != 'seconds' else ''}{_seconds(value)}"
    return f"{key.replace('_', ' ')} {value:,.0f}" if value > 1 else f"{key.replace('_', ' ')} {value:.3f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _ratio(got: dict[str, Run], label: str, key: str = "seconds") -> float:
    return got[label][key] / got["icecore"][key]


def _told(ratios: dict[str, float]) -> str:
    return "; ".join(f"{ratio:.2f} of the speed of {label}" for label, ratio in ratios.items())


def _is_flat(peaks: Sequence[float]) -> bool:
    return peaks[-1] <= max(peaks[-2] * GROWTH, peaks[-2] + GROWTH_MIB)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
