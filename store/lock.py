"""One writer at a time: an operating-system lock that names its holder.

The lock is released by the system when its holder dies, however it dies, so a dead holder is taken over at once
and a live one never is. Who holds it stands in ``writer.json`` beside the lock, for the message of the refused.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from .disk_errors import disk_errors
from .errors import Holder, LockedError

__all__ = ["is_locked", "read_holder", "writer_lock"]

log = logging.getLogger(__name__)

LOCK, HOLDER = "writer.lock", "writer.json"
PATIENCE = 0.1
"""Seconds that a writer tries: one who only looks whether the lock is held has it for microseconds."""


@contextmanager
def writer_lock(folder: Path, *, command: str = "") -> Iterator[Holder]:
    """Hold the writer's lock of a store for the length of a ``with`` block.

    Raises
    ------
    LockedError
        Within a tenth of a second, naming the holder, when another process or thread holds it.
    DiskError
        When the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK, timeout=PATIENCE, poll_interval=0.01, thread_local=False)
    try:
        with disk_errors(folder / LOCK):
            _acquire(lock, folder)
        holder = Holder(os.getpid(), socket.gethostname(), command or shlex.join(sys.argv), _now())
        _note(folder, holder)
        yield holder
    finally:
        try:
            if lock.is_locked:
                with suppress(OSError):  # a note that stays is of no consequence: it is read beside a held lock only
                    (folder / HOLDER).unlink()
        finally:
            _release(lock)


def is_locked(folder: Path) -> bool:
    """Say whether a writer holds the lock now. Where none does it is shared for an instant; nothing is written."""
    try:
        return not _is_free(folder / LOCK)
    except FileNotFoundError:
        return False  # nobody has ever written


if sys.platform == "win32":

    def _is_free(path: Path) -> bool:
        if not path.exists():
            return True
        try:
            with FileLock(path, timeout=0):
                return True
        except Timeout:
            return False

else:
    import fcntl

    def _is_free(path: Path) -> bool:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True


def read_holder(folder: Path) -> Holder | None:
    """Say who took the lock last; None when nobody has, or when its note is not yet written."""
    try:
        return Holder(**json.loads((folder / HOLDER).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    try:
        lock.acquire()
    except Timeout as exc:
        raise LockedError(folder, read_holder(folder)) from exc


def _release(lock: BaseFileLock) -> None:
    try:
        lock.release()
    except BaseException:
        lock.release(force=True)  # a Ctrl-C may have come before it began: who goes on in this process writes again
        raise


def _note(folder: Path, holder: Holder) -> None:
    """Write down who holds the lock; on a full disk the lock holds all the same, and its holder may free some."""
    temporary = folder / f"{HOLDER}.tmp"  # one name, so that a kill leaves what the next holder replaces
    try:
        temporary.write_bytes(json.dumps(asdict(holder)).encode())
        temporary.replace(folder / HOLDER)
    except OSError as exc:
        log.warning("%s: cannot note who writes (%s)", folder / HOLDER, exc.strerror)
        for stale in (temporary, folder / HOLDER):
            with suppress(OSError):
                stale.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
