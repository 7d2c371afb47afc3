"""Open and look at files whose path is longer than the system takes in one piece (4,096 bytes on Linux).

An image id may have that length by itself, and the folder that it lies in comes on top. Such a path is walked in
pieces, each relative to the folder that the one before has opened; where a system cannot do that, its refusal stands.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["listed", "open_path", "stat_path"]

PIECE = 1000
"""Bytes of a piece: below the limit of every system."""

_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_PASSING = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)  # to go through a folder one need not be allowed to list it
T = TypeVar("T")


def open_path(path: bytes, flags: int) -> int:
    """Give a file descriptor, as ``os.open`` does."""
    try:
        return os.open(path, flags)
    except OSError as exc:
        _require_too_long(path, exc)
    return _in_pieces(path, lambda name, folder: os.open(name, flags, dir_fd=folder))


def stat_path(path: bytes, *, follow_symlinks: bool = True) -> os.stat_result:
    """Look at a file, as ``os.stat`` does."""
    try:
        return os.stat(path, follow_symlinks=follow_symlinks)  # noqa: PTH116  (bytes, not a Path)
    except OSError as exc:
        _require_too_long(path, exc)
    return _in_pieces(path, lambda name, folder: os.stat(name, dir_fd=folder, follow_symlinks=follow_symlinks))


@contextmanager
def listed(folder: bytes) -> Iterator[Iterator[os.DirEntry[Any]]]:
    """Give the entries of a folder, as ``os.scandir`` does; their names may be text; of use within the block."""
    try:
        entries: Any = os.scandir(folder)
    except OSError as exc:
        if exc.errno != errno.ENAMETOOLONG:
            raise
        descriptor = open_path(folder, _FOLDER | os.O_RDONLY)
        try:
            with os.scandir(descriptor) as found:
                yield found
        finally:
            os.close(descriptor)
        return
    with entries:
        yield entries


def _require_too_long(path: bytes, exc: OSError) -> None:
    """Raise the error again where the length of the path is not what is wrong, or pieces are of no help."""
    if exc.errno != errno.ENAMETOOLONG or len(path) <= PIECE or os.open not in os.supports_dir_fd:
        raise exc


def _in_pieces(path: bytes, do: Callable[[bytes, int | None], T]) -> T:
    """Call ``do`` with the last piece of a path and the folder that it is in."""
    *folders, name = _pieces(path)
    descriptor: int | None = None
    try:
        for folder in folders:
            below = os.open(folder, _PASSING, dir_fd=descriptor)
            if descriptor is not None:
                os.close(descriptor)
            descriptor = below
        return do(name, descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _pieces(path: bytes) -> Iterator[bytes]:
    """Cut a path at slashes into pieces; a single name that is too long stays whole, and is refused as ever."""
    while len(path) > PIECE and (cut := path.rfind(b"/", 1, PIECE)) > 0:
        yield path[:cut]
        path = path[cut:].lstrip(b"/")
    yield path
