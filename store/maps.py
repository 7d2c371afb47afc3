"""Extents in memory: the data of one column in one segment, mapped without keeping the file open.

An extent is mapped twice, because the kernel reads ahead around a page that is not in memory yet: right for a stretch
of rows, and ruinous for single ones (100 rows of 1,000,000 from disk: 280 ms; with the second map 1 ms). The second
map is read page by page, after the kernel was asked for all wanted pages at once.

A map needs no file descriptor, so that hundreds of segments work under any limit, and it outlives the file's name.
A page that the disk fails to give ends the process (SIGBUS), as with every memory map; `icecore store verify` reads
files the plain way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreDamagedError
from .places import Extent

__all__ = ["MappedExtent"]

MERGED_GAP = 16 * 1024
"""Wanted pages with no more bytes than this between them are asked for in one piece: a request costs about 10 us, in
which the disk measured reads 20 KiB in sequence (benchmarks/read_switch.py)."""

DENSE_SHARE = 0.5
"""From this share on of the bytes between the first and the last wanted row, all are read in sequence. Rows of 1 KiB
reach it at 7 of 100, where both ways cost the same on the disk measured (benchmarks/read_switch.py)."""

DENSE_BYTES = 1 << 20
"""Below this many bytes between the first and the last wanted row, reading ahead would read more than is wanted."""

ASKED_BYTES = 128 * 1024
"""Bytes in one request: Linux passes over what exceeds the device's read-ahead, which is this by default."""

FORGOTTEN_BYTES = 64 * 1024
"""Stretches of this many bytes are let go of once they are copied; to map them again costs a tenth of the copy."""

PROBED_ROWS = 5
"""Rows looked up to tell whether the file is in memory: 2 us each. A page that is missing all the same costs 50 us."""

_MAP_FIXED = 0x10


class MappedExtent:
    """One extent, mapped read-only until the last array made of it is gone.

    Whether pages are in memory is told by ``mincore``, on Linux, for files that this user owns or may write (others
    are not told the truth). Elsewhere the kernel is asked for the pages each time, which costs 2 us a row. Windows
    takes no requests: its pages come one by one.
    """

    def __init__(self, extent: Extent) -> None:
        """Map it.

        Raises
        ------
        StoreDamagedError
            When the file is missing or too short; an OSError of the system is its ``__cause__``.
        """
        self.extent = extent
        dtype = np.dtype(extent.column.dtype).newbyteorder("<")
        shape = (extent.rows, extent.column.width)
        self._row_bytes = extent.column.width * dtype.itemsize
        self._skip = extent.offset % mmap.ALLOCATIONGRANULARITY
        self._ahead, self._held, self._mincore = self._open(extent.rows * self._row_bytes)
        self.array = _as_memmap(self._ahead, extent, dtype, shape, self._skip)
        """``(rows, D)`` in its stored dtype, read-only, for stretches of rows"""
        self._scattered = np.ndarray(shape, dtype, self._held, self._skip)
        self._address = self._scattered.ctypes.data - self._skip

    def source(self, rows: np.ndarray) -> np.ndarray:
        """Give the map to read these rows from, having asked the kernel for those that are not in memory.

        Parameters
        ----------
        rows
            ``(k,)`` integers, k at least 1, ascending; repeats are allowed.

        Returns
        -------
        numpy.ndarray
            ``(rows, D)`` in its stored dtype, read-only: the whole extent.
        """
        span = int(rows[-1] - rows[0] + 1) * self._row_bytes
        most = rows.size * (self._row_bytes + 2 * mmap.PAGESIZE + MERGED_GAP)
        may_be_dense = span >= DENSE_BYTES and most >= span * DENSE_SHARE
        if self.is_warm(rows):
            return self.array if may_be_dense else self._scattered
        starts, stops = self._pieces(rows)
        if may_be_dense and int((stops - starts).sum()) >= span * DENSE_SHARE:
            return self.array
        self._ask(starts, stops)
        return self._scattered

    def is_warm(self, rows: np.ndarray) -> bool:
        """True when the pages of some of these rows, evenly taken, are all in memory; False when that is not told."""
        probed = rows[:: -(-rows.size // PROBED_ROWS)].tolist()
        return self._mincore is not None and all(map(self._begins_in_memory, probed))

    def forget(self, source: np.ndarray, start: int, stop: int) -> None:
        """Take the pages of a stretch of rows, read from ``source``, out of the process (they stay in the cache).

        They count as memory of the process until then; reading them again maps them again.
        """
        if (stop - start) * self._row_bytes >= FORGOTTEN_BYTES:
            first = -(-(self._skip + start * self._row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
            last = (self._skip + stop * self._row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            _advise(self._ahead if source is self.array else self._held, "MADV_DONTNEED", first, last - first)

    def forget_all(self) -> None:
        """Take all pages out of the process, as ``forget`` does."""
        for held in (self._ahead, self._held):
            _advise(held, "MADV_DONTNEED", 0, len(held))

    def _open(self, size: int) -> tuple[mmap.mmap, mmap.mmap, Any]:
        path, end = self.extent.path, self.extent.offset + size
        try:
            file = path.open("rb", buffering=0)
        except OSError as exc:
            raise StoreDamagedError(
                f"{path}: segment is missing or cannot be opened ({exc}); `icecore store verify` lists what is damaged"
            ) from exc
        with file:
            status = os.fstat(file.fileno())
            if status.st_size < end or self.extent.offset < 0:
                raise StoreDamagedError(
                    f"{path}: segment is cut short: {status.st_size:,} bytes, where {self.extent.column.name} ends at "
                    f"{end:,}; `icecore store verify` lists what is damaged"
                )
            start, length = self.extent.offset - self._skip, self._skip + size
            ahead, held = (_map(file.fileno(), start, length) for _ in range(2))
        _advise(held, "MADV_RANDOM", 0, length)
        return ahead, held, _libc().mincore if _tells_residency(path, status) else None

    def _pieces(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give begin and end, in bytes of the map, of the pages of these rows; near ones are merged."""
        page = mmap.PAGESIZE
        begins = (rows * self._row_bytes + self._skip) // page * page
        ends = -(-((rows + 1) * self._row_bytes + self._skip) // page) * page
        breaks = np.flatnonzero(begins[1:] - ends[:-1] > MERGED_GAP)
        return begins[np.append(0, breaks + 1)], ends[np.append(breaks, rows.size - 1)]

    def _ask(self, starts: np.ndarray, stops: np.ndarray) -> None:
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            for at in range(start, stop, ASKED_BYTES):
                _advise(self._held, "MADV_WILLNEED", at, min(ASKED_BYTES, stop - at))

    def _begins_in_memory(self, row: int) -> bool:
        page = (row * self._row_bytes + self._skip) // mmap.PAGESIZE * mmap.PAGESIZE
        found = ctypes.c_ubyte()
        return self._mincore(self._address + page, 1, ctypes.byref(found)) == 0 and bool(found.value & 1)


def _map(descriptor: int, start: int, length: int) -> mmap.mmap:
    """Map a part of a file, read-only. Before Python 3.13 ``mmap`` keeps a descriptor for each map; this keeps none."""
    if sys.platform == "win32":
        return mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=start)
    if sys.version_info >= (3, 13):
        return mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=start, trackfd=False)
    # An empty map of this size, which Python owns and will release, with the file laid over it.
    held = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    address = np.frombuffer(held, np.uint8).ctypes.data
    if _libc().mmap(address, length, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, descriptor, start) != address:
        raise OSError(ctypes.get_errno(), f"cannot map a segment ({os.strerror(ctypes.get_errno())})")
    return held


def _as_memmap(
    held: mmap.mmap, extent: Extent, dtype: np.dtype[Any], shape: tuple[int, int], skip: int
) -> np.memmap[Any, Any]:
    """Give the map as NumPy's own kind, which joblib hands to its workers by name of the file."""
    array = np.ndarray.__new__(np.memmap, shape, dtype, held, skip)
    array.filename, array.offset, array.mode = str(extent.path), extent.offset, "r"
    return array


def _advise(held: mmap.mmap, advice: str, start: int, length: int) -> None:
    if hasattr(mmap, advice):
        with suppress(OSError):  # advice changes no value, and some file systems take none
            held.madvise(getattr(mmap, advice), start, length)


def _tells_residency(path: Path, status: os.stat_result) -> bool:
    return sys.platform == "linux" and (status.st_uid == os.geteuid() or os.access(path, os.W_OK))


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    return libc
