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
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from .errors import SourceError

__all__ = ["IMAGE_EXTENSIONS", "Found", "Scan", "SourceImage", "decode_id", "encode_id", "scan_folder"]

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""File name endings taken for images, compared in lower case."""


RACY_NS = 2_000_000_000
"""File times this close to the moment of looking may hide a later change: the coarsest file system clock ticks
every two seconds (git's rule for racy timestamps)."""


@dataclass(frozen=True)
class SourceImage:
    """One image file as the file system describes it."""

    id: str
    """path relative to the source folder, parts joined by ``/``; bytes that are not UTF-8 are surrogates"""
    path: Path
    """where to read it"""
    size: int
    """bytes"""
    mtime_ns: int
    """last change of its content, nanoseconds since 1970"""
    ctime_ns: int
    """last change of its content or metadata; unlike mtime it cannot be set back"""

    @property
    def key(self) -> bytes:
        """The id as the file system's own bytes; ids are ordered by this."""
        return encode_id(self.id)


Found = tuple[bytes, int, int, int, str]
"""id as bytes, size, mtime_ns, ctime_ns, and why it cannot be read: empty for a regular file"""


class Scan:
    """An image folder, to be walked once or more; made by ``scan_folder``.

    Iterating gives a ``Found`` for each image, ordered by the bytes of its id, in constant memory but for the
    listing of one folder a level. It raises SourceError where a folder cannot be listed, and at the end when there
    was no image at all: images that cannot be seen must not be taken for deleted ones.
    """

    def __init__(self, root: Path, extensions: Iterable[str]) -> None:
        self.root = root
        self.extensions = tuple(sorted(extension.lower() for extension in extensions))
        self.ignored = 0
        """files passed over in the last walk, for their ending and hidden ones"""
        self.started_ns = time.time_ns()
        """clock before the first file of the last walk was looked at, nanoseconds since 1970"""
        self._endings = tuple(os.fsencode(extension) for extension in self.extensions)

    def __iter__(self) -> Iterator[Found]:
        self.ignored, self.started_ns = 0, time.time_ns()
        images = 0
        root = os.fsencode(self.root)
        levels = [(self._listing(root, b""), _identity(os.stat(root)))]  # noqa: PTH116  (bytes, not a Path)
        while levels:
            for key, entry, is_folder in levels[-1][0]:
                try:
                    found = entry.stat()
                except OSError as exc:
                    if (broken := _broken(key, entry, exc)) is not None:
                        images += 1
                        yield broken
                    continue
                if not is_folder:
                    images += 1
                    trouble = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
                    yield key, found.st_size, found.st_mtime_ns, found.st_ctime_ns, trouble
                elif any(_identity(found) == above for _, above in levels):
                    link = entry.stat(follow_symlinks=False)
                    trouble = "symbolic link to a folder above it"
                    yield key[:-1], link.st_size, link.st_mtime_ns, link.st_ctime_ns, trouble
                else:
                    levels.append((self._listing(entry.path, key), _identity(found)))
                    break
            else:
                levels.pop()
        if not images:
            endings = ", ".join(self.extensions)
            raise SourceError(f"{self.root}: no images ({self.ignored} other files; looked for {endings})")

    def images(self) -> tuple[SourceImage, ...]:
        """Walk, and give the images that can be read, all at once."""
        return tuple(self.image(*found[:4]) for found in self if not found[4])

    def broken(self) -> tuple[tuple[SourceImage, str], ...]:
        """Walk, and give the names that lead nowhere, each with the reason."""
        return tuple((self.image(*found[:4]), found[4]) for found in self if found[4])

    def image(self, key: bytes, size: int, mtime_ns: int, ctime_ns: int) -> SourceImage:
        """Give what was found as an image of this folder."""
        image_id = decode_id(key)
        return SourceImage(image_id, self.root / image_id, size, mtime_ns, ctime_ns)

    def _listing(self, folder: bytes, prefix: bytes) -> Iterator[tuple[bytes, os.DirEntry[bytes], bool]]:
        """List one folder as (id, entry, is a folder), in the order that the ids below it have."""
        entries: list[tuple[bytes, os.DirEntry[bytes], bool]] = []
        try:
            for entry in os.scandir(folder):
                name = entry.name
                if name.startswith(b"."):
                    self.ignored += 1
                elif _is_folder(entry):
                    entries.append((prefix + name + b"/", entry, True))
                elif name.lower().endswith(self._endings) or _leads_nowhere(entry):
                    # A link without an image's ending that leads nowhere may be a folder whose disk is not there.
                    entries.append((prefix + name, entry, False))
                else:
                    self.ignored += 1
        except FileNotFoundError:
            if not prefix:
                raise SourceError(f"{os.fsdecode(folder)}: vanished while it was being listed") from None
            return iter(())  # a folder deleted since its parent was listed
        except OSError as exc:
            place = os.fsdecode(exc.filename or folder)
            raise SourceError(f"{place}: cannot be listed ({exc.strerror}); nothing was changed") from exc
        entries.sort(key=itemgetter(0))
        return iter(entries)


def scan_folder(root: Path | str, *, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> Scan:
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
    scan = Scan(Path(root), extensions)
    next(iter(scan))  # raises when there is none
    return scan


def encode_id(image_id: str) -> bytes:
    """Give an id as stored: UTF-8, surrogates back to the bytes they stand for."""
    return image_id.encode("utf-8", "surrogateescape")


def decode_id(key: bytes) -> str:
    """Give a stored id as text: what ``encode_id`` undoes."""
    return key.decode("utf-8", "surrogateescape")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            return False
        raise  # a link into a disk that does not answer: not to be taken for a deletion


def _leads_nowhere(entry: os.DirEntry[bytes]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110  (bytes, not a Path)


def _broken(key: bytes, entry: os.DirEntry[bytes], exc: OSError) -> Found | None:
    """Give a name that leads nowhere with its reason; None for one deleted since its folder was listed."""
    try:
        link = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return key.removesuffix(b"/"), link.st_size, link.st_mtime_ns, link.st_ctime_ns, _link_trouble(exc)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _link_trouble(exc: OSError) -> str:
    return "symbolic link that leads nowhere" if isinstance(exc, FileNotFoundError) else f"{exc.strerror}"
