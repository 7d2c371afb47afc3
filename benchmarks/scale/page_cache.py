"""Put files out of the page cache, or into it, and say how much of them is there (Linux). NumPy is all it needs."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

WARM_BLOCK = 8 << 20
"""Bytes read at a time to bring a file into memory."""


def files_below(folder: Path) -> list[Path]:
    """Give all regular files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def cool(paths: Iterable[Path]) -> float:
    """Sync files, ask the kernel to drop their pages, and give the share of pages that are in memory all the same."""
    held = total = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        pages = resident(path)
        held, total = held + int(pages.sum()), total + pages.size
    return held / max(total, 1)


def warm(paths: Iterable[Path]) -> None:
    """Read files once, so that they are in memory if they fit."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(WARM_BLOCK):
                pass


def resident(path: Path) -> np.ndarray:
    """Say which pages of a file are in memory: ``(pages,)`` bool, as ``mincore`` tells it."""
    size = path.stat().st_size
    flags = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
    if size:
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as held:
            view = np.frombuffer(held, np.uint8)
            if _mincore()(view.ctypes.data, size, flags.ctypes.data):
                raise OSError(ctypes.get_errno(), f"{path}: mincore failed ({os.strerror(ctypes.get_errno())})")
            del view  # else the map cannot be closed
    return (flags & 1).astype(bool)


def _mincore() -> ctypes._FuncPointer:
    function = ctypes.CDLL(None, use_errno=True).mincore
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return function
