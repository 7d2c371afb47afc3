"""Features by what image files hold: whatever set, folder or name an image has, its features are found by its sha256.

Used to score images that were extracted before without a second forward pass, and without torch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from . import reading
from .array import FeatureArray
from .catalog import columns_of, find_generation
from .commit import find_contents
from .contract import Column, Contract
from .feature_store import FeatureStore
from .holdings import load_held
from .opening import Located, open_located
from .scan import SourceImage

__all__ = ["StoredFeatures"]


class StoredFeatures:
    """The features of one contract that a store has, in all its sets, as of the moment when it was opened.

    May be asked by many threads. It reads the same rows whatever is committed, compacted or collected meanwhile; an
    image that is committed later is not found. Memory: some 20 bytes an image of these sets.

    Parameters
    ----------
    store
        An open store; stays open as long as this is used.
    contract
        Base contract that the features must have.
    columns
        What is read, side by side in this order; an image counts when it has them all.
    """

    def __init__(self, store: FeatureStore, contract: Contract, columns: Sequence[Column]) -> None:
        self._store, self._contract, self._columns = store, contract, tuple(columns)
        with store.snapshot() as db:
            sets = [(int(row[0]), str(row[1])) for row in db.execute("SELECT id, name FROM sets ORDER BY id")]
        found = [_Part.open(self, set_id, name) for set_id, name in sets]
        self._parts = [part for part in found if part is not None]

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets that have features of this contract."""
        return tuple(part.name for part in self._parts)

    def __len__(self) -> int:
        """Give the number of contents; one that two sets hold counts twice."""
        return sum(part.ids.size for part in self._parts)

    def has(self, content: bytes) -> bool:
        """Say whether an image of this sha256 digest has all columns."""
        return self.find([content])[0] is not None

    def find(self, contents: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """Give where the features of contents lie, for ``read``; None where there are none."""
        if not self._parts:
            return [None] * len(contents)
        with self._store.snapshot() as db:
            known = find_contents(db, contents)
        return [self._place(known.get(content)) for content in contents]

    def find_unread(self, images: Sequence[SourceImage]) -> list[tuple[int, int] | None]:
        """Give where the features of files lie that are as they were when they were extracted, by size and times.

        Only files below the folder that a set was extracted from can be known so, and none whose times were too fresh
        to be trusted then. No file is read.
        """
        found: list[tuple[int, int] | None] = [None] * len(images)
        for part in self._parts:
            if part.root is not None:
                with self._store.snapshot() as db:
                    for at, image in enumerate(images):
                        if found[at] is None:
                            found[at] = self._place(part.content_of(db, image))
        return found

    def read(self, places: Sequence[tuple[int, int]]) -> np.ndarray:
        """Read rows that ``find`` gave: ``(k, D)`` float32, new, in their order."""
        width = sum(column.width for column in self._columns)
        X = np.empty((len(places), width), np.float32)
        which = np.array([part for part, _ in places], np.int64)
        rows = np.array([row for _, row in places], np.int64)
        for number, part in enumerate(self._parts):
            ours = which == number
            if ours.any():
                X[ours] = part.array[rows[ours]]
        return X

    def _place(self, content_id: int | None) -> tuple[int, int] | None:
        if content_id is None:
            return None
        for number, part in enumerate(self._parts):
            row = int(np.searchsorted(part.ids, content_id))
            if row < part.ids.size and part.ids[row] == content_id:
                return number, row
        return None

    def close(self) -> None:
        """Let go of the segments."""
        for part in self._parts:
            part.array.close()
        self._parts = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Part:
    """The features of one set."""

    def __init__(self, set_id: int, name: str, root: Path | None, ids: np.ndarray, array: FeatureArray) -> None:
        self.set_id, self.name, self.root, self.ids, self.array = set_id, name, root, ids, array

    @classmethod
    def open(cls, asked: StoredFeatures, set_id: int, name: str) -> Self | None:
        store, columns = asked._store, asked._columns  # noqa: SLF001  (of the class above)
        with store.snapshot() as db:
            generation = find_generation(db, set_id, asked._contract)  # noqa: SLF001
            known = {} if generation is None else columns_of(db, generation.id)
            if generation is None or not all(column in known for column in columns):
                return None
            row_of_columns = [known[column] for column in columns]

        def locate(db: sqlite3.Connection) -> Located:
            flags = load_held(db, generation.id, row_of_columns).flags((1 << len(columns)) - 1)
            ids = np.frombuffer(flags, np.uint8).nonzero()[0].astype(np.int64)
            as_of = int(db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()[0])
            found = [
                reading.locate(db, store.path, ids, column, row, as_of)[0]
                for column, row in zip(columns, row_of_columns, strict=True)
            ]
            return Located(found, set_id, as_of, [], ids, np.ones(ids.size, dtype=bool))

        located: list[Located] = []

        def remember(db: sqlite3.Connection) -> Located:
            located[:] = [locate(db)]
            return located[0]

        array = open_located(store.snapshot, remember, dtype=np.float32)
        source = generation.source
        root = None if source.get("manifest") or not source.get("folder") else Path(str(source["folder"]))
        return cls(set_id, name, root, located[0].contents, array)

    def content_of(self, db: sqlite3.Connection, image: SourceImage) -> int | None:
        """Give the content of a file that is as the catalog knows it."""
        assert self.root is not None
        path = image.path.absolute()
        if not path.is_relative_to(self.root):
            return None
        key = str(path.relative_to(self.root)).encode("utf-8", "surrogateescape")
        row = db.execute(
            "SELECT content_id FROM images WHERE set_id = ? AND id = ? AND removed_in IS NULL "
            "AND size = ? AND mtime_ns = ? AND ctime_ns = ? AND racy = 0",
            (self.set_id, key, image.size, image.mtime_ns, image.ctime_ns),
        ).fetchone()
        return None if row is None else int(row[0])
