"""Hold a store for writing: the lock, a swept folder, the catalog; and leave the catalog whole."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from . import catalog
from .lock import writer_lock
from .registry import sweep
from .summary import refresh_summaries

__all__ = ["writing"]

log = logging.getLogger(__name__)


@contextmanager
def writing(folder: Path, *, command: str = "") -> Iterator[sqlite3.Connection]:
    """Open the catalog of a store for the length of a ``with`` block as its only writer.

    Raises
    ------
    LockedError
        At once, naming the holder, when another process or thread writes.
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog cannot be opened.
    """
    with writer_lock(folder, command=command), closing(catalog.connect(folder, write=True)) as db:
        if swept := sweep(folder, db):
            log.warning("%s: swept %d files, left by a run that was cut off", folder, swept)
        try:
            yield db
            refresh_summaries(db)
        finally:
            catalog.empty_log(db)
