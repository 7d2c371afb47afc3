"""How a large store stands, asked in three ways; and features written for other tools, against the plain way to do it.

First, a million images of little width: ``icecore store status --json`` as a scheduler runs it, once after a run (what
the writer counted is kept) and once as in the middle of one (it is not), beside a process that counts the ids that it
reads. Then 100,000 rows of 512 float16, each side in a process of its own: ``export``, and the same file made of the
whole matrix in memory by NumPy, pyarrow or h5py. Rounds alternate; medians are told, and the peak memory of the process
beyond what it had before. A virtual file has no plain way.

Goals: status takes less than a second after a run; an export takes at most three times as long as the plain way, which
does not wait for the disk as an export does, and less memory.

    python benchmarks/status_and_export.py [--images 1000000] [--rows 100000] [--rounds 3] [--json] [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage, export

CONTRACT = Contract("torchvision.models.resnet18", {}, "0" * 64, (), "pillow", ("full",), "fp32")
ENDINGS = {"npy": ".npy", "parquet": ".parquet", "hdf5": ".h5", "vds": ".vds"}


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    if options.side:
        return _run_side(*options.side)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        large, wide = Path(folder) / "large", Path(folder) / "wide"
        _make(large, options.images, 2)
        asked = _ask(large, options.rounds)
        _make(wide, options.rows, 512)
        made = {form: _race(wide, Path(folder), form, options.rounds) for form in ENDINGS}
    return _report(asked, made, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to put the stores; by default the temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def _make(path: Path, rows: int, width: int) -> None:
    column, random = Column("layer4", Pooling.parse("avg"), width), np.random.default_rng(0)
    with FeatureStore.create(path) as store, store.writer("photos", CONTRACT, [column]) as writer:
        for top in range(0, rows, 4096):
            names = [f"class{n // 1000:04}/{n:08}.jpg" for n in range(top, min(top + 4096, rows))]
            images = [SourceImage(name, path, 1, 1, 1) for name in names]
            contents = [hashlib.sha256(name.encode()).digest() for name in names]
            writer.append(images, contents, {column: random.standard_normal((len(names), width), dtype=np.float32)})


def _ask(path: Path, rounds: int) -> dict[str, float]:
    """Give the seconds of each way to ask, as processes."""
    status = ["-m", "icecore.cli", "store", "status", str(path), "--json"]
    count = ["-c", f"from icecore.store import FeatureStore as F; len(F.open({str(path)!r})['photos'].ids())"]
    kept, counted = _time(status, rounds), _time(count, rounds)
    with closing(sqlite3.connect(path / "catalog.sqlite")) as db, db:
        db.execute("DELETE FROM meta WHERE key LIKE 'summary%'")
    return {"status": kept, "status in a run": _time(status, rounds), "ids counted": counted}


def _time(words: list[str], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _race(store: Path, folder: Path, form: str, rounds: int) -> dict[str, dict[str, float]]:
    sides = ["export"] if form == "vds" else ["export", "plain"]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            words = [sys.executable, __file__, "--side", side, form, str(store), str(folder)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            runs[side].append(json.loads(done.stdout))
    return {side: {key: statistics.median(run[key] for run in told) for key in told[0]} for side, told in runs.items()}


def _run_side(side: str, form: str, store: str, folder: str) -> int:
    path = Path(folder) / f"{side}{ENDINGS[form]}"
    if form == "parquet":
        import pyarrow.parquet  # noqa: F401  (its import is no part of the race)
    with FeatureStore.open(store) as opened:
        photos = opened["photos"]
        before, start = _peak(), time.perf_counter()
        if side == "export":
            export(photos, "layer4", path, overwrite=True)
        else:
            ids, X = photos.matrix("layer4", dtype="float16")
            _write_plainly(path, form, ids, X)
        seconds = time.perf_counter() - start
        memory = _peak() - before
    print(json.dumps({"seconds": seconds, "MiB": memory, "bytes": path.stat().st_size}))
    return 0


def _peak() -> float:
    """Give the peak memory of this process in MiB; getrusage would tell that of the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _write_plainly(path: Path, form: str, ids: list[str], X: np.ndarray) -> None:
    if form == "npy":
        np.save(path, X)
        path.with_suffix(".ids.json").write_text(json.dumps(ids))
    elif form == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        lists = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
        parquet.write_table(pa.table({"id": ids, "layer4": lists}), path)
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["ids"], file["layer4"] = ids, X


def _report(asked: dict[str, float], made: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> int:
    missed = ["status takes a second or more"] if asked["status"] >= 1 else []
    for form, sides in made.items():
        if "plain" in sides and sides["export"]["seconds"] > 3 * sides["plain"]["seconds"]:
            missed.append(f"{form}: more than three times as long as the plain way")
        if "plain" in sides and sides["export"]["MiB"] >= sides["plain"]["MiB"]:
            missed.append(f"{form}: no less memory than the plain way")
    if options.json:
        print(json.dumps({"asked": asked, "made": made, "missed": missed}))
    else:
        print(f"{options.images:,} images, seconds: " + ", ".join(f"{way} {s:.2f}" for way, s in asked.items()))
        print(f"{options.rows:,} rows of 512 float16\n{'':16}  seconds   MiB  bytes")
        for form, sides in made.items():
            for side, told in sides.items():
                print(f"{form:8}{side:8} {told['seconds']:8.2f} {told['MiB']:6.0f}  {told['bytes']:,.0f}")
        print("\n".join(f"missed: {goal}" for goal in missed) or "all goals met")
    return int(options.check and bool(missed))


if __name__ == "__main__":
    sys.exit(main())
