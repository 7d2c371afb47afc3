"""The store at a million rows, against NumPy, h5py, os.scandir and Lance: 1,000,000 rows x 512 float16 in one layer.

Each side runs in a process of its own, the sides of a comparison alternating; medians are told, with time, peak memory
(mapped file pages included) and bytes. Ratios are how many times as fast icecore is. The made-up rows are marked, and
every reader's result is checked. "As written" is the store as one long run leaves it, "merged" after compaction.

Parts, and their goals:

a  opening, ids and first matrix against np.load(mmap_mode="r"), with and without ids from a text file; no goal
b  full read to float32 against np.load(...).astype(np.float32): at least 0.9 of its speed
c  a random tenth of the rows against h5py's fancy indexing of the same segments: at least 20 times as fast; and against
   a memory-mapped .npy: at least 0.8 of its speed
d  100 random rows against Lance's take: from a cold page cache (dropped, and proved so by mincore) no slower, warm
   at least 10 times as fast
e  full scan to float32, and write, made durable on both sides, against Lance: at least 4 times as fast
f  the catalog opens in under 0.3 s
g  a sync that finds nothing to do over as many files takes at most twice the time of a bare os.scandir and stat
h  append at 0.8 of the speed of raw h5py, fsync on both sides; what misses it is the catalog's work, told a row
i  peak memory of a first sync (plan and append) and of one with nothing to do: from a tenth of the rows to all of
   them it grows by less than 10 % or 128 MiB: what a segment's rows and SQLite's cache take at most
j  bytes on disk: at most 1.05 of the payload; segments, catalog and total told
k  365 nightly commits of 100 rows: reading them, number of files, before and after compaction and gc, with the merging
   that runs do by themselves and without; no goal

The full size takes some ten minutes and 5 GB of disk. Lance has an environment of its own, named by --peers or
ICECORE_BENCH_PEERS; without it d and e are skipped. To make it:

    python -m venv peers && peers/bin/pip install "pylance==14.0.2" numpy
    python benchmarks/store_scale.py [--rows 20000] [--only b --only c] [--peers peers/bin/python] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scale.bench import Bench, Outcome
from scale.parts import NEED_LANCE, ORDER, PARTS
from scale.rows import WIDTH


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
        f"{state['rows']:,} rows x {WIDTH} float16, medians of {state['rounds']}, {state['cores']} cores, "
        f"load {low:.1f} to {high:.1f} meanwhile, this benchmark's own included"
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


if __name__ == "__main__":
    sys.exit(main())
