"""Some rows of a segment: the memory map, one pread a row, and what icecore chooses; from memory and from disk.

One segment of float16 rows of 512; rows drawn at random, in their order. ``map`` is NumPy's indexing of a plain memory
map, ``pread`` asks the kernel for each row (posix_fadvise, WILLNEED) and then reads row by row, ``chosen`` is
FeatureArray. The sides alternate; medians are told, each of freshly drawn rows. The constants of ``store/maps.py``
come from here. For "from disk" the file's pages are dropped before each reading; where the file system keeps them, that
half is left out, and said so. The last table is all rows as float32, against the map cast by NumPy.

Goals: at every share of the rows icecore takes at most 1.5 times as long as the better side (and 0.1 ms: from disk,
0.5 ms), 100 rows come in under 0.1 ms from memory and, from disk, 10 times as fast as from the map; all rows as
float32 come at least as fast as NumPy casts them.

    python benchmarks/read_switch.py [--rows 200000] [--rounds 5] [--folder DIR] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from icecore.store import Column, Contract, Pooling
from icecore.store.array import FeatureArray
from icecore.store.maps import MappedExtent
from icecore.store.places import Extent, Places
from icecore.store.segment import SegmentHeader, map_column, write_segment

WIDTH = 512
COUNTS = (1, 10, 100, 1_000, 10_000)
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SIDES = ("map", "pread", "chosen")

Read = Callable[[np.ndarray], np.ndarray]
Table = dict[int, dict[str, float]]
"""milliseconds by number of rows and side"""


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        extent = _write(Path(folder) / "segment.h5", options.rows)
        tables = {"from memory": _measure(extent, options.rounds, cold=False)}
        if _drops(extent):
            tables["from disk"] = _measure(extent, options.rounds, cold=True)
        whole = _measure_whole(extent, options.rounds)
    return _report(tables, whole, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to put the segment; by default the system's temporary folder"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def _write(path: Path, rows: int) -> Extent:
    column = Column("layer4", Pooling.parse("avg"), WIDTH)
    contract = Contract("torchvision.models.resnet18", {}, "0" * 64, (), "pillow", ("full",), "fp32")
    header = SegmentHeader("0" * 32, "s", "0" * 32, contract, (column,), rows, "2026-01-01T00:00:00Z", {}, {})
    X = np.random.default_rng(0).standard_normal((rows, WIDTH), dtype=np.float32).astype(np.float16)
    ids = [b"%d" % row for row in range(rows)]
    offset = write_segment(path, header, ids, np.zeros((rows, 32), np.uint8), {column: X})[column]
    return Extent(path, rows, offset, column)


def _drop(extent: Extent) -> None:
    with extent.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _drops(extent: Extent) -> bool:
    _drop(extent)
    dropped = not any(MappedExtent(extent).is_warm(np.array([row])) for row in range(0, extent.rows, 1000))
    if not dropped:
        print("not measured from disk: this file system keeps the pages of a file that is dropped; try --folder")
    return dropped


def _readers(extent: Extent) -> dict[str, Read]:
    """Open each side anew, so that no page of the file is mapped."""
    column, rows = extent.column, extent.rows
    mapped = map_column(extent.path, column, rows, extent.offset)
    places = Places(column, (extent,), np.zeros(rows, np.int32), np.arange(rows))
    array = FeatureArray([places], list)
    return {"map": lambda index: mapped[index], "pread": _pread(extent), "chosen": lambda index: array[index]}


def _pread(extent: Extent) -> Read:
    file, size = extent.path.open("rb", buffering=0), 2 * WIDTH

    def read(index: np.ndarray) -> np.ndarray:
        X = np.empty((index.size, WIDTH), np.float16)
        offsets = (extent.offset + index * size).tolist()
        for offset in offsets:
            os.posix_fadvise(file.fileno(), offset, size, os.POSIX_FADV_WILLNEED)
        for row, offset in enumerate(offsets):
            assert os.preadv(file.fileno(), [X[row]], offset) == size
        return X

    return read


def _measure(extent: Extent, rounds: int, *, cold: bool) -> Table:
    random = np.random.default_rng(1)
    counts = sorted({*COUNTS, *(int(extent.rows * share) for share in SHARES)})
    table: Table = {}
    for count in (count for count in counts if count <= extent.rows):
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        repeats = rounds if cold else max(rounds, min(200, 20_000 // count))
        readers = _readers(extent)
        for number in range(repeats):
            for side in (*SIDES[number % 3 :], *SIDES[: number % 3]):
                index = np.sort(random.choice(extent.rows, count, replace=False))
                if cold:
                    readers = _readers(extent)
                    _drop(extent)
                else:
                    readers[side](index)
                began = time.perf_counter()
                readers[side](index)
                times[side].append(1000 * (time.perf_counter() - began))
        table[count] = {side: statistics.median(times[side]) for side in SIDES}
    return table


def _measure_whole(extent: Extent, rounds: int) -> dict[str, float]:
    mapped = map_column(extent.path, extent.column, extent.rows, extent.offset)
    places = Places(extent.column, (extent,), np.zeros(extent.rows, np.int32), np.arange(extent.rows))
    array = FeatureArray([places], list)
    sides: dict[str, Callable[[], np.ndarray]] = {
        "map": lambda: mapped.astype(np.float32),
        "chosen": lambda: array.read(dtype="float32"),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, read in sides.items():
            began = time.perf_counter()
            read()
            times[side].append(1000 * (time.perf_counter() - began))
    return {side: statistics.median(measured) for side, measured in times.items()}


def _goals(tables: dict[str, Table], whole: dict[str, float]) -> dict[str, bool]:
    goals = {"all rows as float32 at least as fast as NumPy": whole["chosen"] <= whole["map"]}
    for name, table in tables.items():
        slack = 0.5 if name == "from disk" else 0.1
        kept = [row["chosen"] <= 1.5 * min(row["map"], row["pread"]) + slack for row in table.values()]
        goals[f"{name}: never over 1.5 times the better side"] = all(kept)
    goals["from memory: 100 rows under 0.1 ms"] = tables["from memory"][100]["chosen"] < 0.1
    if "from disk" in tables:
        row = tables["from disk"][100]
        goals["from disk: 100 rows 10 times as fast as the map"] = 10 * row["chosen"] <= row["map"]
    return goals


def _report(tables: dict[str, Table], whole: dict[str, float], options: argparse.Namespace) -> int:
    goals = _goals(tables, whole)
    if options.json:
        print(json.dumps({"rows": options.rows, "milliseconds": tables, "whole": whole, "goals": goals}))
    else:
        for name, table in tables.items():
            print(f"{name}: rows of {options.rows:,} x {WIDTH} float16, milliseconds")
            print(f"  {'share':>10} {'rows':>9} " + " ".join(f"{side:>10}" for side in SIDES))
            for count, row in table.items():
                share = f"{100 * count / options.rows:.4g} %"
                print(f"  {share:>10} {count:>9,} " + " ".join(f"{row[side]:10.3f}" for side in SIDES))
        print(f"all rows as float32: map {whole['map']:.0f} ms, chosen {whole['chosen']:.0f} ms")
        for goal, met in goals.items():
            print(f"  {'met   ' if met else 'MISSED'} {goal}")
    return 1 if options.check and not all(goals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
