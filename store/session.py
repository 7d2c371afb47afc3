"""Hold a store for writing: the lock, a swept folder, the catalog; and leave the catalog whole."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from . import catalog
from .disk_errors import disk_errors
from .errors import StoreError
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
    DiskError
        When the folder cannot be written to.
    """
    with writer_lock(folder, command=command), closing(catalog.connect(folder, write=True)) as db:
        with disk_errors(folder):
            swept = sweep(folder, db)
        if swept:
            log.warning("%s: swept %d files, left by a run that was cut off", folder, swept)
        try:
            yield db
            with _put_off(folder):
                refresh_summaries(db)
        finally:
            with _put_off(folder):
                _withdraw(folder, db)
                catalog.empty_log(db)


def _withdraw(folder: Path, db: sqlite3.Connection) -> None:
    """Take away what was announced and not committed."""
    if db.execute("SELECT 1 FROM intents LIMIT 1").fetchone():
        # A COMMIT that failed may stand in the log whole, and come to life if the machine dies now: write over it
        # before files go that it would name.
        with catalog.transaction(db):
            db.execute("UPDATE intents SET path = path")
        sweep(folder, db)


@contextmanager
def _put_off(folder: Path) -> Iterator[None]:
    """Leave to the next run what tidies up: what the run itself did is done, or has told why not."""
    try:
        yield
    except (StoreError, sqlite3.OperationalError, OSError) as exc:
        log.warning("%s: not tidied up, the next run will (%s)", folder, exc)
