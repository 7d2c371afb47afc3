"""The door of the room: open a store, see its sets, get a writer.

Readers never take the lock. Each thread and each process, forked ones too, gets a catalog connection of its own;
vectors are read through memory maps, so a store can be shared by any number of readers while a writer commits.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from . import catalog
from .collect import Collection, Dropped, collect_store, drop_generation
from .compact import Compaction, compact_store
from .contract import Column, Contract
from .difference import StoreDiff, diff_states
from .disk_errors import disk_errors
from .durable import make_folder
from .errors import SetNotFoundError, StoreError
from .feature_set import FeatureSet
from .sqlite_file import Unlocked, readable, stamp_of
from .states import find_generations, locate_state
from .writer import Writer

__all__ = ["FeatureStore"]


class _Held(NamedTuple):
    """A connection of one thread."""

    process: int
    """process that opened it"""
    db: sqlite3.Connection
    """the connection"""
    stamp: tuple[int, ...]
    """what the file was then"""


class FeatureStore:
    """A folder of feature sets.

    Examples
    --------
    >>> with FeatureStore.open("features") as store:  # doctest: +SKIP
    ...     ids, X = store["photos"].matrix("layer4")
    """

    def __init__(self, path: Path) -> None:
        self._local = threading.local()
        self._opened: list[_Held] = []
        self.path = path

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
        """Open a store, making an empty one where there is none.

        Raises
        ------
        FormatError, StoreDamagedError
            When there is one whose catalog cannot be read by this release, or at all.
        DiskError
            When it cannot be made there.
        """
        with disk_errors(Path(path)):
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
        """Close the connections of all threads; no other thread may be reading. Used again, the store reopens."""
        for held in self._opened:
            if held.process == os.getpid():  # a forked child must not touch its parent's
                held.db.close()
        self._opened.clear()
        self._local = threading.local()

    def __del__(self) -> None:
        self.close()

    @property
    def db(self) -> sqlite3.Connection:
        """Read-only connection to the catalog, one a thread and process."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is not None and held.process == os.getpid():
            if held.db.in_transaction or held.stamp == stamp_of(self.path, held.db):
                return held.db
            self._opened.remove(held)
            held.db.close()
        db = catalog.connect(self.path)
        held = self._local.held = _Held(os.getpid(), db, stamp_of(self.path, db))
        self._opened.append(held)
        return db

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Open the catalog for queries that all see the same commit."""
        db = self.db
        if db.in_transaction:
            yield db
            return
        stamp = stamp_of(self.path, db)
        with readable(self.path / catalog.CATALOG):
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")  # nothing was written
        if isinstance(db, Unlocked) and stamp != stamp_of(self.path, db):
            raise StoreError(
                f"{self.path}: written to while it was read, and this user may not lock it there; read again"
            )

    def compact(self, set_name: str | None = None, *, dry_run: bool = False, command: str = "") -> list[Compaction]:
        """Merge the segments of each set, or of one, into as few as can be, the rows in the order of their ids.

        Readers go on meanwhile. Old versions keep the old segments, so that space is free only after gc. Needs the
        disk space of what it merges.

        Parameters
        ----------
        set_name
            Feature set; all by default.
        dry_run
            Say what would be merged, and write nothing.
        command
            Recorded in the log.

        Returns
        -------
        list of Compaction
            One for each generation that was not merged already.

        Raises
        ------
        LockedError
            When another run writes to the store.
        SetNotFoundError
            When the store has no set of this name.
        StoreDamagedError
            When a segment is missing or does not match its checksums; it is not merged.
        """
        return compact_store(self.path, set_name, dry_run=dry_run, command=command)

    def collect(
        self, *, keep_versions: int = 1, keep_days: float = 0, dry_run: bool = False, command: str = ""
    ) -> Collection:
        """Delete what no kept version needs, to the row; what is kept reads as before.

        Of each set are kept: what readers see, versions with a tag, versions that a bundle under ``models/`` was
        trained on, and those asked for here; and a generation that is being filled. A training that still runs has no
        bundle yet: ``keep_days=1`` keeps what it reads. Readers go on meanwhile. Needs the disk space of the largest
        segment of which a part goes, and reads segments that stand in for older ones once.

        Parameters
        ----------
        keep_versions
            The newest versions to keep of each set, at least 1.
        keep_days
            Keep what readers have seen in the last days.
        dry_run
            Say what would go, and change nothing.

        Returns
        -------
        Collection
            By set: versions kept and why, versions that can no longer be read, segments, rows and bytes gone.

        Raises
        ------
        LockedError
            When another run writes to the store.
        RefusedError
            When the card of a bundle cannot be read: nobody knows which version it relies on. Nothing was deleted.
        """
        return collect_store(
            self.path, keep_versions=keep_versions, keep_days=keep_days, dry_run=dry_run, command=command
        )

    def drop(self, generation: str, *, dry_run: bool = False, command: str = "") -> Dropped:
        """Delete a generation that was given up: its rows in the catalog and its files.

        Parameters
        ----------
        generation
            Its uuid, or the first 6 digits of it or more.

        Raises
        ------
        RefusedError
            When readers see it, or a version of it can still be read.
        GenerationNotFoundError
            When there is none of this name, or several.
        """
        return drop_generation(self.path, generation, dry_run=dry_run, command=command)

    def diff(self, a: str | Path, b: str | Path) -> StoreDiff:
        """Compare two states: contracts field by field, columns, and images where both are versions of one set.

        Parameters
        ----------
        a, b
            Each a set, ``SET@VERSION`` or ``SET@TAG``, the uuid of a generation (6 digits or more), or a bundle: its
            folder, its ``card.json``, or ``NAME/BUNDLE`` of this store.

        Raises
        ------
        SetNotFoundError, VersionNotFoundError, GenerationNotFoundError
            When there is no such thing.
        FormatError
            When the card of a bundle cannot be read.
        """
        with self.snapshot() as db:
            return diff_states(db, self.path, a, b)

    def at(self, name: str) -> FeatureSet:
        """Give a state by its name, pinned: whatever is committed meanwhile, every call reads the same.

        Parameters
        ----------
        name
            A set, ``SET@VERSION`` or ``SET@TAG``, or the uuid of a generation (6 digits or more), which stands for
            the newest version that shows it.

        Raises
        ------
        SetNotFoundError, VersionNotFoundError, GenerationNotFoundError
            When there is no such state, or it can no longer be read, or not yet.
        """
        with self.snapshot() as db:
            set_name, version = locate_state(db, self.path, name)
            return self[set_name].as_of(version)

    def generations(self, contract: Contract) -> tuple[tuple[str, str], ...]:
        """Give set and uuid of the generations under this base contract, the newest first."""
        with self.snapshot() as db:
            return find_generations(db, contract)

    @property
    def models_path(self) -> Path:
        """Folder of the bundles."""
        return self.path / "models"

    def sets(self) -> tuple[str, ...]:
        """Give the names of the feature sets that can be read, in alphabetical order."""
        with self.snapshot() as db:
            rows = db.execute("SELECT name FROM sets WHERE id IN (SELECT set_id FROM heads) ORDER BY name")
            return tuple(row[0] for row in rows)

    def __getitem__(self, name: str) -> FeatureSet:
        """Give a feature set.

        Raises
        ------
        SetNotFoundError
            When the store has none of this name; names those it has.
        """
        with self.snapshot() as db:
            set_id = catalog.set_id_of(db, name)
            if set_id is None or catalog.head_of(db, set_id) is None:
                raise SetNotFoundError(self.path, name, self.sets())
        return FeatureSet(self.path, name, set_id, self.snapshot)

    def writer(
        self,
        set_name: str,
        contract: Contract,
        columns: Sequence[Column],
        *,
        command: str = "",
        source: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
        run: str | None = None,
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
        run
            Names the run in the log of versions; by default an id of its own, 32 hex digits.

        Raises
        ------
        LockedError
            On entering, when another run writes to the store.
        DiskError
            On entering, and in every call that commits: when the disk is full, or refuses otherwise.
        StoreDamagedError
            On entering, when a segment of the set is missing or cut short.
        ContractMismatchError
            On entering, when a column of this name means something else in the generation.
        """
        recorded = {"source": source, "versions": versions}
        return Writer(self.path, set_name, contract, columns, command=command, run=run, **recorded)
