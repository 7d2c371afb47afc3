"""Walk an image folder and say what is there, in the order of the ids' bytes, without reading any file.

A scan is walked when it is iterated, one folder's listing in memory at a time: a million files cost little more
than asking the file system for them.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

from .errors import SourceError
from .long_paths import listed, stat_path
from .scan import IMAGE_EXTENSIONS, MAX_ID_BYTES, NOT_THERE, Found, Scan, SourceImage, decode_id, id_fault

__all__ = ["FolderScan", "scan_folder"]

LONGEST_NAME = 1024
"""No system takes a name of as many bytes: it is 255 on Linux, and 255 of UTF-16's units on Windows and macOS."""


class FolderScan(Scan):
    """An image folder, to be walked once or more; made by ``scan_folder``.

    Iterating takes constant memory but for the listing of one folder a level. It raises SourceError where a folder
    cannot be listed, where an id would be too long, and at the end when there was no image at all, or none whose
    file is there.
    """

    ids_are_paths = True
    manifest = None

    def __init__(self, root: Path, extensions: Iterable[str]) -> None:
        self.root = root
        self.extensions = tuple(sorted(extension.lower() for extension in extensions))
        self.ignored = 0
        """files passed over in the last walk, for their ending and hidden ones"""
        self.started_ns = time.time_ns()
        self._base = os.path.join(os.fsencode(root), b"")  # noqa: PTH118  (bytes, not a Path)
        self._endings = tuple(os.fsencode(extension) for extension in self.extensions)

    def __iter__(self) -> Iterator[Found]:
        self.ignored, self.started_ns = 0, time.time_ns()
        images = 0
        walk = self._walk()
        for found in walk:
            images += 1
            yield found
            if found[1:4] != NOT_THERE:
                yield from walk
                return
        if not images:
            endings = ", ".join(self.extensions)
            raise SourceError(f"{self.root}: no images ({self.ignored} other files; looked for {endings})")
        raise SourceError(
            f"{self.root}: all that is in it leads nowhere ({images:,} symbolic links); "
            f"mount what they point to; nothing was changed"
        )

    def image(self, key: bytes, size: int, mtime_ns: int, ctime_ns: int) -> SourceImage:
        """Give what was found as an image of this folder."""
        image_id = decode_id(key)
        return SourceImage(image_id, self.root / image_id, size, mtime_ns, ctime_ns)

    def _walk(self) -> Iterator[Found]:
        base, look = self._base, stat_path
        levels = [(self._listing(b""), _identity(stat_path(self._base)))]
        while levels:
            for key, is_folder in levels[-1][0]:
                try:
                    found = look(base + key)
                except OSError as exc:
                    if (broken := self._broken(key, exc)) is not None:
                        yield broken
                    continue
                if not is_folder:
                    trouble = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
                    yield key, found.st_size, found.st_mtime_ns, found.st_ctime_ns, trouble
                elif any(_identity(found) == above for _, above in levels):
                    link = stat_path(self._base + key[:-1], follow_symlinks=False)
                    trouble = "symbolic link to a folder above it"
                    yield key[:-1], link.st_size, link.st_mtime_ns, link.st_ctime_ns, trouble
                else:
                    levels.append((self._listing(key), _identity(found)))
                    break
            else:
                levels.pop()

    def _listing(self, prefix: bytes) -> Iterator[tuple[bytes, bool]]:
        """List one folder as (id, is a folder), in the order that the ids below it have."""
        found: list[tuple[bytes, bool]] = []
        folder = (self._base + prefix).rstrip(b"/") or b"/"
        endings = self._endings
        try:
            with listed(folder) as entries:
                for entry in entries:
                    name = entry.name if isinstance(entry.name, bytes) else os.fsencode(entry.name)
                    if name.startswith(b"."):
                        self.ignored += 1
                    elif _is_folder(entry):
                        found.append((prefix + name + b"/", True))
                    elif name.lower().endswith(endings) or self._leads_nowhere(entry, prefix + name):
                        # A link without an image's ending that leads nowhere may be a folder whose disk is not there.
                        found.append((prefix + name, False))
                    else:
                        self.ignored += 1
        except FileNotFoundError:
            if not prefix:
                raise SourceError(f"{os.fsdecode(folder)}: vanished while it was being listed") from None
            return iter(())  # a folder deleted since its parent was listed
        except OSError as exc:
            place = os.fsdecode(exc.filename if isinstance(exc.filename, bytes) else folder)
            raise SourceError(f"{place}: cannot be listed ({exc.strerror}); nothing was changed") from exc
        if len(prefix) > MAX_ID_BYTES - LONGEST_NAME:
            self._require_short(key for key, _ in found)
        found.sort(key=itemgetter(0))
        return iter(found)

    def _require_short(self, keys: Iterable[bytes]) -> None:
        """Refuse an id that is too long: the one fault that a name below a folder can have."""
        for key in keys:
            if fault := id_fault(key.removesuffix(b"/")):
                raise SourceError(f"{self.root}: {fault}; shorten its folders' names, or list the images in a manifest")

    def _leads_nowhere(self, entry: os.DirEntry[Any], key: bytes) -> bool:
        if not entry.is_symlink():
            return False
        try:
            stat_path(self._base + key)
        except OSError:
            return True
        return False

    def _broken(self, key: bytes, exc: OSError) -> Found | None:
        """Give a name that leads nowhere with its reason; None for one deleted since its folder was listed."""
        try:
            link = stat_path((self._base + key).rstrip(b"/"), follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as odd:
            place = os.fsdecode(self._base + key)
            raise SourceError(f"{place}: cannot be looked at ({odd.strerror}); nothing was changed") from odd
        if exc.errno == errno.ELOOP:
            return key.removesuffix(b"/"), link.st_size, link.st_mtime_ns, link.st_ctime_ns, f"{exc.strerror}"
        return key.removesuffix(b"/"), *NOT_THERE, _link_trouble(exc)


def scan_folder(root: Path | str, *, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> FolderScan:
    """Give the images below a folder, following symbolic links but never in a circle.

    Names that begin with a dot are passed over. The order does not depend on the file system. The walk itself
    happens when the scan is iterated.

    Raises
    ------
    SourceError
        When the folder is missing, or there is no image in it.
    """
    if not Path(root).is_dir():
        raise SourceError(f"{root}: no such image folder")
    scan = FolderScan(Path(root), extensions)
    next(iter(scan))  # raises when there is none
    return scan


def _is_folder(entry: os.DirEntry[Any]) -> bool:
    try:
        return entry.is_dir()
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return False
        raise  # a link into a disk that does not answer: not to be taken for a deletion


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _link_trouble(exc: OSError) -> str:
    return "symbolic link that leads nowhere" if isinstance(exc, FileNotFoundError) else f"{exc.strerror}"
