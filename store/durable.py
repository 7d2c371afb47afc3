"""Files that appear whole or not at all, and stay after a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["fsync_file", "fsync_folder", "make_folder", "publish", "publish_folder", "write_bytes"]


def publish(temporary: Path, final: Path) -> None:
    """Give a finished temporary file its name: fsync, rename, fsync of the folder."""
    fsync_file(temporary)
    temporary.replace(final)
    fsync_folder(final.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Give a finished temporary folder of files its name: fsync of each, rename, fsync of the folder above."""
    for file in temporary.iterdir():
        fsync_file(file)
    fsync_folder(temporary)
    temporary.rename(final)
    fsync_folder(final.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file so that readers see the old or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        publish(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and fsync each folder that gained an entry."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_file(path: Path) -> None:
    """Force a file's bytes to disk."""
    _fsync(path, os.O_RDONLY)


def fsync_folder(path: Path) -> None:
    """Force a folder's entries to disk (POSIX; Windows offers no such call and journals them itself)."""
    if os.name == "posix":
        _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
