"""The sides of store_scale.py that open and read, each from a process that has read nothing before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from icecore.store import FeatureStore

from .common import COLUMN, LAYER, SET, Run, live_segments
from .page_cache import cool, files_below
from .rows import Stopwatch, check_rows, image_id, some_rows

ONE_BY_ONE_RUNS = 20
"""How often warm rows are taken: one take is too short to be timed alone."""


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


def tenth_h5py(store: str, seed: int = 0) -> Run:
    """Take the same rows from the same segment files by h5py's fancy indexing, ascending as it demands."""
    segments = live_segments(Path(store))
    n = sum(rows for _, rows in segments)
    wanted, first, watch = some_rows(n, n // 10, seed), 0, Stopwatch()
    for path, rows in segments:
        mine = wanted[(wanted >= first) & (wanted < first + rows)]
        with h5py.File(path, "r") as file:
            dataset = file[f"columns/{COLUMN.name}"]
            with watch:
                X = dataset[mine - first]
        check_rows(X, mine)
        first += rows
    return {"seconds": watch.seconds}


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
