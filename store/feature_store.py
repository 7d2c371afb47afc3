"""The door of the room: open a store, see its sets, read matrices, get a writer.

Readers never take the lock. Each thread and each process, forked ones too, gets a catalog connection of its own;
vectors are read through memory maps, so a store can be shared by any number of readers while a writer commits.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from . import catalog
from .contract import Column, Contract, Dtype, Pooling
from .durable import make_folder
from .errors import (
    AmbiguousLayerError,
    IncompleteColumnError,
    LayerNotFoundError,
    SetNotFoundError,
    StoreError,
    VersionNotFoundError,
)
from .reading import Location, gather, locate
from .scan import decode_id
from .writer import Writer

__all__ = ["Failure", "FeatureSet", "FeatureStore", "Matrix"]


class Matrix(NamedTuple):
    """Features with the names of their rows."""

    ids: list[str]
    """image id of each row, in the order of their bytes"""
    X: np.ndarray
    """``(n, D)``, one row an id"""


class Failure(NamedTuple):
    """An image that gave no features."""

    id: str
    """image id"""
    kind: str
    """read, decode, too-large, unsupported, value, or transient: those are tried again by every run"""
    reason: str
    """what was found"""
    attempts: int
    """how often it was tried"""
    first_at: str
    """first attempt, ISO 8601, UTC"""
    last_at: str
    """last attempt, ISO 8601, UTC"""


class FeatureStore:
    """A folder of feature sets.

    Examples
    --------
    >>> with FeatureStore.open("features") as store:  # doctest: +SKIP
    ...     ids, X = store["photos"].matrix("layer4")
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a store for reading.

        Raises
        ------
        StoreNotFoundError
            When there is none.
        FormatError, StoreDamagedError
            When its catalog cannot be read by this release, or at all.
        """
        store = cls(Path(path))
        _ = store.db
        return store

    @classmethod
    def create(cls, path: Path | str) -> Self:
        """Open a store, making an empty one where there is none."""
        make_folder(Path(path))
        catalog.create_catalog(Path(path))
        return cls.open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close this thread's connection; the store can be used again and reopens it."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is not None and self._local.pid == os.getpid():
            db.close()
        self._local.db = None

    @property
    def db(self) -> sqlite3.Connection:
        """Read-only connection to the catalog, one a thread and process."""
        if getattr(self._local, "db", None) is None or self._local.pid != os.getpid():
            self._local.db, self._local.pid = catalog.connect(self.path), os.getpid()
        return self._local.db  # type: ignore[no-any-return]

    @property
    def models_path(self) -> Path:
        """Folder of the bundles."""
        return self.path / "models"

    def sets(self) -> tuple[str, ...]:
        """Give the names of the feature sets that can be read, in alphabetical order."""
        rows = self.db.execute("SELECT name FROM sets WHERE id IN (SELECT set_id FROM heads) ORDER BY name")
        return tuple(row[0] for row in rows)

    def __getitem__(self, name: str) -> FeatureSet:
        """Give a feature set.

        Raises
        ------
        SetNotFoundError
            When the store has none of this name; names those it has.
        """
        set_id = catalog.set_id_of(self.db, name)
        if set_id is None or catalog.head_of(self.db, set_id) is None:
            raise SetNotFoundError(self.path, name, self.sets())
        return FeatureSet(self, name, set_id)

    def writer(
        self,
        set_name: str,
        contract: Contract,
        columns: Sequence[Column],
        *,
        command: str = "",
        source: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> Writer:
        """Give a writer for one feature set; it takes the lock when entered.

        Parameters
        ----------
        set_name
            Feature set, made if it is new: letters, digits, ``.``, ``_`` and ``-``.
        contract
            Base contract of what will be appended. Another one than the set's current starts a new generation,
            which readers see once it covers every image.
        columns
            What will be appended. New ones are added to the generation.
        command, source, versions
            Recorded with the commits and segments: what ran, where images and weights came from, libraries.

        Raises
        ------
        LockedError
            On entering, when another run writes to the store.
        ContractMismatchError
            On entering, when a column of this name means something else in the generation.
        """
        return Writer(self.path, set_name, contract, columns, command=command, source=source, versions=versions)


class FeatureSet:
    """The features of one set of images; every call reads the latest commit unless given a version."""

    def __init__(self, store: FeatureStore, name: str, set_id: int, pinned: int | None = None) -> None:
        self.store, self.name, self._set_id, self._pinned = store, name, set_id, pinned

    def as_of(self, version: int) -> FeatureSet:
        """Give the set as it was at a version: whatever is committed meanwhile, every call reads the same.

        Failures are not kept by version; they are those of the generation, now.

        Raises
        ------
        VersionNotFoundError
            When the set has no such version.
        """
        self._head(version)
        return FeatureSet(self.store, self.name, self._set_id, version)

    @property
    def version(self) -> int:
        """The version that readers see."""
        return self._head(None).version

    @property
    def generation(self) -> str:
        """Uuid of the generation that readers see."""
        return self._generation(None).uuid

    @property
    def contract(self) -> Contract:
        """Base contract of the generation that readers see."""
        return self._generation(None).contract

    @property
    def source(self) -> dict[str, Any]:
        """Where its images and weights came from; recorded, not part of the contract."""
        return self._generation(None).source

    @property
    def library_versions(self) -> dict[str, str]:
        """Libraries of the run that began the generation; recorded, not part of the contract."""
        return self._generation(None).versions

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of the generation that readers see, in the order they were added."""
        return tuple(catalog.columns_of(self.store.db, self._head(None).generation_id))

    def ids(self, *, version: int | None = None) -> list[str]:
        """Give the ids of the images alive, in the order of their bytes."""
        return [decode_id(key) for key in self._alive(self._head(version))]

    def failures(self) -> tuple[Failure, ...]:
        """Give the images that gave no features, in the order of their ids."""
        rows = self.store.db.execute(
            "SELECT id, kind, reason, attempts, first_at, last_at FROM failures WHERE generation_id = ? ORDER BY id",
            (self._head(None).generation_id,),
        )
        return tuple(Failure(decode_id(row[0]), *row[1:]) for row in rows)

    def coverage(self) -> dict[Column, int]:
        """Give the number of images alive that each column covers."""
        head = self._head(None)
        return {
            column: sum(location.rows.size for location in self._locate(head, column_id)[1])
            for column, column_id in catalog.columns_of(self.store.db, head.generation_id).items()
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
        columns = tuple(catalog.columns_of(self.store.db, self._head(version).generation_id))
        name, _, rest = layer.partition(":")
        pooling, _, dtype = rest.partition(":")
        try:
            wanted = Pooling.parse(pooling) if pooling else None
        except ValueError as exc:
            raise LayerNotFoundError(self.name, layer, [c.name for c in columns]) from exc
        matches = [
            column
            for column in columns
            if column.layer == name and wanted in (None, column.pooling) and dtype in ("", column.dtype)
        ]
        if not matches:
            raise LayerNotFoundError(self.name, layer, [c.name for c in columns])
        if len(matches) > 1:
            raise AmbiguousLayerError(self.name, layer, [c.name for c in matches])
        return matches[0]

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
            over the segments; peak memory is ``X`` itself.

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
        head = self._head(version)
        layers = [layer] if isinstance(layer, str) else list(layer)
        if not layers:
            raise StoreError(f"set {self.name!r}: no layer asked for")
        column_ids = catalog.columns_of(self.store.db, head.generation_id)
        columns = [self.resolve(name, version=version) for name in layers]
        found = [self._locate(head, column_ids[column]) for column in columns]
        keys = found[0][0]
        if missing == "refuse":
            for column, (present, _) in zip(columns, found, strict=True):
                self._require_complete(head, column, present)
        if any(present != keys for present, _ in found[1:]):
            common = set(keys).intersection(*(present for present, _ in found[1:]))
            found = [_keep(present, locations, common) for present, locations in found]
            keys = found[0][0]
        parts = [(column, locations) for column, (_, locations) in zip(columns, found, strict=True)]
        return Matrix([decode_id(key) for key in keys], gather(self.store.path, parts, len(keys), dtype))

    def _head(self, version: int | None) -> catalog.Head:
        version = self._pinned if version is None else version
        head = catalog.head_of(self.store.db, self._set_id, version)
        latest = catalog.head_of(self.store.db, self._set_id)
        if head is None or latest is None or (version is not None and version > latest.version):
            has = f"its latest is {latest.version}" if latest else "it has none"
            raise VersionNotFoundError(f"set {self.name!r} has no version {version}; {has}")
        return head

    def _generation(self, version: int | None) -> catalog.Generation:
        return catalog.generation_by_id(self.store.db, self._head(version).generation_id)

    def _alive(self, head: catalog.Head) -> list[bytes]:
        """Give the images that have any vector in the generation, and so belong to it."""
        rows = self.store.db.execute(
            "SELECT i.id FROM images i WHERE i.set_id = :set AND i.added_in <= :v "
            "AND (i.removed_in IS NULL OR i.removed_in > :v) AND EXISTS ("
            "  SELECT 1 FROM vectors v JOIN segments s ON s.id = v.segment_id WHERE v.content_id = i.content_id"
            "  AND s.generation_id = :g AND s.added_in <= :v AND (s.removed_in IS NULL OR s.removed_in > :v))"
            " ORDER BY i.id",
            {"set": self._set_id, "v": head.as_of, "g": head.generation_id},
        )
        return [row[0] for row in rows]

    def _locate(self, head: catalog.Head, column_id: int) -> tuple[list[bytes], list[Location]]:
        return locate(self.store.db, self._set_id, column_id, head.as_of)

    def _require_complete(self, head: catalog.Head, column: Column, present: list[bytes]) -> None:
        alive = self._alive(head)
        if len(alive) == len(present):
            return
        failed = {
            row[0]
            for row in self.store.db.execute("SELECT id FROM failures WHERE generation_id = ?", (head.generation_id,))
        }
        lacking = set(alive).difference(present, failed)
        if lacking:
            raise IncompleteColumnError(self.name, column.name, len(present), len(alive))


def _keep(keys: list[bytes], locations: list[Location], common: set[bytes]) -> tuple[list[bytes], list[Location]]:
    """Leave out the rows of images that another column lacks."""
    kept = np.array([key in common for key in keys], dtype=bool)
    place = np.cumsum(kept) - 1
    return (
        [key for key in keys if key in common],
        [location.select(kept[location.places], place) for location in locations if kept[location.places].any()],
    )
