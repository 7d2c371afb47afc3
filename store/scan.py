"""What an image source gives: images in the order of their ids' bytes, described without reading any file.

A folder (``folder``) and a manifest (``manifest``) are both a ``Scan``: walked when it is iterated, in memory that
does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .errors import SourceError

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_ID_BYTES",
    "NOT_THERE",
    "RACY_NS",
    "Found",
    "Scan",
    "SourceImage",
    "decode_id",
    "encode_id",
    "id_fault",
]

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
"""File name endings taken for images, compared in lower case."""

RACY_NS = 2_000_000_000
"""File times this close to the moment of looking may hide a later change: the coarsest file system clock ticks
every two seconds (git's rule for racy timestamps)."""

MAX_ID_BYTES = 4096
"""Longest image id: as long as the longest path that Linux takes in one piece."""

NOT_THERE = (0, 0, 0)
"""Size and times of a file that could not be looked at: nothing is known of it, so nothing that was known ends."""


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image file as the file system describes it."""

    id: str
    """names the image in the set: its path below the source folder, parts joined by ``/``, or what a manifest says;
    bytes that are not UTF-8 are surrogates"""
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

    @property
    def is_there(self) -> bool:
        """Whether the file could be looked at; without that, size and times are zero."""
        return (self.size, self.mtime_ns, self.ctime_ns) != NOT_THERE


Found = tuple[bytes, int, int, int, str]
"""id as bytes, size, mtime_ns, ctime_ns, and why it cannot be read: empty for a regular file"""


class Scan(Protocol):
    """An image source, to be walked once or more; made by ``scan_folder`` or ``scan_manifest``.

    Iterating gives a ``Found`` for each image, ordered by the bytes of its id. It raises SourceError where the source
    cannot be seen as a whole: images that cannot be seen must not be taken for deleted ones.
    """

    root: Path
    """folder that relative paths start from"""
    manifest: Path | None
    """the file that lists the images; None for a folder"""
    extensions: tuple[str, ...]
    """file name endings taken for images, in lower case; empty when all are"""
    ignored: int
    """files passed over in the last walk"""
    started_ns: int
    """clock before the first file of the last walk was looked at, nanoseconds since 1970"""
    ids_are_paths: bool
    """whether an id that leads nowhere may be a folder with images below it, whose disk is away"""

    def __iter__(self) -> Iterator[Found]:
        """Walk."""

    def image(self, key: bytes, size: int, mtime_ns: int, ctime_ns: int) -> SourceImage:
        """Give what was found as an image of this source."""

    def images(self) -> tuple[SourceImage, ...]:
        """Walk, and give the images that can be read, all at once."""
        return tuple(self.image(*found[:4]) for found in self if not found[4])

    def broken(self) -> tuple[tuple[SourceImage, str], ...]:
        """Walk, and give the names that lead nowhere, each with the reason."""
        return tuple((self.image(*found[:4]), found[4]) for found in self if found[4])


def encode_id(image_id: str) -> bytes:
    """Give an id as stored: UTF-8, surrogates back to the bytes they stand for.

    Raises
    ------
    SourceError
        When the id is empty, longer than 4,096 bytes, holds a NUL byte, or a surrogate that stands for no byte.
    """
    try:
        key = image_id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as exc:
        raise SourceError(f"image id {image_id[:60]!r}: {exc.object[exc.start]!r} stands for no byte") from exc
    if fault := id_fault(key):
        raise SourceError(fault)
    return key


def decode_id(key: bytes) -> str:
    """Give a stored id as text: what ``encode_id`` undoes."""
    return key.decode("utf-8", "surrogateescape")


def id_fault(key: bytes) -> str:
    """Say why bytes cannot be an image id; an empty string when they can."""
    if not key:
        return "an image id must not be empty"
    if len(key) > MAX_ID_BYTES:
        start = decode_id(key[:60])
        return f"image id {start!r}... has {len(key):,} bytes, it may have {MAX_ID_BYTES:,} at most"
    return f"image id {decode_id(key[:60])!r}: a NUL byte is not allowed" if b"\0" in key else ""
