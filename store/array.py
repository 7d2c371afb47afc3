"""FeatureArray: features as an array that is read when it is indexed.

It is what NumPy, scikit-learn, pandas, Arrow and torch take features from, without all of them in memory at once.
How rows are fetched is told in maps.py and gather.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import DTypeLike

from . import tables
from .contract import Column
from .errors import ClosedArrayError
from .gather import OpenColumn, gather, open_column
from .names import RowNames
from .places import Places

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Batch", "FeatureArray"]


class Batch(NamedTuple):
    """Some rows with the names of their images."""

    ids: list[str]
    """image id of each row"""
    X: np.ndarray
    """``(k, D)``, new and writable"""


class FeatureArray:
    """Features of n images, ``(n, D)``: one column, or several side by side.

    All segments are opened when it is made. It keeps no file descriptor, and reads the same rows whatever is committed,
    compacted or collected meanwhile. It may be used by many threads at once and after a fork; pickled, it opens the
    segments again by their paths, and StoreDamagedError says which is gone.

    ``array[rows]`` takes an integer, a slice, a mask or integers in any order, and gives a new array;
    ``array[rows, columns]`` then takes columns of that. ``numpy.asarray(array)`` reads everything.
    """

    def __init__(
        self,
        columns: Sequence[Places],
        ids: Callable[[], list[str]] | Sequence[str] | RowNames,
        dtype: DTypeLike | None = None,
    ) -> None:
        """Open the segments.

        Parameters
        ----------
        columns
            Where the rows of each column lie; at least one, all of the same number of rows.
        ids
            Image id of each row, or a function that gives them; it is called once, when they are first needed.
        dtype
            Type that rows are read as: float16, float32 or float64; None for the stored one, the wider of several.

        Raises
        ------
        StoreDamagedError
            When a segment is missing or cut short. Its ``__cause__`` is the FileNotFoundError where one was collected
            since the catalog was read: then reading the catalog again helps.
        """
        assert len({places.n for places in columns}) == 1
        self._columns: tuple[OpenColumn, ...] | None = tuple(open_column(_absolute(places)) for places in columns)
        self._names = ids if isinstance(ids, RowNames) else RowNames(ids if callable(ids) else lambda: list(ids))
        self.columns: tuple[Column, ...] = tuple(places.column for places in columns)
        """what stands side by side, in this order"""
        self.shape: tuple[int, int] = (columns[0].n, sum(column.width for column in self.columns))
        """n, D"""
        self._asked = None if dtype is None else _float_dtype(dtype)
        self._is_whole = len(columns) == 1 and columns[0].is_whole

    ndim = 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type that rows are read as."""
        return self._asked or np.result_type(*(column.dtype for column in self.columns))

    @property
    def nbytes(self) -> int:
        """Bytes of it all, as ``read`` gives it."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    @property
    def ids(self) -> list[str]:
        """Image id of each row; the list is kept and must not be changed."""
        return self._names.ids

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"FeatureArray({self.shape}, {self.dtype}, {' + '.join(column.name for column in self.columns)})"

    @property
    def places(self) -> tuple[Places, ...]:
        """Where the rows of each column lie."""
        return tuple(column.places for column in self._opened())

    def parts(self) -> tuple[FeatureArray, ...]:
        """Give an array for each column, of its own dtype unless this one was made with another; nothing is opened."""
        return tuple(self._part(opened) for opened in self._opened())

    def _part(self, opened: OpenColumn) -> FeatureArray:
        part, column = object.__new__(type(self)), opened.places.column
        part.__dict__.update(
            self.__dict__,
            _columns=(opened,),
            columns=(column,),
            shape=(len(self), column.width),
            _is_whole=opened.places.is_whole,
        )
        return part

    def astype(self, dtype: DTypeLike) -> FeatureArray:
        """Give the same rows, read as another type; nothing is read or opened for it."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, _asked=_float_dtype(dtype))
        return other

    def read(self, *, dtype: DTypeLike | None = None) -> np.ndarray:
        """Read everything: ``(n, D)``.

        Parameters
        ----------
        dtype
            Type of the result; this array's own by default.

        Returns
        -------
        numpy.ndarray
            One column that is one whole segment comes, in its stored dtype, as the segment's read-only memory map:
            nothing is copied. Everything else is a new array, made without a second copy.

        Raises
        ------
        NarrowingError
            When a value is too large for the dtype.
        """
        kind = self.dtype if dtype is None else _float_dtype(dtype)
        whole = self._whole(kind)
        return gather(self._opened(), slice(None), kind) if whole is None else whole

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if rows is Ellipsis:
            rows = slice(None)
        if not rest or rest == [Ellipsis]:
            return self._rows(rows)
        if len(rest) > 1 or rows is None or rest[0] is None:
            raise IndexError(f"features have two axes: index them by [rows] or [rows, columns], found {key!r}")
        part: np.ndarray = self._rows(rows)[..., rest[0]]
        return part.copy()  # else one column would hold the memory of all

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Give the row of each image: ``(k,)`` int64, in the order asked for.

        Raises
        ------
        UnknownImageError
            When some are not here; names the first of them, and one that is close to it.
        """
        return self._names.rows_of(ids)

    def take(self, ids: Iterable[str]) -> np.ndarray:
        """Read some images: ``(k, D)``, new, in the order asked for; UnknownImageError as for ``rows_of``."""
        return self._rows(self.rows_of(ids))

    def iter_batches(self, size: int, *, dtype: DTypeLike | None = None, shuffle: int | None = None) -> Iterator[Batch]:
        """Go through all rows in batches, in the memory of one.

        Shuffled, pages of the files count as memory of the process too until the system wants them back.

        Parameters
        ----------
        size
            Rows a batch, at least 1; the last has what is left.
        dtype
            Type of the batches; this array's own by default.
        shuffle
            Seed of an order drawn anew for it; None keeps the order of the rows.

        Yields
        ------
        Batch
            ``ids`` and ``X``, new.
        """
        if size < 1:
            raise ValueError(f"batches have at least 1 row, found {size}")
        source = self if dtype is None else self.astype(dtype)
        order = None if shuffle is None else np.random.default_rng(shuffle).permutation(len(self))
        return _batches(source, size, order)

    def forget(self) -> None:
        """Take the pages of the files that were read out of the process; they stay in the system's cache.

        Rows that do not lie side by side in their segments leave such pages behind, which count as memory of the
        process until the system wants them back. It changes nothing that is read, also while others read.
        """
        for column in self._opened():
            for extent in column.maps:
                extent.forget_all()

    def to_arrow(self) -> pa.Table:
        """Give it as a ``pyarrow.Table``.

        Returns
        -------
        pyarrow.Table
            Column ``id``: string, or binary (the bytes of the file names) when some id is not UTF-8. Then one
            ``FixedSizeList<dtype>[D]`` a column of features, under its name, in the stored dtype unless this array
            was made with another. Rows that lie in long stretches of their segments are not copied: the table then
            points into the memory maps.

        Raises
        ------
        MissingExtraError
            When pyarrow is not installed.
        """
        return tables.to_arrow(self._opened(), self._names, self._asked)

    def to_pandas(self) -> pd.DataFrame:
        """Give it as a ``pandas.DataFrame``: a copy of it all, in this array's dtype.

        Returns
        -------
        pandas.DataFrame
            Index ``id``: image ids, as Python strings. Columns ``layer4:avg/0`` to ``layer4:avg/511``.

        Raises
        ------
        MissingExtraError
            When pandas is not installed.
        """
        return tables.to_pandas(self._opened(), self._names, self.dtype)

    def close(self) -> None:
        """Let go of the segments; arrays that were read stay good, a memory map too."""
        self._columns = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        kind = np.dtype(self.dtype if dtype is None else dtype)
        whole = self._whole(kind)
        if copy is False and whole is None:
            raise ValueError("these features cannot be given without a copy; use copy=None")
        if whole is not None:
            return np.array(whole) if copy else whole
        return self.read(dtype=kind) if kind.kind == "f" else self.read().astype(kind)

    def __reduce__(self) -> tuple[type[FeatureArray], tuple[tuple[Places, ...], RowNames, np.dtype[Any] | None]]:
        return type(self), (self.places, self._names, self._asked)

    def _opened(self) -> tuple[OpenColumn, ...]:
        if self._columns is None:
            raise ClosedArrayError
        return self._columns

    def _whole(self, dtype: np.dtype[Any]) -> np.ndarray | None:
        """Give the memory map, where that is all there is to it."""
        opened = self._opened()
        return opened[0].maps[0].array if self._is_whole and dtype == opened[0].maps[0].array.dtype else None

    def _rows(self, key: Any) -> np.ndarray:
        index = _row_index(key, len(self))
        if isinstance(index, int):
            row: np.ndarray = gather(self._opened(), slice(index, index + 1), self.dtype)[0]
            return row
        return gather(self._opened(), index, self.dtype)


def _batches(array: FeatureArray, size: int, order: np.ndarray | None) -> Iterator[Batch]:
    ids = array.ids
    for start in range(0, len(array), size):
        part = slice(start, start + size)
        if order is None:
            yield Batch(ids[part], array[part])
        else:
            yield Batch([ids[row] for row in order[part].tolist()], array[order[part]])


def _row_index(key: Any, n: int) -> int | slice | np.ndarray:
    """Give what was asked for as a row, a slice, or ``(k,)`` int64 from 0 to n - 1."""
    if isinstance(key, slice):
        return key
    index = np.asarray(key)
    if index.dtype == bool:
        if index.shape != (n,):
            raise IndexError(f"a mask over {n} rows has the shape ({n},), found {index.shape}")
        return np.flatnonzero(index)
    if index.ndim > 1 or (index.size and index.dtype.kind not in "iu"):
        raise IndexError(f"rows are taken by an integer, a slice, a mask or integers (k,), found {key!r}")
    outside = (index < -n) | (index >= n)
    if outside.any():
        raise IndexError(f"row {index[outside].flat[0]} is outside the {n} rows here")
    index = index.astype(np.int64, copy=False)
    index = np.where(index < 0, index + n, index)
    return index if index.ndim else int(index)


def _float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    kind = np.dtype(dtype)
    if kind.kind != "f":
        raise TypeError(f"features are read as float16, float32 or float64, found {kind}")
    return kind


def _absolute(places: Places) -> Places:
    """Name the files so that they are found from any working directory, as an unpickled array needs."""
    here = Path(os.getcwd())  # noqa: PTH109  (asked once, not for each segment)
    return replace(places, extents=tuple(replace(extent, path=here / extent.path) for extent in places.extents))
