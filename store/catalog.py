"""The catalog: one SQLite file that says which rows are alive. Connections, schema and the shared queries.

Readers open it read-only and never block; the writer's transactions are ``BEGIN IMMEDIATE`` with
``synchronous=FULL``, so that a commit that returned survives a power cut.
"""

from __future__ import annotations

import json
import os
import sqlite3
import urllib.parse
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from .contract import Column, Contract
from .errors import FormatError, StoreDamagedError, StoreError, StoreNotFoundError

__all__ = [
    "CATALOG",
    "CATALOG_VERSION",
    "Generation",
    "Head",
    "columns_of",
    "connect",
    "create_catalog",
    "find_generation",
    "generation_by_id",
    "head_of",
    "now",
    "printable",
    "segments_of",
    "set_id_of",
    "transaction",
]

CATALOG = "catalog.sqlite"
CATALOG_VERSION = 1


@dataclass(frozen=True)
class Generation:
    """All features of a set under one base contract."""

    id: int
    """row in the catalog"""
    uuid: str
    """its folder's name, 32 hex digits"""
    contract: Contract
    """the base contract"""
    created: str
    """when it began, ISO 8601, UTC"""
    source: dict[str, object]
    """where images and weights came from"""
    versions: dict[str, str]
    """library versions of the run that began it"""


@dataclass(frozen=True)
class Head:
    """What readers of a set see."""

    version: int
    """the commit that made it so"""
    generation_id: int
    """generation that is read"""
    as_of: int
    """version as of which its rows are alive"""


def create_catalog(folder: Path) -> None:
    """Make an empty catalog in a folder unless it has one.

    Raises
    ------
    StoreDamagedError
        When there are segments but no catalog: a new one would forget them.
    """
    path = folder / CATALOG
    if not path.exists() and next((folder / "segments").rglob("*.h5"), None) is not None:
        raise StoreDamagedError(f"{folder}: {CATALOG} is missing but segments are here; restore it from a back-up")
    with closing(_open(path, "rwc")) as db, _readable(path):
        db.execute("PRAGMA journal_mode=WAL")
        with transaction(db):
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                for statement in (
                    resources.files("icecore.store").joinpath("schema.sql").read_text("utf-8").split(";\n")
                ):
                    db.execute(statement)
                facts = [
                    ("format_version", str(CATALOG_VERSION)),
                    ("store", uuid.uuid4().hex),
                    ("created", now()),
                ]
                db.executemany("INSERT INTO meta VALUES (?, ?)", facts)


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the catalog of a store.

    Raises
    ------
    StoreNotFoundError
        When there is none.
    FormatError
        When it was made by another release in a format that this one does not read.
    StoreDamagedError
        When SQLite cannot read it.
    """
    path = folder / CATALOG
    if not path.is_file():
        raise StoreNotFoundError(folder)
    db = _open(path, "rw" if write else _reading_mode(folder))
    try:
        with _readable(path):
            row = db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()
            if write:
                db.execute("PRAGMA synchronous=FULL")
        if row is None or row[0] != str(CATALOG_VERSION):
            raise FormatError(f"{path}: catalog format {row and row[0]}, this release reads {CATALOG_VERSION}")
    except StoreError:
        db.close()
        raise
    return db


def _reading_mode(folder: Path) -> str:
    """Take the catalog for unchanging where nobody can change it: a read-only folder, and no log to replay."""
    log = folder / f"{CATALOG}-wal"
    frozen = not os.access(folder, os.W_OK) and not (log.exists() and log.stat().st_size)
    return "ro&immutable=1" if frozen else "ro"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Tell what SQLite cannot read as damage of the store, and what it cannot do now by its own name."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc):
            raise StoreDamagedError(f"{path}: holds no catalog ({exc}); `icecore extract` completes a new one") from exc
        raise StoreError(f"{path}: {exc}") from exc
    except sqlite3.DatabaseError as exc:
        raise StoreDamagedError(f"{path}: not readable as a catalog ({exc})") from exc


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction: all of it, or on any exception none."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def set_id_of(db: sqlite3.Connection, name: str) -> int | None:
    """Give the row of a feature set, or None."""
    row = db.execute("SELECT id FROM sets WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def head_of(db: sqlite3.Connection, set_id: int, version: int | None = None) -> Head | None:
    """Give what readers of a set see now, or saw at a version; None before the first commit."""
    row = db.execute(
        "SELECT version, generation_id, as_of FROM heads WHERE set_id = ? AND version <= ? "
        "ORDER BY version DESC LIMIT 1",
        (set_id, version if version is not None else (1 << 62)),
    ).fetchone()
    return None if row is None else Head(*row)


def find_generation(db: sqlite3.Connection, set_id: int, contract: Contract) -> Generation | None:
    """Give the generation of a set that holds this base contract, or None."""
    row = db.execute(
        "SELECT id FROM generations WHERE set_id = ? AND contract_hash = ?", (set_id, contract.hash)
    ).fetchone()
    return None if row is None else generation_by_id(db, row[0])


def generation_by_id(db: sqlite3.Connection, generation_id: int) -> Generation:
    """Read one generation."""
    row = db.execute(
        "SELECT id, uuid, contract, created, source, versions FROM generations WHERE id = ?", (generation_id,)
    ).fetchone()
    return Generation(
        row[0], row[1], Contract.from_json(json.loads(row[2])), row[3], json.loads(row[4]), json.loads(row[5])
    )


def columns_of(db: sqlite3.Connection, generation_id: int) -> dict[Column, int]:
    """Give the columns of a generation with their rows in the catalog, in the order they were added."""
    rows = db.execute("SELECT id, spec, width FROM columns WHERE generation_id = ? ORDER BY id", (generation_id,))
    return {Column.from_json(json.loads(spec), width): int(row_id) for row_id, spec, width in rows}


def segments_of(db: sqlite3.Connection, generation_id: int, column_ids: list[int]) -> dict[int, int]:
    """Give the live segments of a generation, each with a bit mask of which of ``column_ids`` it holds."""
    rows = db.execute(
        "SELECT s.id, c.column_id FROM segments s JOIN segment_columns c ON c.segment_id = s.id "
        "WHERE s.generation_id = ? AND s.removed_in IS NULL",
        (generation_id,),
    )
    bit = {column_id: 1 << position for position, column_id in enumerate(column_ids)}
    masks: dict[int, int] = {}
    for segment_id, column_id in rows:
        masks[segment_id] = masks.get(segment_id, 0) | bit.get(column_id, 0)
    return masks


def now() -> str:
    """Give the time in ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def printable(text: str) -> str:
    """Give text that SQLite and terminals take: lone surrogates become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    address = f"file:{urllib.parse.quote(bytes(path.resolve()))}?mode={mode}"
    try:
        db = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as exc:
        raise StoreDamagedError(f"{path}: cannot be opened ({exc})") from exc
    db.execute("PRAGMA foreign_keys=ON")
    return db
