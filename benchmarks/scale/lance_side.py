"""Lance's side of store_scale.py, run by a Python that has pylance and NumPy but not icecore.

python -m scale.lance_side write|scan|take JSON
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from .page_cache import cool, files_below
from .rows import WIDTH, check_rows, digest, image_id, peak_mib, some_rows

Run = dict[str, float]
WRITTEN_AT_A_TIME = 8192
"""Rows a record batch; 1,024 and 65,536 made no difference."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("content", pa.binary(32)),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("ctime_ns", pa.int64()),
        ("x", pa.list_(pa.float16(), WIDTH)),
    ]
)


def write(npy: str, dataset: str) -> Run:
    """Write what a row of icecore has: features, id, digest, size and times; told with and without fsync."""
    X = np.load(npy, mmap_mode="r")
    n = len(X)
    ids, contents = pa.array([image_id(row) for row in range(n)]), pa.array([digest(row) for row in range(n)], "binary")
    contents, numbers = contents.cast(pa.binary(32)), pa.array(np.arange(n) + 10**18)

    def batches() -> Iterator[pa.RecordBatch]:
        for top in range(0, n, WRITTEN_AT_A_TIME):
            k = min(WRITTEN_AT_A_TIME, n - top)
            features = pa.FixedSizeListArray.from_arrays(pa.array(X[top : top + k].reshape(-1)), WIDTH)
            some = numbers.slice(top, k)
            yield pa.RecordBatch.from_arrays(
                [ids.slice(top, k), contents.slice(top, k), some, some, some, features], schema=SCHEMA
            )

    began = time.perf_counter()
    lance.write_dataset(pa.RecordBatchReader.from_batches(SCHEMA, batches()), dataset, schema=SCHEMA)
    written = time.perf_counter() - began
    _sync(Path(dataset))
    size = sum(path.stat().st_size for path in files_below(Path(dataset)))
    return {"seconds": time.perf_counter() - began, "unsynced_s": written, "bytes": size}


def scan(dataset: str) -> Run:
    """Read all features into one float32 array: batch by batch, or as one table; the faster way counts."""
    ways: list[Callable[[lance.LanceDataset], np.ndarray]] = [_scan_batches, _scan_table]
    spent = []
    for way in ways:
        began = time.perf_counter()
        X = way(lance.dataset(dataset))
        spent.append(time.perf_counter() - began)
        check_rows(X, np.arange(len(X)))
        del X
    return {"seconds": min(spent), "batches_s": spent[0], "table_s": spent[1]}


def take(dataset: str, count: int, rounds: int) -> Run:
    """Take some random rows, from a cold page cache and then again from a warm one; medians."""
    table = lance.dataset(dataset)
    n = table.count_rows()
    table.take([0], columns=["x"])  # opens the files and reads their footers
    files = files_below(Path(dataset))
    cold, warm, left = [], [], 0.0
    for seed in range(rounds):
        rows = some_rows(n, count, seed)
        left = max(left, cool(files))
        cold.append(_timed_take(table, rows))
        warm += [_timed_take(table, rows) for _ in range(20)]
    return {"cold_s": statistics.median(cold), "warm_s": statistics.median(warm), "left_in_memory": left}


def _timed_take(table: lance.LanceDataset, rows: np.ndarray) -> float:
    began = time.perf_counter()
    X = _values(table.take(rows.tolist(), columns=["x"]).column("x").combine_chunks())
    spent = time.perf_counter() - began
    check_rows(X, rows)
    return spent


def _scan_batches(table: lance.LanceDataset) -> np.ndarray:
    X, top = np.empty((table.count_rows(), WIDTH), np.float32), 0
    for batch in table.to_batches(columns=["x"], scan_in_order=True):
        X[top : top + batch.num_rows] = _values(batch.column("x"))
        top += batch.num_rows
    return X


def _scan_table(table: lance.LanceDataset) -> np.ndarray:
    chunks = table.to_table(columns=["x"]).column("x").chunks
    X, top = np.empty((sum(map(len, chunks)), WIDTH), np.float32), 0
    for chunk in chunks:
        X[top : top + len(chunk)] = _values(chunk)
        top += len(chunk)
    return X


def _values(array: pa.FixedSizeListArray) -> np.ndarray:
    return array.flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)


def _sync(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    result = {"write": write, "scan": scan, "take": take}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({**result, "peak_mib": peak_mib()}))
