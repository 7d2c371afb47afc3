"""What the system refuses, told as a DiskError: where, what and the cure, whoever met it first."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import DiskError, StoreError

__all__ = ["disk_errors", "sqlite_errors"]

_NUMBERS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR_SHMSIZE: errno.ENOSPC,  # no room for the 32 KiB of shared memory that readers need, too
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_NOMEM: errno.ENOMEM,
}
"""What SQLite says, and the ``errno`` that comes nearest."""


@contextmanager
def disk_errors(path: object) -> Iterator[None]:
    """Raise what the system refuses inside the block as a DiskError that names the file, or ``path``."""
    try:
        yield
    except StoreError:
        raise
    except OSError as exc:
        raise DiskError(exc.filename or path, exc.errno, exc.strerror or str(exc)) from exc


@contextmanager
def sqlite_errors(path: object) -> Iterator[None]:
    """Raise as a DiskError what SQLite cannot do because the system refuses, in whatever file ``path`` names."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        code = getattr(exc, "sqlite_errorcode", 0)
        number = _NUMBERS.get(code, _NUMBERS.get(code & 0xFF))
        if number is None:
            raise
        raise DiskError(path, number, f"{exc} ({exc.sqlite_errorname})") from exc
