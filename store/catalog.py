"""The catalog: one SQLite file that says which rows are alive. Connections, schema and the shared queries.

Readers open it read-only and never block; the writer's transactions are ``BEGIN IMMEDIATE`` with
``synchronous=FULL``, so that a commit that returned survives a power cut.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .contract import Column, Contract
from .disk_errors import disk_errors, sqlite_errors
from .errors import FormatError, StoreDamagedError, StoreNotFoundError
from .migrate import migrate
from .sqlite_file import CATALOG, copy_of, open_file, open_to_read, readable

__all__ = [
    "CATALOG",
    "CATALOG_VERSION",
    "CURE",
    "Generation",
    "Head",
    "batched",
    "columns_of",
    "connect",
    "create_catalog",
    "empty_log",
    "ensure_table",
    "find_generation",
    "format_of",
    "generation_by_id",
    "has_table",
    "head_of",
    "now",
    "printable",
    "roll_back",
    "set_id_of",
    "transaction",
    "write_schema",
]

T = TypeVar("T")

CATALOG_VERSION = 2
CURE = "`icecore store repair` makes it anew from the segments"
_UNREADABLE = (TypeError, ValueError, KeyError, AttributeError)
"""What parsing raises where a catalog's text has changed."""
WRITER_CACHE = 64 << 20
"""Bytes of catalog pages that a writer keeps in memory: contents arrive in random order of their hashes."""


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
    collected: str | None = None
    """when gc took away what only this version needs; None while it can be read"""


def create_catalog(folder: Path) -> None:
    """Make an empty catalog in a folder unless it has one.

    Raises
    ------
    StoreDamagedError
        When there are segments but no catalog: a new one would forget them.
    DiskError
        When it cannot be written there.
    """
    path = folder / CATALOG
    if path.exists():
        if not path.is_file():
            _require_no_segments(folder, "is not a file")
        with closing(open_to_read(folder)) as db, readable(path):
            if not _is_empty(db):
                return
    _require_no_segments(folder, "is empty" if path.exists() else "is missing")
    with closing(open_file(path, "rwc")) as db, readable(path):
        db.execute("PRAGMA journal_mode=WAL")
        with transaction(db):
            if _is_empty(db):  # nobody else has filled it meanwhile
                write_schema(db)


def write_schema(db: sqlite3.Connection) -> None:
    """Make the tables of a catalog that has none, and say what it is."""
    for statement in _schema():
        db.execute(statement)
    facts = [
        ("format_version", str(CATALOG_VERSION)),
        ("store", uuid.uuid4().hex),
        ("created", now()),
        ("next_content", "1"),
    ]
    db.executemany("INSERT INTO meta VALUES (?, ?)", facts)


def _is_empty(db: sqlite3.Connection) -> bool:
    return bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0)


def _require_no_segments(folder: Path, trouble: str) -> None:
    if next((folder / "segments").rglob("*.h5"), None) is not None:
        raise StoreDamagedError(f"{folder}: {CATALOG} {trouble} but segments are here; {CURE}")


def connect(folder: Path, *, write: bool = False) -> sqlite3.Connection:
    """Open the catalog of a store.

    Raises
    ------
    StoreNotFoundError
        When there is none, or one whose making was cut off.
    FormatError
        When it was made by another release in a format that this one does not read.
    StoreDamagedError
        When SQLite cannot read it.
    DiskError
        When the disk refuses, or another program keeps the catalog from being read.
    """
    path = folder / CATALOG
    with disk_errors(path):
        if not path.is_file():
            _require_no_segments(folder, "is missing")
            raise StoreNotFoundError(folder)
    db = open_file(path, "rw") if write else open_to_read(folder)
    try:
        with readable(path):
            if _require_format(folder, db) == 1:
                db = _migrated(db, write=write)
            if write:
                db.execute("PRAGMA synchronous=FULL")
                db.execute(f"PRAGMA cache_size=-{WRITER_CACHE >> 10}")
            db.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        db.close()
        raise
    return db


def _require_format(folder: Path, db: sqlite3.Connection) -> int:
    if _is_empty(db):
        _require_no_segments(folder, "is empty")
        raise StoreNotFoundError(folder)
    found = _written_format(db)
    if found is None:
        raise StoreDamagedError(f"{folder / CATALOG}: does not say its format; {CURE}")
    if found not in (1, CATALOG_VERSION):
        raise FormatError(
            f"{folder / CATALOG}: catalog format {found}, this release reads 1 and {CATALOG_VERSION}; upgrade icecore"
        )
    return found


def _written_format(db: sqlite3.Connection) -> int | None:
    row = db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone()
    return int(row[0]) if row and str(row[0]).isdecimal() else None


def _migrated(db: sqlite3.Connection, *, write: bool) -> sqlite3.Connection:
    """Bring a catalog of format 1 up to date: in place for the writer, in a private copy for a reader."""
    if not write:
        with closing(db):
            db = copy_of(db)
        db.execute("PRAGMA user_version=1")
    with transaction(db):
        if _written_format(db) == 1:
            migrate(db, _schema())
    return db


def format_of(db: sqlite3.Connection) -> int:
    """Give the format of the catalog on disk, also where a private copy has been brought up to date."""
    return int(db.execute("PRAGMA user_version").fetchone()[0]) or CATALOG_VERSION


def has_table(db: sqlite3.Connection, table: str) -> bool:
    """Say whether a catalog has a table: those of earlier releases lack what came later."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is not None


def ensure_table(db: sqlite3.Connection, table: str) -> None:
    """Make a table that came after format 2 was defined, inside the caller's transaction, where it is not there."""
    (statement,) = (text for text in _schema() if f"CREATE TABLE IF NOT EXISTS {table} " in text)
    db.execute(statement)


def _schema() -> list[str]:
    return resources.files("icecore.store").joinpath("schema.sql").read_text("utf-8").split(";\n")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction: all of it, or on any exception none.

    Raises
    ------
    DiskError
        When SQLite cannot write: the disk is full, read-only or failing, or another program holds the catalog.
    """
    path = db.execute("PRAGMA database_list").fetchone()[2]
    with sqlite_errors(path):
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except BaseException:
            roll_back(db)
            raise


def roll_back(db: sqlite3.Connection) -> None:
    """Undo a transaction that is still open."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def set_id_of(db: sqlite3.Connection, name: str) -> int | None:
    """Give the row of a feature set, or None."""
    row = db.execute("SELECT id FROM sets WHERE name = ?", (name,)).fetchone()
    return None if row is None else int(row[0])


def head_of(db: sqlite3.Connection, set_id: int, version: int | None = None) -> Head | None:
    """Give what readers of a set see now, or saw at a version; None before the first commit."""
    row = db.execute(
        "SELECT version, generation_id, as_of, collected FROM heads WHERE set_id = ? AND version <= ? "
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
    """Read one generation.

    Raises
    ------
    StoreDamagedError
        When there is none, or what stands there is no contract.
    """
    row = db.execute(
        "SELECT id, uuid, contract, created, source, versions FROM generations WHERE id = ?", (generation_id,)
    ).fetchone()
    try:
        contract, source, versions = (json.loads(text) for text in (row[2], row[4], row[5]))
        return Generation(row[0], row[1], Contract.from_json(contract), row[3], source, versions)
    except _UNREADABLE as exc:
        raise StoreDamagedError(f"{CATALOG}: generation {generation_id} cannot be read ({exc}); {CURE}") from exc


def columns_of(db: sqlite3.Connection, generation_id: int) -> dict[Column, int]:
    """Give the columns of a generation with their rows in the catalog, in the order they were added.

    Raises
    ------
    StoreDamagedError
        When what stands there is no column.
    """
    rows = db.execute("SELECT id, spec, width FROM columns WHERE generation_id = ? ORDER BY id", (generation_id,))
    try:
        return {Column.from_json(json.loads(spec), width): int(row_id) for row_id, spec, width in rows}
    except _UNREADABLE as exc:
        raise StoreDamagedError(f"{CATALOG}: a column cannot be read ({exc}); {CURE}") from exc


def empty_log(db: sqlite3.Connection) -> None:
    """Write the log into the catalog, so that it alone is whole; a reader in mid-query keeps it, unwaited."""
    db.execute("PRAGMA busy_timeout=0")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Give items some at a time, as ``itertools.batched`` does from Python 3.12 on."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some


def now(timespec: str = "seconds") -> str:
    """Give the time, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=timespec)


def printable(text: str) -> str:
    """Give text that SQLite and terminals take: lone surrogates become backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
