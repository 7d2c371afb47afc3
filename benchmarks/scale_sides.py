"""What each side of store_scale.py does, icecore's and that of NumPy, h5py and os.scandir, in a process of its own.

    python benchmarks/scale_sides.py NAME JSON

Every function prints seconds and what else it found; the parent holds them against each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import h5py
import numpy as np
from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage, compact, plan_sync, scan_folder
from page_cache import cool, files_below
from scale_rows import BATCH, WIDTH, Rows, Stopwatch, check_rows, digest, image_id, peak_mib, some_rows

Run = dict[str, float]

SET, LAYER = "photos", "layer4"
COLUMN = Column(LAYER, Pooling.parse("avg"), WIDTH)
CONTRACT = Contract("torchvision.models.resnet18", {}, "0" * 64, (), "pillow", ("full",), "fp32")
LONG_AGO = 1_600_000_000 * 10**9
"""mtime of all files, nanoseconds since 1970"""
FOLDER_FILES = 1000
ONE_BY_ONE_RUNS = 20
"""How often warm rows are taken: one take is too short to be timed alone."""


# Writing.


def append_icecore(store: str, rows: int) -> Run:
    """Append rows to a new store; opening and closing the writer count, making the rows does not."""
    features, watch = Rows(), Stopwatch()
    with watch:
        writer = FeatureStore.create(store).writer(SET, CONTRACT, [COLUMN])
        writer.__enter__()
    for start in range(0, rows, BATCH):
        some = range(start, min(start + BATCH, rows))
        images = [SourceImage(image_id(row), Path("x"), 10_000, LONG_AGO, LONG_AGO) for row in some]
        contents = [digest(row) for row in some]
        X = features.block(some.start, some.stop)
        with watch:
            writer.append(images, contents, {COLUMN: X})
    with watch:
        writer.__exit__(None, None, None)
    return {"seconds": watch.seconds, "cpu_s": watch.cpu, "bytes": _size(Path(store))}


def append_h5py(path: str, rows: int) -> Run:
    """Write the same batches into one contiguous dataset of an HDF5 file, and sync it."""
    features, watch = Rows(), Stopwatch()
    with watch:
        file = h5py.File(path, "w")
        dataset = file.create_dataset("x", (rows, WIDTH), np.float16)
    for start in range(0, rows, BATCH):
        stop = min(start + BATCH, rows)
        X = features.block(start, stop)
        with watch:
            dataset[start:stop] = X
    with watch:
        file.close()
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return {"seconds": watch.seconds, "cpu_s": watch.cpu, "bytes": Path(path).stat().st_size}


def write_npy(path: str, ids: str, rows: int) -> Run:
    """Save the same rows as a .npy, and the ids as a text file, one a line."""
    features = Rows()
    X = np.lib.format.open_memmap(path, "w+", np.float16, (rows, WIDTH))
    for start in range(0, rows, BATCH):
        X[start : start + BATCH] = features.block(start, min(start + BATCH, rows))
    X.flush()
    Path(ids).write_text("".join(f"{image_id(row)}\n" for row in range(rows)), "utf-8")
    return {"bytes": Path(path).stat().st_size}


def compacted_copy(store: str, copy: str) -> Run:
    """Make a second store of the same segment files by hard links, and merge them there."""
    shutil.copytree(store, copy, copy_function=lambda a, b: os.link(a, b) if a.endswith(".h5") else shutil.copy(a, b))
    began = time.perf_counter()
    with FeatureStore.open(copy) as opened:
        opened.compact()
    return {"seconds": time.perf_counter() - began}


# a, f: opening.


def open_icecore(store: str) -> Run:
    """Open a store: its catalog alone, then the array and the ids of its rows, then a stored-dtype matrix."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        photos = opened[SET]
        version = photos.version
        opened_s = time.perf_counter() - began
        array = photos.array(LAYER)
        array_s = time.perf_counter() - began
        n = len(array.ids)
        ids_s = time.perf_counter() - began
    assert version >= 1
    check_rows(array[n - 1 :], np.array([n - 1]))
    return {"seconds": ids_s, "open_s": opened_s, "array_s": array_s}


def matrix_icecore(store: str) -> Run:
    """Open a store and read ids and matrix in the stored dtype."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        ids, X = opened[SET].matrix(LAYER, dtype=None)
        spent = time.perf_counter() - began
    assert ids[-1] == image_id(len(X) - 1)
    return {"seconds": spent}


def open_npy(path: str, ids: str | None = None) -> Run:
    """Map a .npy, and read the ids from a text file if given."""
    began = time.perf_counter()
    X = np.load(path, mmap_mode="r")
    names = Path(ids).read_text("utf-8").splitlines() if ids else []
    spent = time.perf_counter() - began
    assert len(names) in (0, len(X))
    return {"seconds": spent}


# b, c, e: reading.


def read_icecore(store: str) -> Run:
    """Read a layer as float32; opening counts, ids are not asked for."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        X = opened[SET].array(LAYER).read(dtype=np.float32)
        spent = time.perf_counter() - began
    check_rows(X, np.arange(len(X)))
    return {"seconds": spent}


def read_npy(path: str, mapped: bool = False) -> Run:
    """Load a .npy as float32; ``mapped`` saves the copy in between."""
    began = time.perf_counter()
    X = np.load(path, mmap_mode="r" if mapped else None).astype(np.float32)
    spent = time.perf_counter() - began
    check_rows(X, np.arange(len(X)))
    return {"seconds": spent}


def tenth_icecore(store: str, seed: int = 0) -> Run:
    """Take a random tenth of the rows, ascending and shuffled, from an open array."""
    with FeatureStore.open(store) as opened:
        return _tenth(opened[SET].array(LAYER), seed)


def tenth_npy(path: str, seed: int = 0) -> Run:
    """Take the same rows from a mapped .npy."""
    return _tenth(np.load(path, mmap_mode="r"), seed)


def tenth_h5py(store: str, limit: int, seed: int = 0) -> Run:
    """Take the same rows from the same segment files by h5py; past ``limit`` seconds the rest is scaled up."""
    segments = _live_segments(Path(store))
    n = sum(rows for _, rows in segments)
    wanted, first, spent, taken = some_rows(n, n // 10, seed), 0, 0.0, 0
    for path, rows in segments:
        mine = wanted[(wanted >= first) & (wanted < first + rows)]
        with h5py.File(path, "r") as file:
            dataset = file[f"columns/{COLUMN.name}"]
            for part in np.array_split(mine, max(1, mine.size // 5000)):
                began = time.perf_counter()
                X = dataset[part - first]
                spent += time.perf_counter() - began
                check_rows(X, part)
                taken += part.size
                if spent > limit:
                    return {"seconds": spent * wanted.size / taken, "share_read": taken / wanted.size}
        first += rows
    return {"seconds": spent, "share_read": 1.0}


def take_icecore(store: str, count: int, rounds: int) -> Run:
    """Take some random rows, from a cold page cache and then again from a warm one; medians."""
    cold, warm, left = [], [], 0.0
    files = files_below(Path(store) / "segments")
    with FeatureStore.open(store) as opened:
        for seed in range(rounds):
            with opened[SET].array(LAYER) as array:  # anew: pages that a process has mapped cannot be dropped
                rows = some_rows(len(array), count, seed)
                left = max(left, cool(files))
                cold.append(_timed_take(array, rows))
                warm += [_timed_take(array, rows) for _ in range(ONE_BY_ONE_RUNS)]
    return {"cold_s": statistics.median(cold), "warm_s": statistics.median(warm), "left_in_memory": left}


# g, i: syncing.


def make_files(folder: str, files: int) -> Run:
    """Make empty files with times long past, in folders of 1,000, and let their change times grow old."""
    for row in range(files):
        path = f"{folder}/{image_id(row)}"
        if row % FOLDER_FILES == 0:
            Path(path).parent.mkdir(parents=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    time.sleep(3)  # younger than two seconds, they would be read again by every run
    return {}


def sync_icecore(folder: str, store: str) -> Run:
    """Plan, and append a row for each file found, as a run of extract does without its network."""
    features, numbers = Rows(), count()
    began = time.perf_counter()
    with FeatureStore.create(store).writer(SET, CONTRACT, [COLUMN]) as writer:
        plan = writer.plan(scan_folder(folder))
        planned = time.perf_counter() - began
        for group in plan.groups:
            for images in _batched(iter(group.images)):
                start = next(numbers) * BATCH
                contents = [hashlib.sha256(image.key).digest() for image in images]
                writer.append(images, contents, {COLUMN: features.block(start, start + len(images))})
    return {"seconds": time.perf_counter() - began, "plan_s": planned}


def plan_icecore(folder: str, store: str, files: int) -> Run:
    """Plan a sync that finds nothing to do."""
    began = time.perf_counter()
    plan = plan_sync(store, SET, CONTRACT, [COLUMN], scan_folder(folder))
    spent = time.perf_counter() - began
    assert (plan.unchanged, plan.to_read, plan.total) == (files, 0, files), plan
    return {"seconds": spent}


def walk_bare(folder: str, files: int) -> Run:
    """List the folders and stat every file, and keep nothing."""
    began = time.perf_counter()
    found = _walk(folder)
    spent = time.perf_counter() - began
    assert found == files
    return {"seconds": spent}


# k: many nights.


def nightly(store: str, nights: int, rows: int, merging: bool) -> Run:
    """Commit some rows a night, each by a writer of its own; their ids fall anywhere between the earlier ones."""
    if not merging:
        compact.COMPACT_PAST = sys.maxsize
    features, opened, spent = Rows(), FeatureStore.create(store), []
    for night in range(nights):
        contents = sorted(digest(row) for row in range(night * rows, (night + 1) * rows))
        images = [SourceImage(f"{content.hex()[:16]}.jpg", Path("x"), 1, LONG_AGO, LONG_AGO) for content in contents]
        began = time.perf_counter()
        with opened.writer(SET, CONTRACT, [COLUMN]) as writer:
            writer.append(images, contents, {COLUMN: features.block(night * rows, (night + 1) * rows)})
        spent.append(time.perf_counter() - began)
    return {"night_s": statistics.median(spent), "slowest_night_s": max(spent), **_counts(Path(store))}


def compact_icecore(store: str) -> Run:
    """Merge a store's segments."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        opened.compact()
    return {"compact_s": time.perf_counter() - began, **_counts(Path(store))}


def read_nightly(store: str) -> Run:
    """Read the layer as float32 from a fresh process, and give a digest of it."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        X = opened[SET].array(LAYER).read(dtype=np.float32)
        spent = time.perf_counter() - began
    return {"seconds": spent, "digest": int.from_bytes(hashlib.sha256(X.data).digest()[:6], "big")}


# j: sizes.


def sizes(store: str) -> Run:
    """Give the bytes of a store by kind; the catalog with whatever log it has."""
    segments = _size(Path(store) / "segments")
    return {"segments": segments, "catalog": _size(Path(store)) - segments}


def _tenth(array: Sequence[np.ndarray], seed: int) -> Run:
    rows = some_rows(len(array), len(array) // 10, seed)
    shuffled = np.random.default_rng(seed).permutation(rows)
    ordered_s, shuffled_s = [], []
    for _ in range(3):
        ordered_s.append(_timed_take(array, rows))
        shuffled_s.append(_timed_take(array, shuffled))
    return {"seconds": statistics.median(ordered_s), "shuffled_s": statistics.median(shuffled_s)}


def _timed_take(array: Sequence[np.ndarray], rows: np.ndarray) -> float:
    began = time.perf_counter()
    X = array[rows]
    spent = time.perf_counter() - began
    check_rows(X, rows)
    return spent


def _live_segments(store: Path) -> list[tuple[Path, int]]:
    with closing(sqlite3.connect(f"file:{store / 'catalog.sqlite'}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT path, rows FROM segments WHERE removed_in IS NULL ORDER BY id").fetchall()
    return [(store / path, rows) for path, rows in found]


def _counts(store: Path) -> Run:
    return {"live_segments": len(_live_segments(store)), "files": len(list((store / "segments").rglob("*.h5")))}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in files_below(folder))


def _batched(images: Iterator[SourceImage]) -> Iterator[list[SourceImage]]:
    while some := list(islice(images, BATCH)):
        yield some


def _walk(folder: str) -> int:
    found = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _walk(entry.path)
            else:
                entry.stat()
                found += 1
    return found


SIDES: dict[str, Callable[..., Run]] = {
    side.__name__: side
    for side in (
        append_icecore, append_h5py, write_npy, compacted_copy, open_icecore, matrix_icecore, open_npy, read_icecore,
        read_npy, tenth_icecore, tenth_npy, tenth_h5py, take_icecore, make_files, sync_icecore, plan_icecore, walk_bare,
        nightly, compact_icecore, read_nightly, sizes,
    )
}  # fmt: skip

if __name__ == "__main__":
    result = SIDES[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps({**result, "peak_mib": peak_mib()}))
