"""Walk an image folder and say what is there, without reading any file."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import SourceError

__all__ = ["IMAGE_EXTENSIONS", "Scan", "SourceImage", "decode_id", "encode_id", "scan_folder"]

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""File name endings taken for images, compared in lower case."""


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


@dataclass(frozen=True)
class Scan:
    """What stood in a source folder at one moment."""

    images: tuple[SourceImage, ...]
    """regular files that look like images, ordered by id bytes"""
    broken: tuple[tuple[SourceImage, str], ...]
    """names that look like images but lead nowhere, each with the reason"""
    ignored: int
    """files passed over for their ending, and hidden ones"""
    started_ns: int
    """clock before the first file was looked at, nanoseconds since 1970"""


def scan_folder(root: Path | str, *, extensions: Iterable[str] = IMAGE_EXTENSIONS) -> Scan:
    """List the images below a folder, following symbolic links but never in a circle.

    Names that begin with a dot are passed over. The order does not depend on the file system.

    Raises
    ------
    SourceError
        When the folder is missing, holds no image, or a folder below it cannot be listed: images that cannot
        be seen must not be taken for deleted ones.
    """
    root = Path(root)
    started = time.time_ns()
    if not root.is_dir():
        raise SourceError(f"{root}: no such image folder")
    walk = _Walk(frozenset(e.lower() for e in extensions))
    images, broken = [], []
    for image, trouble in walk.folder(root, "", ()):
        if trouble:
            broken.append((image, trouble))
        else:
            images.append(image)
    if not images and not broken:
        endings = ", ".join(sorted(walk.extensions))
        raise SourceError(f"{root}: no images ({walk.ignored} other files; looked for {endings})")
    images.sort(key=lambda image: image.key)
    broken.sort(key=lambda pair: pair[0].key)
    return Scan(tuple(images), tuple(broken), walk.ignored, started)


def encode_id(image_id: str) -> bytes:
    """Give an id as stored: UTF-8, surrogates back to the bytes they stand for."""
    return image_id.encode("utf-8", "surrogateescape")


def decode_id(key: bytes) -> str:
    """Give a stored id as text: what ``encode_id`` undoes."""
    return key.decode("utf-8", "surrogateescape")


class _Walk:
    """One walk: what to look for, and how many files were passed over."""

    def __init__(self, extensions: frozenset[str]) -> None:
        self.extensions = extensions
        self.ignored = 0

    def folder(
        self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[SourceImage, str]]:
        """Yield (image, trouble) for each name below a folder; trouble is empty for a good one."""
        try:
            here = _identity(os.stat(folder))  # noqa: PTH116  (one call a folder, on a str-cheap path)
            entries = list(os.scandir(folder))
        except OSError as exc:
            raise SourceError(f"{folder}: cannot be listed ({exc.strerror}); nothing was changed") from exc
        for entry in entries:
            if entry.name.startswith("."):
                self.ignored += 1
            else:
                yield from self._entry(entry, prefix + entry.name, (*above, here))

    def _entry(
        self, entry: os.DirEntry[str], name: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[SourceImage, str]]:
        looks_like_image = os.path.splitext(name)[1].lower() in self.extensions  # noqa: PTH122  (hot loop)
        try:
            found = entry.stat()
        except OSError as exc:
            if looks_like_image:
                yield _image(entry, name, entry.stat(follow_symlinks=False)), _link_trouble(exc)
            else:
                self.ignored += 1
            return
        if stat.S_ISDIR(found.st_mode):
            if _identity(found) in above:
                yield (
                    _image(entry, name, entry.stat(follow_symlinks=False)),
                    "symbolic link to a folder above it",
                )
            else:
                yield from self.folder(Path(entry.path), name + "/", above)
        elif not looks_like_image:
            self.ignored += 1
        else:
            yield _image(entry, name, found), "" if stat.S_ISREG(found.st_mode) else "not a regular file"


def _image(entry: os.DirEntry[str], name: str, found: os.stat_result) -> SourceImage:
    return SourceImage(name, Path(entry.path), found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _link_trouble(exc: OSError) -> str:
    return "symbolic link that leads nowhere" if isinstance(exc, FileNotFoundError) else f"{exc.strerror}"
