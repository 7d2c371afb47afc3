"""The rows that every side of store_scale.py stores, and the clock it is held against. NumPy is all it needs."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

WIDTH = 512
BATCH = 256
"""Rows appended at a time, as a network's batch comes."""
MARKS = 2048
"""The first number of each row is its own number modulo this: exact in float16, so that every reader is checked."""
_BASE_ROWS = 16 * BATCH


class Stopwatch:
    """Sums the seconds, and the processor's seconds, spent inside its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> Stopwatch:
        self._began, self._cpu_began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu += time.process_time() - self._cpu_began


class Rows:
    """Made-up features: normal float16 values from a short repeating block, each row marked with its number."""

    def __init__(self) -> None:
        values = np.random.default_rng(0).standard_normal((_BASE_ROWS, WIDTH), dtype=np.float32)
        self._base = values.astype(np.float16)

    def block(self, start: int, stop: int) -> np.ndarray:
        """Give the features of some rows, at most ``BATCH`` of them: ``(stop - start, 512)`` float16, new."""
        at = start % (_BASE_ROWS - BATCH)
        X = self._base[at : at + stop - start].copy()
        X[:, 0] = np.arange(start, stop) % MARKS
        return X


def check_rows(X: np.ndarray, rows: np.ndarray) -> None:
    """Refuse features that are not those of these rows."""
    if X.shape != (rows.size, WIDTH) or not np.array_equal(X[:, 0], rows % MARKS):
        raise ValueError(f"read {X.shape} of {rows.size} rows, or others than asked for")


def image_id(row: int) -> str:
    """Give the id of a row's image: folders of 1,000."""
    return f"{row // 1000:04}/{row:07}.jpg"


def digest(row: int) -> bytes:
    """Give the sha256 digest that stands for the bytes of a row's image."""
    return hashlib.sha256(b"%d" % row).digest()


def some_rows(n: int, k: int, seed: int) -> np.ndarray:
    """Draw k of n rows, ascending: ``(k,)`` int64."""
    return np.sort(np.random.default_rng(seed).choice(n, k, replace=False)).astype(np.int64)


def peak_mib() -> float:
    """Give the most memory that this process has had, mapped file pages included, in MiB (Linux)."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
