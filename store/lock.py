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

__all__ = ["is_locked", "read_holder", "retrain_lock", "writer_lock"]

log = logging.getLogger(__name__)

LOCK, HOLDER = "writer.lock", "writer.json"
RETRAIN_LOCK, RETRAIN_HOLDER = "retrain.lock", "retrain.json"
"""The lock of the retraining of a name, and the note of its holder, in ``models/<name>/``."""
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
    with _held(folder / LOCK, folder / HOLDER, folder, "written", command) as holder:
        yield holder


@contextmanager
def retrain_lock(folder: Path, *, command: str = "") -> Iterator[Holder]:
    """Hold the lock of the retraining of a name for the length of a ``with`` block; nobody else is kept waiting.

    Parameters
    ----------
    folder
        The name's folder, ``models/<name>``, which is there.

    Raises
    ------
    LockedError
        Within a tenth of a second, naming the holder, when another process or thread retrains it.
    DiskError
        When the folder cannot be written to.
    """
    with _held(folder / RETRAIN_LOCK, folder / RETRAIN_HOLDER, folder, "retrained", command) as holder:
        yield holder


@contextmanager
def _held(path: Path, note: Path, folder: Path, doing: str, command: str) -> Iterator[Holder]:
    lock = FileLock(path, timeout=PATIENCE, poll_interval=0.01, thread_local=False)
    try:
        with disk_errors(path):
            _acquire(lock, folder, note, doing)
        holder = Holder(os.getpid(), socket.gethostname(), command or shlex.join(sys.argv), _now())
        _note(note, holder)
        yield holder
    finally:
        try:
            if lock.is_locked:
                with suppress(OSError):  # a note that stays is of no consequence: it is read beside a held lock only
                    note.unlink()
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
    return _read_note(folder / HOLDER)


def _read_note(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _acquire(lock: BaseFileLock, folder: Path, note: Path, doing: str) -> None:
    try:
        lock.acquire()
    except Timeout as exc:
        raise LockedError(folder, _read_note(note), doing) from exc


def _release(lock: BaseFileLock) -> None:
    try:
        lock.release()
    except BaseException:
        lock.release(force=True)  # a Ctrl-C may have come before it began: who goes on in this process writes again
        raise


def _note(path: Path, holder: Holder) -> None:
    """Write down who holds the lock; on a full disk the lock holds all the same, and its holder may free some."""
    temporary = path.with_name(f"{path.name}.tmp")  # one name, so that a kill leaves what the next holder replaces
    try:
        temporary.write_bytes(json.dumps(asdict(holder)).encode())
        temporary.replace(path)
    except OSError as exc:
        log.warning("%s: cannot note who writes (%s)", path, exc.strerror)
        for stale in (temporary, path):
            with suppress(OSError):
                stale.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
