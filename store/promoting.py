"""The rows of promotions: entered in one transaction, noted in a ledger, restored from it.

Numbers count the promotions of a name. The ledger is written after the transaction, so that all its lines were
committed, and a catalog that lacks one is given it by the next promotion or by a repair.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from dataclasses import astuple, fields, replace
from pathlib import Path

from . import catalog
from .bundles import check_bundle
from .disk_errors import disk_errors
from .errors import RefusedError, StoreDamagedError, StoreError
from .ledger import LEDGER, Entry, append_entries, ledgers, read_entries
from .sqlite_file import open_file

__all__ = ["note_promotions", "read_promotions", "record", "restore_promotions"]

log = logging.getLogger(__name__)

TABLE = "promotions"
_FIELDS = tuple(field.name for field in fields(Entry))
_TRIES = 5
"""Times that a promotion is entered again because a repair has replaced the catalog meanwhile."""


def record(folder: Path, entry: Entry, *, expected: int | None) -> Entry:
    """Enter a promotion; its number and the checksum of its card are found here. See ``champions.promote``."""
    path = folder / "models" / entry.name / entry.bundle
    done: Entry | None = None
    for _ in range(_TRIES):
        with closing(catalog.connect(folder, write=True)) as db:
            before = _stamp(folder)
            with catalog.transaction(db):
                catalog.ensure_table(db, TABLE)
                _enter(db, read_entries(path.parent / LEDGER)[0])  # a catalog put back from a copy may lack some
                done = done or _numbered(db, path, entry, expected)
                _enter(db, [done])
            entries = read_promotions(db, entry.name)
            with suppress(sqlite3.DatabaseError):  # somebody is at work, or has replaced the catalog: see below
                catalog.empty_log(db)
        _note(path.parent / LEDGER, entries)
        if _stamp(folder) == before:
            return done
    raise StoreDamagedError(f"{folder}: its catalog is replaced again and again; see who repairs it, and run again")


def read_promotions(db: sqlite3.Connection, name: str | None = None, limit: int | None = None) -> list[Entry]:
    """Read the promotions of a name, the newest first; without a name of all, the last name first."""
    if not catalog.has_table(db, TABLE):
        return []
    rows = db.execute(
        f"SELECT {', '.join(_FIELDS)} FROM {TABLE} WHERE :name IS NULL OR name = :name "
        "ORDER BY name DESC, number DESC LIMIT :limit",
        {"name": name, "limit": -1 if limit is None else limit},
    )
    return [Entry(*row) for row in rows.fetchall()]


def note_promotions(folder: Path) -> None:
    """Add to the ledgers what only a catalog tells that is about to go, as far as it can be read and is borne out.

    A row counts when the card of its bundle has the checksum that it names.
    """
    entries: list[Entry] = []
    with (
        suppress(sqlite3.Error, StoreError, OSError, UnicodeDecodeError),  # damaged: the ledgers have it
        closing(open_file(folder / catalog.CATALOG, "ro")) as db,
    ):
        entries = read_promotions(db)
    for entry in reversed(entries):
        home = folder / "models" / str(entry.name)
        try:
            borne_out = check_bundle(home / str(entry.bundle)) == entry.card_sha256
        except (StoreError, OSError):
            borne_out = False
        if borne_out:
            append_entries(home / LEDGER, [entry])


def restore_promotions(folder: Path, db: sqlite3.Connection) -> list[str]:
    """Enter what the ledgers tell into a catalog made anew.

    Returns
    -------
    list of str
        Ledgers of which a line cannot be read, relative to the store.
    """
    damaged = []
    with catalog.transaction(db):
        catalog.ensure_table(db, TABLE)
        for path in ledgers(folder):
            entries, bad = read_entries(path)
            _enter(db, [entry for entry in entries if entry.name == path.parent.name])
            if bad:
                damaged.append(path.relative_to(folder).as_posix())
    return damaged


def _numbered(db: sqlite3.Connection, path: Path, entry: Entry, expected: int | None) -> Entry:
    """Give the promotion with its number, after the checks that the transaction keeps true."""
    last = read_promotions(db, entry.name, 1)
    number, champion = (last[0].number, last[0].bundle) if last else (0, None)
    if expected is not None and number != expected:
        raise RefusedError(
            f"{path}: not put in use: promotion {number} of {entry.name!r} came meanwhile (expected {expected}); "
            "compare with the champion of now and promote again"
        )
    if champion == entry.bundle:
        raise RefusedError(f"{path}: is the champion of {entry.name!r} already (promotion {number})")
    try:
        digest = check_bundle(path)
    except (StoreError, OSError) as exc:
        raise RefusedError(f"{exc}; a damaged bundle is not put in use") from exc
    return replace(entry, number=number + 1, card_sha256=digest)


def _note(ledger: Path, entries: list[Entry]) -> None:
    """Add to the ledger what it lacks; the promotion holds without it, and the next one adds it."""
    try:
        with disk_errors(ledger):
            append_entries(ledger, reversed(entries))
    except StoreError as exc:
        log.warning("promoted, but not yet noted for the day when the catalog is lost: %s", exc)


def _enter(db: sqlite3.Connection, entries: list[Entry]) -> None:
    marks = ", ".join("?" for _ in _FIELDS)
    db.executemany(
        f"INSERT OR IGNORE INTO {TABLE} ({', '.join(_FIELDS)}) VALUES ({marks})", [astuple(entry) for entry in entries]
    )


def _stamp(folder: Path) -> tuple[int, int]:
    """Say which file the catalog is: a repair that replaced it meanwhile has not seen the promotion."""
    with disk_errors(folder):
        found = (folder / catalog.CATALOG).stat()
    return found.st_dev, found.st_ino
