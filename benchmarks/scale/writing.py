"""The sides of store_scale.py that write rows, and what they leave on disk."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
from icecore.store import FeatureStore, SourceImage

from .common import COLUMN, CONTRACT, LONG_AGO, SET, Run, size_of
from .rows import BATCH, WIDTH, Rows, Stopwatch, digest, image_id


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
    return {"seconds": watch.seconds, "cpu_s": watch.cpu, "bytes": size_of(Path(store))}


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


def sizes(store: str) -> Run:
    """Give the bytes of a store by kind; the catalog with whatever log it has."""
    segments = size_of(Path(store) / "segments")
    return {"segments": segments, "catalog": size_of(Path(store)) - segments}
