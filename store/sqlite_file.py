"""The catalog's file as SQLite opens it: for writing, for reading, and for reading where nothing may be written.

A catalog keeps a log beside it while somebody has it open, and readers share an index of that log, which needs a
folder that can be written. Where this user cannot write the folder, there are two ways: without a log the file is read
as it is, without locks; with one, left by a writer that was cut off or is on a copy, a private copy takes both in. What
is read in these ways does not see later commits, so ``stamp_of`` tells when to open it again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .disk_errors import sqlite_errors
from .errors import StoreDamagedError

__all__ = [
    "CATALOG",
    "Unlocked",
    "copy_of",
    "is_copy",
    "open_file",
    "open_to_read",
    "readable",
    "stamp_of",
]

CATALOG = "catalog.sqlite"
LOG = f"{CATALOG}-wal"
INDEX = f"{CATALOG}-shm"


class Unlocked(sqlite3.Connection):
    """Reads the file as it is, without locks: what another user writes meanwhile is not kept away."""


def open_file(path: Path, mode: str, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """Open a database file: ``ro``, ``rw``, or ``rwc`` to make it; SQLite reads it with the first query."""
    address = f"file:{urllib.parse.quote(bytes(path.resolve()))}?mode={mode}"
    with readable(path):
        return sqlite3.connect(
            address, uri=True, timeout=60, isolation_level=None, check_same_thread=False, factory=factory
        )


def open_to_read(folder: Path) -> sqlite3.Connection:
    """Open the catalog of a store for reading, in the way that its folder allows."""
    if os.access(folder, os.W_OK):
        return open_file(folder / CATALOG, "ro")
    if not _log_size(folder):
        return open_file(folder / CATALOG, "ro&immutable=1", Unlocked)
    if (folder / INDEX).exists():
        return open_file(folder / CATALOG, "ro")
    return _copy_with_log(folder)


def stamp_of(folder: Path, db: sqlite3.Connection) -> tuple[int, ...]:
    """Give what changes when a reader must open the catalog again: its file, and where commits are missed, its state.

    Empty where there is no catalog.
    """
    try:
        found = (folder / CATALOG).stat()
    except FileNotFoundError:
        return ()
    if isinstance(db, Unlocked) or is_copy(db):
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, _log_size(folder)
    return found.st_dev, found.st_ino


def is_copy(db: sqlite3.Connection) -> bool:
    """Say whether a reader holds a private copy, which does not see later commits."""
    return not db.execute("PRAGMA database_list").fetchone()[2]


def copy_of(db: sqlite3.Connection) -> sqlite3.Connection:
    """Give a private copy of a database, which vanishes with its connection."""
    copy = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    db.backup(copy)
    return copy


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell what SQLite cannot read as damage of the store, and what it cannot do now as a DiskError."""
    try:
        with sqlite_errors(path):
            yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:  # the latter where SQLite quotes damaged text
        raise StoreDamagedError(
            f"{path}: not readable as a catalog ({exc}); `icecore store repair` makes it anew from the segments"
        ) from exc


def _log_size(folder: Path) -> int:
    try:
        return (folder / LOG).stat().st_size
    except FileNotFoundError:
        return 0


def _copy_with_log(folder: Path) -> sqlite3.Connection:
    with tempfile.TemporaryDirectory(prefix="icecore-") as place:
        for name in (CATALOG, LOG):
            shutil.copyfile(folder / name, Path(place, name))
        with readable(folder / CATALOG), closing(open_file(Path(place, CATALOG), "rw")) as db:
            return copy_of(db)
