"""Which contents of a generation were committed: what processes ask that compute beside the writer's own."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from . import catalog
from .commit import find_contents
from .contract import Column
from .errors import GenerationNotFoundError
from .holdings import load_held, load_refused
from .sqlite_file import readable

__all__ = ["CommittedContents"]


class CommittedContents:
    """The contents that had vectors, or refusals, in all of some columns when this was opened; later ones lack.

    Parameters
    ----------
    folder
        The store.
    generation
        Uuid of the generation.
    columns
        Columns that the generation was opened for.
    retries
        Refusals do not count.

    Raises
    ------
    GenerationNotFoundError
        When the store has no such generation.
    StoreNotFoundError, StoreDamagedError, FormatError, DiskError
        As ``FeatureStore.open``.
    """

    def __init__(self, folder: Path, generation: str, columns: Sequence[Column], *, retries: bool = False) -> None:
        self._path = folder / catalog.CATALOG
        self._lock = threading.Lock()
        self._db = catalog.connect(folder)
        try:
            with readable(self._path):
                generation_id = _generation_id(self._db, folder, generation)
                held = catalog.columns_of(self._db, generation_id)
                ids = [held[column] for column in columns]
                self._held = load_held(self._db, generation_id, ids)
                self._refused = None if retries else load_refused(self._db, ids)
        except BaseException:
            self._db.close()
            raise
        self._all = (1 << len(columns)) - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, content: bytes) -> bool:
        """Say whether a content, a sha256 digest of 32 bytes, was there; safe to call from any thread."""
        with self._lock, readable(self._path):
            found = find_contents(self._db, [content]).get(content)
        if found is None:
            return False
        mask = self._held.mask(found) | (self._refused.mask(found) if self._refused is not None else 0)
        return mask == self._all

    def close(self) -> None:
        """Let go of the catalog."""
        with self._lock, closing(self._db):
            pass


def _generation_id(db: sqlite3.Connection, folder: Path, generation: str) -> int:
    row = db.execute("SELECT id FROM generations WHERE uuid = ?", (generation,)).fetchone()
    if row is None:
        raise GenerationNotFoundError(f"{folder}: no generation {generation}")
    return int(row[0])
