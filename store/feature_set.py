"""One feature set as readers see it: matrices with the ids of their rows, columns, failures, versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from . import catalog, reading
from .contract import Column, Contract, Dtype, Pooling
from .errors import (
    AmbiguousLayerError,
    IncompleteColumnError,
    LayerNotFoundError,
    StoreError,
    VersionNotFoundError,
)
from .scan import decode_id

__all__ = ["Failure", "FeatureSet", "Matrix"]

Snapshot = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""opens the catalog for a few queries that all see the same commit"""


class Matrix(NamedTuple):
    """Features with the names of their rows."""

    ids: list[str]
    """image id of each row, in the order of their bytes"""
    X: np.ndarray
    """``(n, D)``, one row an id"""


class Failure(NamedTuple):
    """An image that gave no features, or not those of one column."""

    id: str
    """image id"""
    kind: str
    """read, decode, too-large, unsupported; value (a column cannot hold it); transient (tried again by every run)"""
    reason: str
    """what was found"""
    attempts: int
    """how often it was tried"""
    first_at: str
    """first attempt, ISO 8601, UTC"""
    last_at: str
    """last attempt, ISO 8601, UTC"""


class FeatureSet:
    """The features of one set of images; every call reads the latest commit unless given a version."""

    def __init__(self, folder: Path, name: str, set_id: int, snapshot: Snapshot, pinned: int | None = None) -> None:
        self.folder, self.name = folder, name
        self._set_id, self._snapshot, self._pinned = set_id, snapshot, pinned

    def as_of(self, version: int) -> FeatureSet:
        """Give the set as it was at a version: whatever is committed meanwhile, every call reads the same.

        Raises
        ------
        VersionNotFoundError
            When the set has no such version.
        """
        with self._snapshot() as db:
            self._head(db, version)
        return FeatureSet(self.folder, self.name, self._set_id, self._snapshot, version)

    @property
    def version(self) -> int:
        """The version that readers see."""
        with self._snapshot() as db:
            return self._head(db).version

    @property
    def generation(self) -> str:
        """Uuid of the generation that readers see."""
        return self._generation().uuid

    @property
    def contract(self) -> Contract:
        """Base contract of the generation that readers see."""
        return self._generation().contract

    @property
    def source(self) -> dict[str, Any]:
        """Where its images and weights came from; recorded, not part of the contract."""
        return self._generation().source

    @property
    def library_versions(self) -> dict[str, str]:
        """Libraries of the run that began the generation; recorded, not part of the contract."""
        return self._generation().versions

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the generation that readers see, in the order they were added."""
        with self._snapshot() as db:
            return tuple(reading.columns_as_of(db, self._head(db)))

    def ids(self, *, version: int | None = None) -> list[str]:
        """Give the ids of the images that have features, in the order of their bytes."""
        with self._snapshot() as db:
            return [decode_id(key) for key in reading.ids_as_of(db, self._set_id, self._head(db, version))]

    def failures(self, *, version: int | None = None) -> tuple[Failure, ...]:
        """Give the images that gave no features, or not those of a column, in the order of their ids."""
        with self._snapshot() as db:
            rows = reading.failures_as_of(db, self._set_id, self._head(db, version))
            return tuple(Failure(decode_id(row[0]), *row[1:]) for row in rows)

    def coverage(self) -> dict[Column, int]:
        """Give the number of images that each column covers."""
        with self._snapshot() as db:
            head = self._head(db)
            contents = reading.contents_as_of(db, self._set_id, head.as_of)
            columns = reading.columns_as_of(db, head)
            return {
                column: reading.count_as_of(db, contents, head.generation_id, column_id, head.as_of)
                for column, column_id in columns.items()
            }

    def resolve(self, layer: str, *, version: int | None = None) -> Column:
        """Give the column that a selector names: ``layer4``, ``layer4:gem``, ``layer4:avg:float32``.

        Raises
        ------
        LayerNotFoundError
            When nothing matches; names what there is.
        AmbiguousLayerError
            When the layer is stored under several poolings or dtypes.
        """
        with self._snapshot() as db:
            return _select(self.name, layer, tuple(reading.columns_as_of(db, self._head(db, version))))

    def matrix(
        self,
        layer: str | Sequence[str],
        *,
        version: int | None = None,
        dtype: Dtype | None = "float32",
        missing: Literal["refuse", "drop"] = "refuse",
    ) -> Matrix:
        """Read features with the ids of their rows.

        Parameters
        ----------
        layer
            A column: ``layer4``, ``layer4:gem``; or several, joined side by side in this order.
        version
            Read as of this version; the latest by default.
        dtype
            Type of the result. None keeps the stored one, and gives a single whole segment as a read-only memory
            map without copying; otherwise ``X`` is a new array.
        missing
            What to do where an image of the set has no value in a column: ``"refuse"`` raises, ``"drop"`` leaves
            the image out. Images recorded as failures are always left out.

        Returns
        -------
        Matrix
            ``ids`` (n) ordered by their bytes and ``X`` ``(n, D)``, D the sum of the columns' widths. One pass
            over the segments; peak memory is ``X`` itself. All of it is of one commit.

        Raises
        ------
        LayerNotFoundError, AmbiguousLayerError
            When a selector names no column, or several.
        IncompleteColumnError
            When images lack a value and ``missing="refuse"``.
        VersionNotFoundError
            When the set has no such version.
        StoreDamagedError
            When a segment is missing or cut short.
        """
        places, contents, keep = self._locate(layer, version, missing)
        X = _gather(places, dtype)
        return Matrix(self._names(contents, keep), X)

    def _locate(self, layer, version, missing):
        layers = [layer] if isinstance(layer, str) else list(layer)
        if not layers or missing not in ("refuse", "drop"):
            raise StoreError(f"set {self.name!r}: ask for a layer, and missing='refuse' or 'drop', found {missing!r}")
        with self._snapshot() as db:
            head = self._head(db, version)
            known = reading.columns_as_of(db, head)
            columns = [_select(self.name, name, tuple(known)) for name in layers]
            contents = reading.contents_as_of(db, self._set_id, head.as_of)
            found = [reading.locate(db, self.folder, contents, c, known[c], head.as_of) for c in columns]
            for column, (_, present) in zip(columns, found, strict=True):
                lacking = (
                    0
                    if missing == "drop"
                    else reading.find_lacking(db, self._set_id, head, known[column], contents, present)
                )
                if lacking:
                    n = int(present.sum())
                    raise IncompleteColumnError(self.name, column.name, n, n + lacking)
            keep = np.logical_and.reduce([present for _, present in found])
            names = reading.names_as_of(db, self._set_id, head.as_of)
        places = [places if keep.sum() == places.n else places.select(keep[present]) for places, present in found]
        return places, names, keep

    def _names(self, names, keep):
        return names if keep.all() else [names[i] for i in keep.nonzero()[0].tolist()]

    def _head(self, db: sqlite3.Connection, version: int | None = None) -> catalog.Head:
        version = self._pinned if version is None else version
        head = catalog.head_of(db, self._set_id, version)
        latest = catalog.head_of(db, self._set_id)
        if head is None or latest is None or (version is not None and version > latest.version):
            has = f"its latest is {latest.version}" if latest else "it has none"
            raise VersionNotFoundError(f"set {self.name!r} has no version {version}; {has}")
        if head.collected:
            raise VersionNotFoundError(
                f"set {self.name!r}: version {version} was collected by gc at {head.collected}; "
                f"`icecore store log` lists those that are kept"
            )
        return head

    def _generation(self) -> catalog.Generation:
        with self._snapshot() as db:
            return catalog.generation_by_id(db, self._head(db).generation_id)


def _select(set_name: str, layer: str, columns: tuple[Column, ...]) -> Column:
    """Find the one column that a selector names."""
    name, _, rest = layer.partition(":")
    pooling, _, dtype = rest.partition(":")
    names = [column.name for column in columns]
    try:
        wanted = Pooling.parse(pooling) if pooling else None
    except ValueError as exc:
        raise LayerNotFoundError(set_name, layer, names) from exc
    matches = list(_matching(columns, name, wanted, dtype))
    if not matches:
        raise LayerNotFoundError(set_name, layer, names)
    if len(matches) > 1:
        raise AmbiguousLayerError(set_name, layer, [column.name for column in matches])
    return matches[0]


def _matching(columns: tuple[Column, ...], layer: str, pooling: Pooling | None, dtype: str) -> Iterator[Column]:
    for column in columns:
        if column.layer == layer and pooling in (None, column.pooling) and dtype in ("", column.dtype):
            yield column


def _gather(places, dtype):
    from .segment import map_column

    if dtype is None and len(places) == 1 and places[0].is_whole:
        e = places[0].extents[0]
        return map_column(e.path, e.column, e.rows, e.offset)
    kind = dtype or np.result_type(*(p.column.dtype for p in places))
    X = np.empty((places[0].n, sum(p.column.width for p in places)), dtype=kind)
    left = 0
    for p in places:
        for i, e in enumerate(p.extents):
            at = np.flatnonzero(p.which == i)
            if at.size:
                X[at, left : left + p.column.width] = map_column(e.path, e.column, e.rows, e.offset)[p.row[at]]
        left += p.column.width
    return X
