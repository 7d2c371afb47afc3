"""One feature set as readers see it: matrices with the ids of their rows, columns, failures, versions."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from . import catalog, reading
from .array import FeatureArray
from .contract import Column, Contract, Dtype
from .history import Revert, Version, read_log, revert, set_tag, unset_tag
from .opening import Located, Snapshot, locate_columns, open_located, require_layers
from .scan import decode_id
from .selecting import select_column
from .summary import read_summary
from .versions import head_at, tags_of

__all__ = ["Failure", "FeatureSet", "Matrix"]


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

    def as_of(self, version: int | str) -> FeatureSet:
        """Give the set as it was at a version or tag: whatever is committed meanwhile, every call reads the same.

        Raises
        ------
        VersionNotFoundError
            When the set has no such version or tag, or gc has collected it.
        """
        with self._snapshot() as db:
            head = self._head(db, version)
        return FeatureSet(self.folder, self.name, self._set_id, self._snapshot, head.version)

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

    def ids(self, *, version: int | str | None = None) -> list[str]:
        """Give the ids of the images that have features, in the order of their bytes."""
        with self._snapshot() as db:
            return [decode_id(key) for key in reading.ids_as_of(db, self._set_id, self._head(db, version))]

    def contents(self, *, version: int | str | None = None) -> dict[str, bytes]:
        """Give the sha256 of the file, 32 bytes, of each image that has features, by id, in the order of the ids."""
        with self._snapshot() as db:
            return reading.contents_as_of(db, self._set_id, self._head(db, version))

    def failures(self, *, version: int | str | None = None) -> tuple[Failure, ...]:
        """Give the images that gave no features, or not those of a column, in the order of their ids."""
        with self._snapshot() as db:
            rows = reading.failures_as_of(db, self._set_id, self._head(db, version))
            return tuple(Failure(decode_id(row[0]), *row[1:]) for row in rows)

    def digest(self) -> str:
        """Give a sha256, in hex, of all that can be read: contract, columns, ids, contents, failures.

        Some milliseconds where a run has ended with this version; else a second a million images.
        """
        with self._snapshot() as db:
            return read_summary(db, self._set_id, self._head(db)).digest

    def coverage(self) -> dict[Column, int]:
        """Give the number of images that each column covers."""
        with self._snapshot() as db:
            head = self._head(db)
            _, contents = reading.images_as_of(db, self._set_id, head.as_of, names=False)
            columns = reading.columns_as_of(db, head)
            return {
                column: reading.count_as_of(db, contents, head.generation_id, column_id, head.as_of)
                for column, column_id in columns.items()
            }

    def resolve(self, layer: str, *, version: int | str | None = None) -> Column:
        """Give the column that a selector names: ``layer4``, ``layer4:gem``, ``layer4:avg:float32``.

        Raises
        ------
        LayerNotFoundError
            When nothing matches; names what there is.
        AmbiguousLayerError
            When the layer is stored under several poolings or dtypes.
        """
        with self._snapshot() as db:
            return select_column(self.name, layer, tuple(reading.columns_as_of(db, self._head(db, version))))

    def matrix(
        self,
        layer: str | Sequence[str],
        *,
        version: int | str | None = None,
        dtype: Dtype | None = "float32",
        missing: Literal["refuse", "drop"] = "refuse",
    ) -> Matrix:
        """Read features with the ids of their rows.

        Parameters
        ----------
        layer
            A column: ``layer4``, ``layer4:gem``; or several, joined side by side in this order.
        version
            Read as of this version, given by its number or a tag; the latest by default.
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
            When the set has no such version or tag, or gc has collected it.
        StoreDamagedError
            When a segment is missing or cut short.
        """
        array = self._open(layer, version, missing, dtype, with_ids=True)
        X = array.read()
        return Matrix(array.ids, X if dtype is None or X.flags.writeable else X.copy())

    def array(
        self,
        layer: str | Sequence[str],
        *,
        version: int | str | None = None,
        dtype: Dtype | None = None,
        missing: Literal["refuse", "drop"] = "refuse",
    ) -> FeatureArray:
        """Give features as an array that is read when it is indexed: for subsets, batches, data frames, torch.

        Parameters are those of ``matrix``, but that rows are read as stored by default. Whatever is committed,
        merged or collected meanwhile, the array stays of one commit.

        Raises
        ------
        LayerNotFoundError, AmbiguousLayerError, IncompleteColumnError, VersionNotFoundError, StoreDamagedError
            As ``matrix`` does.
        """
        return self._open(layer, version, missing, dtype, with_ids=False)

    def log(self) -> tuple[Version, ...]:
        """Give every version of the set, the newest first; those that gc collected, too."""
        with self._snapshot() as db:
            return read_log(db, self.folder, self._set_id, self.name)

    def tags(self) -> dict[str, int]:
        """Give the tags with their versions, by name."""
        with self._snapshot() as db:
            return tags_of(db, self._set_id)

    def tag(self, name: str, version: int | str | None = None, *, move: bool = False, command: str = "") -> int:
        """Name a version, by default the one that readers see; gc keeps it. Give its number.

        Raises
        ------
        RefusedError
            When the name stands at another version and ``move`` is not given.
        VersionNotFoundError
            When there is no such version, or gc has collected it.
        """
        version = self._pinned if version is None else version
        return set_tag(self.folder, self.name, name, version, move=move, command=command)

    def untag(self, name: str, *, command: str = "") -> int:
        """Take a tag away; give the version that it named. VersionNotFoundError where there is no such tag."""
        return unset_tag(self.folder, self.name, name, command=command)

    def revert(self, version: int | str, *, dry_run: bool = False, command: str = "") -> Revert:
        """Let readers see an earlier version again, as a new one, until the next ``extract`` has run to its end.

        Nothing is deleted. Raises VersionNotFoundError where there is no such version, or gc has collected it.
        """
        return revert(self.folder, self.name, version, dry_run=dry_run, command=command)

    def _open(
        self,
        layer: str | Sequence[str],
        version: int | str | None,
        missing: str,
        dtype: Dtype | None,
        *,
        with_ids: bool,
    ) -> FeatureArray:
        layers = require_layers(self.name, layer, missing)

        def locate(db: sqlite3.Connection) -> Located:
            head = self._head(db, version)
            known = reading.columns_as_of(db, head)
            columns = [select_column(self.name, one, tuple(known)) for one in layers]
            pairs = [(column, known[column]) for column in columns]
            return locate_columns(
                db,
                self.folder,
                self.name,
                self._set_id,
                head,
                pairs,
                refuse_missing=missing == "refuse",
                with_ids=with_ids,
            )

        return open_located(self._snapshot, locate, dtype=dtype)

    def _head(self, db: sqlite3.Connection, version: int | str | None = None) -> catalog.Head:
        return head_at(db, self._set_id, self.name, self._pinned if version is None else version)

    def _generation(self) -> catalog.Generation:
        with self._snapshot() as db:
            return catalog.generation_by_id(db, self._head(db).generation_id)
