"""The images of a prediction: files, folders, manifests and lists on stdin, in the order given, in bounded memory."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from icecore.store import Scan, SourceError, SourceImage, scan_source

__all__ = ["ImageList", "Listed", "is_text", "listed_images", "source_image"]

MANIFESTS = {".csv", ".parquet"}


class Listed(NamedTuple):
    """One image to predict."""

    path: bytes
    """where it is, as it was named: relative to the working directory or absolute"""
    id: bytes
    """what a manifest calls it; empty elsewhere"""
    size: int
    """bytes; 0 where the file could not be looked at"""
    mtime_ns: int
    """last change of its content"""
    ctime_ns: int
    """last change of content or metadata"""


class ImageList:
    """Images, spooled to a temporary table of an SQLite database, which deletes it with its connection."""

    def __init__(self, db: sqlite3.Connection, images: Iterable[Listed]) -> None:
        self._db = db
        db.execute("PRAGMA temp_store = FILE")
        db.execute(
            "CREATE TEMP TABLE wanted (number INTEGER PRIMARY KEY, path BLOB, id BLOB, size INT, mtime INT, ctime INT)"
        )
        with db:
            db.executemany("INSERT INTO wanted(path, id, size, mtime, ctime) VALUES (?, ?, ?, ?, ?)", images)
        self.has_ids = bool(db.execute("SELECT EXISTS (SELECT 1 FROM wanted WHERE id != x'')").fetchone()[0])
        """whether any image has a name of its own"""
        self.count = int(db.execute("SELECT count(*) FROM wanted").fetchone()[0])

    @property
    def different(self) -> int:
        """Number of different paths."""
        return int(self._db.execute("SELECT count(DISTINCT path) FROM wanted").fetchone()[0])

    def is_text(self) -> bool:
        """Say whether every path and name is UTF-8."""
        return is_text(self._db.execute("SELECT path, id FROM wanted"))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Listed]:
        yield from map(
            Listed._make, self._db.execute("SELECT path, id, size, mtime, ctime FROM wanted ORDER BY number")
        )


def is_text(rows: Iterable[Iterable[bytes]]) -> bool:
    """Say whether all values of all rows are UTF-8."""
    try:
        for row in rows:
            for value in row:
                value.decode()
    except UnicodeDecodeError:
        return False
    return True


def source_image(listed: Listed) -> SourceImage:
    """Give an image as extraction takes it."""
    path = os.fsdecode(listed.path)
    return SourceImage(path, Path(path), listed.size, listed.mtime_ns, listed.ctime_ns)


def listed_images(sources: Iterable[str], *, stdin: IO[bytes], null: bool = False) -> Iterator[Listed]:
    """Give the images that sources name, in their order.

    Parameters
    ----------
    sources
        Each an image file; a folder, for all images below it; a manifest, which ends in ``.csv`` or ``.parquet``; or
        ``-`` for paths on stdin, one a line.
    stdin
        Read where ``-`` is named.
    null
        Paths on stdin end with a NUL byte instead, as ``find -print0`` writes them.

    Raises
    ------
    SourceError
        As ``scan_source``; or when stdin names nothing.
    """
    for source in sources:
        path = Path(source)
        if source == "-":
            yield from _from_stdin(stdin, b"\0" if null else b"\n")
        elif path.is_dir() or path.suffix.lower() in MANIFESTS:
            yield from _from_scan(scan_source(path))
        else:
            yield _look_at(os.fsencode(source))


def _from_scan(scan: Scan) -> Iterator[Listed]:
    named = scan.manifest is not None
    for key, size, mtime, ctime, _ in scan:
        path = os.fsencode(scan.image(key, size, mtime, ctime).path)
        yield Listed(path, key if named else b"", size, mtime, ctime)


def _from_stdin(stdin: IO[bytes], end: bytes) -> Iterator[Listed]:
    found = 0
    for path in _split(stdin, end):
        if path:
            found += 1
            yield _look_at(path)
    if not found:
        raise SourceError("stdin: names no images; give one path a line, or with -0 NUL after each")


def _split(stdin: IO[bytes], end: bytes) -> Iterator[bytes]:
    rest = b""
    while block := stdin.read(1 << 16):
        *whole, rest = (rest + block).split(end)
        yield from whole
    yield rest


def _look_at(path: bytes) -> Listed:
    if b"\0" in path:
        raise SourceError(f"path {os.fsdecode(path[:60])!r}: a NUL byte is not allowed; with -0 it ends each path")
    try:
        found = os.stat(path)  # noqa: PTH116  (bytes, not a Path)
    except OSError:  # reading it tells why
        return Listed(path, b"", 0, 0, 0)
    return Listed(path, b"", found.st_size, found.st_mtime_ns, found.st_ctime_ns)
