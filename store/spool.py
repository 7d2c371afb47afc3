"""The work of a plan, on disk: what is to be read may be millions of files."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator

from .disk_errors import sqlite_errors
from .scan import Scan, SourceImage

__all__ = ["PlannedImages", "Spool"]

TEMPORARY = "SQLite's temporary files (in SQLITE_TMPDIR, TMPDIR or /var/tmp)"
BATCH = 1000
"""Images written to or read from disk at a time."""


class Spool:
    """Images by a bit mask of the columns that they lack; SQLite deletes the nameless database with its connection."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE work (mask TEXT, n INTEGER PRIMARY KEY, id BLOB, size, mtime_ns, ctime_ns)")
        self._db.execute("BEGIN")
        self._waiting: list[tuple[str, bytes, int, int, int]] = []
        self.counts: Counter[int] = Counter()

    def add(self, mask: int, key: bytes, size: int, mtime_ns: int, ctime_ns: int) -> None:
        """Append an image."""
        self.counts[mask] += 1
        self._waiting.append((hex(mask), key, size, mtime_ns, ctime_ns))
        if len(self._waiting) >= BATCH:
            self._flush()

    def rows(self, mask: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Give the images of a mask in the order they came, as id, size, mtime_ns, ctime_ns."""
        self._flush()
        ask = "SELECT n, id, size, mtime_ns, ctime_ns FROM work WHERE mask = ? AND n > ? ORDER BY n LIMIT ?"
        last = -1
        while True:
            with sqlite_errors(TEMPORARY):  # a batch at a time: no cursor is open while the caller works
                batch = self._db.execute(ask, (hex(mask), last, BATCH)).fetchall()
            if not batch:
                return
            last = batch[-1][0]
            for _, *image in batch:
                yield tuple(image)

    def _flush(self) -> None:
        insert = "INSERT INTO work (mask, id, size, mtime_ns, ctime_ns) VALUES (?, ?, ?, ?, ?)"
        with sqlite_errors(TEMPORARY):
            self._db.executemany(insert, self._waiting)
        self._waiting.clear()

    def __del__(self) -> None:
        self._db.close()


class PlannedImages:
    """The images of one mask; iterate as often as you like, in the order of their ids."""

    def __init__(self, spool: Spool, scan: Scan, mask: int) -> None:
        self._spool, self._scan, self._mask = spool, scan, mask

    def __len__(self) -> int:
        return self._spool.counts[self._mask]

    def __iter__(self) -> Iterator[SourceImage]:
        return (self._scan.image(*row) for row in self._spool.rows(self._mask))
