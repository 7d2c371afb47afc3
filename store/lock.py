"""One writer at a time: an operating-system lock that names its holder.

The lock is released by the system when its holder dies, however it dies, so a dead holder is taken over at once
and a live one never is. Who holds it stands in ``writer.json`` beside the lock, for the message of the refused.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .durable import write_bytes
from .errors import Holder, LockedError

__all__ = ["read_holder", "writer_lock"]

LOCK, HOLDER = "writer.lock", "writer.json"


@contextmanager
def writer_lock(folder: Path, *, command: str = "") -> Iterator[Holder]:
    """Hold the writer's lock of a store for the length of a ``with`` block.

    Raises
    ------
    LockedError
        At once, naming the holder, when another process or thread holds it.
    """
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout as exc:
        raise LockedError(folder, read_holder(folder)) from exc
    try:
        holder = Holder(os.getpid(), socket.gethostname(), command or shlex.join(sys.argv), _now())
        write_bytes(folder / HOLDER, json.dumps(asdict(holder)).encode())
        yield holder
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def read_holder(folder: Path) -> Holder | None:
    """Say who took the lock last; None when nobody has, or when its note is not yet written."""
    try:
        return Holder(**json.loads((folder / HOLDER).read_bytes()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
