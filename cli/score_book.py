"""What was scored for an output file: so that the next run scores only what is new, and a killed one goes on.

``OUT.state/`` beside it holds ``rows.sqlite``: for each image the size and times of its file, its sha256 and its
numbers, under one bundle. The output file is written from it in one piece at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from icecore.store import RefusedError
from icecore.store.disk_errors import disk_errors, sqlite_errors
from icecore.store.durable import make_folder
from icecore.store.lock import writer_lock
from icecore.store.scan import RACY_NS

from .image_lists import ImageList, Listed, is_text
from .score_files import Scored

__all__ = ["WRITTEN", "Prediction", "ScoreBook", "open_book"]

FORMAT = 1
WRITTEN = "written"
"""Fact that says what the output file tells; gone while it tells less than the rows."""
SECONDS = 2.0
"""Most time of scoring that a kill costs."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    path BLOB PRIMARY KEY, id BLOB NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
    racy INTEGER NOT NULL, content BLOB, outputs BLOB, kind TEXT NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS rows_by_content ON rows(content) WHERE outputs IS NOT NULL;
"""
_TO_DO = """
SELECT min(w.number) FROM wanted w LEFT JOIN rows r ON r.path = w.path
WHERE r.path IS NULL OR r.racy OR r.kind IN ('read', 'transient') OR r.size != w.size OR r.mtime != w.mtime
   OR r.ctime != w.ctime
GROUP BY w.path
"""
"""Images without a row that can be trusted; what the file system refused is tried by every run."""


class Prediction(NamedTuple):
    """One row of an output, before it is put into words."""

    path: bytes
    """the image, as it was named"""
    id: bytes
    """what a manifest calls it, else empty"""
    outputs: np.ndarray | None
    """(k,) float64; None where it failed"""
    error: str
    """why there are no numbers: reason and kind; else empty"""


class ScoreBook:
    """The record of one output file. Made by ``open_book``."""

    def __init__(self, folder: Path, db: sqlite3.Connection) -> None:
        self.folder, self._db, self._lock = folder, db, threading.Lock()
        self._waiting: list[tuple[Any, ...]] = []
        self._since = time.monotonic()
        self._racy_from = time.time_ns() - RACY_NS
        self.anew = ""
        """why everything is scored anew; empty where what was scored before counts"""
        self.waiting = 0
        """images that are to be scored"""

    def list_images(self, images: Iterable[Listed]) -> ImageList:
        """Take in the images that are asked for."""
        with _told(self.folder):
            found = ImageList(self._db, images)
            self._db.execute("CREATE INDEX temp.wanted_by_path ON wanted(path)")
            self._db.execute("CREATE TEMP TABLE todo (number INTEGER PRIMARY KEY)")
            self.refresh()
            return found

    def refresh(self) -> None:
        """Find out which images are to be scored, and count them in ``waiting``."""
        with _told(self.folder):
            self.flush()
            with self._db:
                self._db.execute("DELETE FROM todo")
                self._db.execute(f"INSERT INTO todo {_TO_DO}")
            self.waiting = int(self._db.execute("SELECT count(*) FROM todo").fetchone()[0])

    def todo(self) -> Iterator[Listed]:
        """Give the images that are to be scored, as ``refresh`` found them."""
        last = 0
        while True:
            with self._lock:
                some = self._db.execute(
                    "SELECT w.number, w.path, w.id, w.size, w.mtime, w.ctime FROM todo t JOIN wanted w USING (number) "
                    "WHERE t.number > ? ORDER BY t.number LIMIT 1000",
                    (last,),
                ).fetchall()
            if not some:
                return
            yield from (Listed(*row[1:]) for row in some)
            last = some[-1][0]

    def recall(self, content: bytes) -> np.ndarray | None:
        """Give the numbers of a content that was scored; may be called by any thread."""
        with self._lock:
            row = self._db.execute(
                "SELECT outputs FROM rows WHERE content = ? AND outputs IS NOT NULL LIMIT 1", (content,)
            ).fetchone()
        return None if row is None else np.frombuffer(row[0], "<f8")

    def add(self, scored: Scored) -> None:
        """Record what became of an image, whose id is its path; durable within two seconds."""
        image = scored.image
        path = os.fsencode(image.id)
        racy = max(image.mtime_ns, image.ctime_ns) >= self._racy_from
        outputs = None if scored.outputs is None else scored.outputs.astype("<f8").tobytes()
        file = (image.size, image.mtime_ns, image.ctime_ns, int(racy))
        self._waiting.append((path, path, *file, scored.content, outputs, scored.kind, scored.reason))
        if time.monotonic() - self._since > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make durable what was recorded."""
        if not self._waiting:
            return
        with _told(self.folder), self._lock, self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO rows VALUES "
                "(?, (SELECT id FROM wanted WHERE path = ? LIMIT 1), ?, ?, ?, ?, ?, ?, ?, ?)",
                self._waiting,
            )
            # until the file is written from these rows: a kill between must not leave it for up to date
            self._db.execute("DELETE FROM facts WHERE key = ?", (WRITTEN,))
        self._waiting.clear()
        self._since = time.monotonic()

    def is_empty(self) -> bool:
        """Say whether no image has a row."""
        return not self._db.execute("SELECT EXISTS (SELECT 1 FROM rows)").fetchone()[0]

    def prune(self) -> int:
        """Forget images that are no longer asked for; give their number."""
        with _told(self.folder), self._db:
            return self._db.execute("DELETE FROM rows WHERE path NOT IN (SELECT path FROM wanted)").rowcount

    def rows(self, *, gone: bool) -> Iterator[Prediction]:
        """Give a row for each image asked for, in their order; ``gone``: then those of earlier runs, by their paths."""
        found = self._db.execute(
            "SELECT w.path, w.id, r.outputs, r.kind, r.reason FROM wanted w JOIN rows r USING (path) ORDER BY w.number"
        )
        yield from map(_prediction, found)
        if gone:
            yield from map(
                _prediction,
                self._db.execute(
                    "SELECT path, id, outputs, kind, reason FROM rows "
                    "WHERE path NOT IN (SELECT path FROM wanted) ORDER BY path"
                ),
            )

    def digest(self, *, gone: bool) -> str:
        """Give a checksum of the paths and names that ``rows`` gives, and their order."""
        total = hashlib.sha256(b"gone" if gone else b"")
        for path, image_id in self._db.execute("SELECT path, id FROM wanted ORDER BY number"):
            total.update(len(path).to_bytes(4) + path + len(image_id).to_bytes(4) + image_id)
        return total.hexdigest()

    def is_text(self) -> bool:
        """Say whether every path and name is UTF-8."""
        return is_text(self._db.execute("SELECT path, id FROM rows UNION ALL SELECT path, id FROM wanted"))

    def read(self, key: str) -> Any:
        """Give a fact that was kept; None where there is none."""
        row = self._db.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep(self, key: str, value: Any) -> None:
        """Keep a fact, a plain JSON value."""
        with _told(self.folder), self._db:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(value)))

    def begin(self, key: dict[str, str], *, anew: bool) -> None:
        """Forget all rows where they are of another bundle, or that is asked for."""
        before = self.read("key")
        count = int(self._db.execute("SELECT count(*) FROM rows").fetchone()[0])
        if anew and count:
            self.anew = "as asked"
        elif before is not None and before["card"] != key["card"] and count:
            self.anew = f"the bundle is {key['bundle']}, and was {before['bundle']}"
        with _told(self.folder), self._db:
            if self.anew:
                self._db.execute("DELETE FROM rows")
            self._db.execute("INSERT OR REPLACE INTO facts VALUES ('key', ?)", (json.dumps(key),))


@contextmanager
def open_book(out: Path, key: dict[str, str], *, anew: bool = False, command: str = "") -> Iterator[ScoreBook]:
    """Open the record of an output file, or begin it; one run at a time.

    Parameters
    ----------
    out
        The output file.
    key
        ``bundle``: its name; ``card``: the checksum of its card. What another bundle gave is forgotten.
    anew
        Forget everything.
    command
        Told to who finds the record locked.

    Raises
    ------
    LockedError
        When another run writes this output.
    RefusedError
        When the record is damaged, or of a later release.
    DiskError
        When it cannot be written.
    """
    folder = out.with_name(f"{out.name}.state")
    is_new, leave = not folder.exists(), True
    with _told(folder):
        make_folder(folder)
    try:
        with writer_lock(folder, command=command), closing(_connect(folder, anew=anew)) as db:
            book = ScoreBook(folder, db)
            with _told(folder):
                book.begin(key, anew=anew)
            try:
                yield book
            finally:
                book.flush()
                leave = not (is_new and book.is_empty())
    finally:
        if not leave:  # it failed before the first image
            shutil.rmtree(folder, ignore_errors=True)


def _connect(folder: Path, *, anew: bool) -> sqlite3.Connection:
    path = folder / "rows.sqlite"
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        with _told(folder):
            _prepare(folder, db)
    except BaseException as exc:
        db.close()
        if not (anew and isinstance(exc, RefusedError)):
            raise
        for file in folder.glob("rows.sqlite*"):
            file.unlink()
        return _connect(folder, anew=False)
    return db


def _prepare(folder: Path, db: sqlite3.Connection) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, FORMAT):
        raise RefusedError(f"{folder}: of format {version}, and this release knows {FORMAT}; upgrade, or give --all")
    db.execute("PRAGMA synchronous = NORMAL")
    db.executescript(f"{_SCHEMA} PRAGMA user_version = {FORMAT};")


def _prediction(row: tuple[Any, ...]) -> Prediction:
    path, image_id, outputs, kind, reason = row
    numbers = None if outputs is None else np.frombuffer(outputs, "<f8")
    return Prediction(path, image_id, numbers, f"{reason} ({kind})" if kind else "")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Say of a fault of the record what it is and what helps."""
    try:
        with disk_errors(folder), sqlite_errors(folder / "rows.sqlite"):
            yield
    except sqlite3.DatabaseError as exc:
        raise RefusedError(
            f"{folder}: the record of what was scored is damaged ({exc}); score all anew with --all"
        ) from exc
