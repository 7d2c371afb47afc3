"""Where the rows of a matrix lie: what the catalog found and the reading engine needs, and nothing else.

An ``Extent`` is the data of one column in one segment file; ``Places`` says for each row of a matrix in which extent
it is and where. Both are plain values: no file is opened here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .contract import Column

__all__ = ["Extent", "Places"]


@dataclass(frozen=True)
class Extent:
    """The data of one column in one segment file."""

    path: Path
    """segment file, absolute or as the store was opened"""
    rows: int
    """rows of the whole segment"""
    offset: int
    """byte offset of the column's data in the file"""
    column: Column
    """the column; gives width and dtype"""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the rows of one column of a matrix lie, in the order of the matrix."""

    column: Column
    """the column"""
    extents: tuple[Extent, ...]
    """segments that hold it; one of which no row is taken may be among them"""
    which: np.ndarray
    """``(n,)`` int32: index into ``extents`` of each row"""
    row: np.ndarray
    """``(n,)`` int64: row in that extent"""

    def __post_init__(self) -> None:
        assert self.which.dtype == np.int32
        assert self.row.dtype == np.int64
        assert self.which.shape == self.row.shape == (self.row.size,)
        assert all(extent.column == self.column for extent in self.extents)

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.row.size)

    @property
    def is_whole(self) -> bool:
        """True when the rows are those of one whole segment, in its own order."""
        return (
            len(self.extents) == 1
            and self.n == self.extents[0].rows
            and bool(np.array_equal(self.row, np.arange(self.n)))
        )

    def select(self, index: np.ndarray | slice | Sequence[int]) -> Places:
        """Give the places of some rows, in the order of the index; extents left without a row are dropped.

        Parameters
        ----------
        index
            Whatever NumPy takes for one axis: integers in any order and as often as wished, a mask ``(n,)`` or a slice.
        """
        which, row = self.which[index], self.row[index]
        taken = np.bincount(which, minlength=len(self.extents)) > 0
        if not taken.all():
            which = (np.cumsum(taken, dtype=np.int32) - 1)[which].astype(np.int32, copy=False)
        extents = tuple(self.extents[i] for i in np.flatnonzero(taken).tolist())
        return Places(self.column, extents, which, row)
