"""Copy rows out of mapped segments into one array, each value once, on all cores.

The work is cut into blocks of some MiB that touch one extent each. NumPy's copies and casts leave the interpreter
free, so threads share the blocks; what is small is copied at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import NarrowingError, StoreDamagedError
from .maps import MappedExtent
from .places import Places

__all__ = ["OpenColumn", "gather", "open_column"]

BLOCK_BYTES = 4 << 20
"""Bytes of the result that are copied in one go. From 2 to 32 MiB it makes no difference."""

THREADED_BYTES = 4 * BLOCK_BYTES
"""Results larger than this are copied by threads; to start them costs 0.2 ms."""


@dataclass(frozen=True, eq=False)
class OpenColumn:
    """The rows of one column, with the segments they lie in open."""

    places: Places
    """where the rows lie"""
    maps: tuple[MappedExtent, ...]
    """its extents, mapped, in their order"""


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows of one extent, and where they go."""

    extent: MappedExtent
    rows: np.ndarray
    """``(k,)``, ascending unless ``shuffled``"""
    target: np.ndarray
    """``(n, D)``: the column's part of the result"""
    at: slice | np.ndarray
    """the k rows of ``target``"""
    shuffled: bool

    def source(self) -> np.ndarray:
        return self.extent.array if self.shuffled else self.extent.source(self.rows)

    def copy_from(self, source: np.ndarray) -> None:
        try:
            with np.errstate(over="raise"):
                self._copy(source)
        except FloatingPointError as exc:
            raise NarrowingError(self.extent.extent.column.name, str(self.target.dtype)) from exc

    def _copy(self, source: np.ndarray) -> None:
        first, last = int(self.rows[0]), int(self.rows[-1])
        if last - first == self.rows.size - 1 and bool((np.diff(self.rows) == 1).all()):
            self._put(source[first : last + 1])
            self.extent.forget(source, first, last + 1)
            return
        target = self.target[self.at] if isinstance(self.at, slice) else None
        if target is not None and target.dtype == source.dtype and target.flags.c_contiguous:
            # The rows are known to be there; "clip" is the mode that needs no buffer.
            np.take(source, self.rows, axis=0, out=target, mode="clip")
        else:
            self._put(np.take(source, self.rows, axis=0))

    def _put(self, part: np.ndarray) -> None:
        if isinstance(self.at, slice):
            np.copyto(self.target[self.at], part, casting="same_kind")
        else:  # to cast first is faster than to cast while scattering
            self.target[self.at] = part.astype(self.target.dtype, copy=False)


def open_column(places: Places) -> OpenColumn:
    """Map the segments that rows are taken of.

    Raises
    ------
    StoreDamagedError
        When one is missing or cut short, or a row lies outside its segment.
    """
    places = places.select(slice(None))  # leaves out segments of which no row is taken
    rows = np.array([extent.rows for extent in places.extents], dtype=np.int64)
    if bool(((places.row < 0) | (places.row >= rows[places.which])).any()):
        raise StoreDamagedError(
            f"{places.extents[0].path.parent}: the catalog names rows of {places.column.name} that its segments do not "
            f"have; `icecore store verify` lists what is damaged"
        )
    return OpenColumn(places, tuple(MappedExtent(extent) for extent in places.extents))


def gather(columns: Sequence[OpenColumn], index: slice | np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Bring rows of columns together, side by side.

    Parameters
    ----------
    columns
        At least one, all of the same number of rows n.
    index
        Which rows: a slice, or ``(k,)`` integers from 0 to n - 1 in any order.
    dtype
        Floating dtype of the result.

    Returns
    -------
    numpy.ndarray
        ``(k, D)``, new; D is the sum of the columns' widths. Peak memory is this and some MiB.

    Raises
    ------
    NarrowingError
        When a finite value is too large for the dtype.
    """
    n = columns[0].places.row[index].size
    X = np.empty((n, sum(column.places.column.width for column in columns)), dtype)
    left = 0
    blocks: list[_Block] = []
    for column in columns:
        right = left + column.places.column.width
        blocks += _blocks(column, index, X[:, left:right])
        left = right
    _run(blocks, X.nbytes)
    return X


def _blocks(column: OpenColumn, index: slice | np.ndarray, target: np.ndarray) -> Iterator[_Block]:
    which, rows = column.places.which[index], column.places.row[index]
    step = max(1, BLOCK_BYTES // (target.shape[1] * target.itemsize))
    order = _file_order(column, which, rows)
    shuffled = order is not None and len(column.maps) == 1 and rows.size > step and column.maps[0].is_warm(rows)
    if shuffled:  # in memory the order of the file gains less than sorting and scattering cost
        order = None
    if order is not None:
        which, rows = which[order], rows[order]
    bounds = np.searchsorted(which, np.arange(len(column.maps) + 1)).tolist()
    for extent, begin, end in zip(column.maps, bounds[:-1], bounds[1:], strict=True):
        for start in range(begin, end, step):
            part = slice(start, min(start + step, end))
            yield _Block(extent, rows[part], target, part if order is None else order[part], shuffled)


def _file_order(column: OpenColumn, which: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Give the order of segments and of rows in them; None when they come in it already."""
    key = rows
    if len(column.maps) > 1:
        sizes = [extent.extent.rows for extent in column.maps]
        key = rows + np.cumsum([0, *sizes[:-1]])[which]
    return None if bool((key[1:] >= key[:-1]).all()) else np.argsort(key, kind="stable")


def _run(blocks: list[_Block], size: int) -> None:
    if size <= THREADED_BYTES:
        sources = [block.source() for block in blocks]  # the kernel is asked for everything before anything is awaited
        for block, source in zip(blocks, sources, strict=True):
            block.copy_from(source)
        return
    with ThreadPoolExecutor(min(len(blocks), _cores())) as pool:
        for _ in pool.map(lambda block: block.copy_from(block.source()), blocks):
            pass  # raises what a block raised


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
