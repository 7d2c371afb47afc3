"""Read one image file once: its bytes, their sha256, and the file status that describes exactly these bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import replace
from typing import NamedTuple

from icecore.store import SourceImage
from icecore.store.long_paths import open_path

from .errors import ImageError

__all__ = ["FileBytes", "read_image_file"]

MAX_BYTES = 1 << 29
"""largest file that is read, 512 MiB: more than any image within the pixel limit needs"""

_TRIES = 3
# What a disk, a network share or this process may say for a while; absent names are another system's.
_TRANSIENT = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EINTR", "EIO", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
        *("ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH"),
        *("ENOTCONN", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)
# O_NONBLOCK: a named pipe called photo.jpg must not stop the job; both flags are absent on some systems.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class FileBytes(NamedTuple):
    """What a file held at one moment."""

    image: SourceImage
    """the image asked for, with the size and times of the file as it was read"""
    data: bytes
    """its contents"""
    digest: bytes
    """their sha256, 32 bytes"""


def read_image_file(image: SourceImage) -> FileBytes:
    """Read a file whole, again when it changes meanwhile.

    Raises
    ------
    ImageError
        Of kind ``read`` when the file system refuses or the file is not a regular one; ``transient`` when the
        disk does not answer or the file changes again and again; ``too-large`` above 512 MiB.
    """
    try:
        for _ in range(_TRIES):
            before, data, after = _read(image)
            if _signature(before) == _signature(after) and len(data) == after.st_size:
                fresh = replace(image, size=after.st_size, mtime_ns=after.st_mtime_ns, ctime_ns=after.st_ctime_ns)
                return FileBytes(fresh, data, hashlib.sha256(data).digest())
    except OSError as exc:
        raise ImageError("transient" if exc.errno in _TRANSIENT else "read", _words(exc)) from exc
    raise ImageError("transient", "file changes while being read")


def _read(image: SourceImage) -> tuple[os.stat_result, bytes, os.stat_result]:
    with os.fdopen(open_path(os.fsencode(image.path), _FLAGS), "rb") as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise ImageError("read", "not a regular file")
        if before.st_size > MAX_BYTES:
            raise ImageError("too-large", f"{before.st_size:,} bytes, the limit is {MAX_BYTES:,}")
        data = file.read(before.st_size + 1)  # one more: a file that grew is told by its length
        return before, data, os.fstat(file.fileno())


def _signature(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _words(exc: OSError) -> str:
    return type(exc).__name__ if exc.errno is None else os.strerror(exc.errno)
