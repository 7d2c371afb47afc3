"""What a store holds now, told without reading features: for people, and for schedulers that ask what has changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from . import catalog, reading
from .catalog import Head
from .errors import Holder, SetNotFoundError
from .heads import excused
from .holdings import load_held, load_refused
from .lock import is_locked, read_holder
from .summary import Summary, read_summary, store_digest

__all__ = ["Pending", "SetStatus", "StoreStatus", "store_status"]


@dataclass(frozen=True)
class Pending:
    """What was committed and is not read yet: a generation that is being filled, or that catches up."""

    generation: str
    """its uuid"""
    contract_hash: str
    """hash of its base contract"""
    since: str
    """when it began, ISO 8601, UTC"""
    images: int
    """images of the set"""
    lacking: int
    """those that it has not, or not with all its columns, and nothing says why: they keep readers where they are"""
    columns: Mapping[str, int]
    """images that lack each of its columns, by name; those that all have are left out"""


@dataclass(frozen=True)
class SetStatus:
    """One feature set, as readers see it now."""

    name: str
    """feature set"""
    summary: Summary
    """images, columns, failures and the digest"""
    version: int
    """version that is read"""
    since: str
    """when that version was made, ISO 8601, UTC"""
    last_commit: str
    """when anything was last committed to the set, ISO 8601, UTC"""
    age: float
    """seconds since then"""
    generation: str
    """uuid of the generation that is read"""
    contract_hash: str
    """hash of its base contract"""
    segments: int
    """segments that are read"""
    bytes: int
    """bytes of them"""
    tags: Mapping[str, int]
    """tags with their versions"""
    pending: Pending | None
    """what is not read yet"""


@dataclass(frozen=True)
class StoreStatus:
    """What ``store_status`` found."""

    path: Path
    """the store, as it was opened"""
    catalog_format: int
    """format version of the catalog on disk"""
    digest: str
    """sha256, in hex, of all that readers see; equal for two stores that read alike"""
    is_written: bool
    """a writer holds the lock"""
    writer: Holder | None
    """who; None also in the instant before it has said so"""
    leftovers: int
    """segments that a run announced and never committed; the next run sweeps them. 0 while a writer is at work"""
    sets: tuple[SetStatus, ...]
    """its feature sets, or the one asked for"""


def store_status(path: Path | str, set_name: str | None = None) -> StoreStatus:
    """Tell what a store holds and whether it is being written; reads the catalog only, and writes nothing.

    What a run counted when it ended is kept: some milliseconds, whatever the number of images. In the middle of a run
    a million images take a second, and while another generation is filled half of one more.

    Parameters
    ----------
    path
        The store.
    set_name
        Tell of this set only; the store's digest is that of all sets still.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog cannot be opened.
    SetNotFoundError
        When the store has no set of this name that can be read.
    """
    folder = Path(path)
    is_written = is_locked(folder)  # before the snapshot: what a writer that has ended committed is then in it
    with closing(catalog.connect(folder)) as db:
        db.execute("BEGIN")
        found = dict(db.execute("SELECT name, id FROM sets WHERE id IN (SELECT set_id FROM heads) ORDER BY name"))
        if set_name is not None and set_name not in found:
            raise SetNotFoundError(folder, set_name, list(found))
        summaries = {name: read_summary(db, set_id, _head(db, set_id)) for name, set_id in found.items()}
        sets = [
            _set_status(db, name, set_id, summaries[name]) for name, set_id in found.items() if set_name in (None, name)
        ]
        (announced,) = db.execute("SELECT count(*) FROM intents").fetchone()
        return StoreStatus(
            path=folder,
            catalog_format=catalog.format_of(db),
            digest=store_digest({name: summary.digest for name, summary in summaries.items()}),
            is_written=is_written,
            writer=read_holder(folder) if is_written else None,
            leftovers=0 if is_written else announced,
            sets=tuple(sets),
        )


def _set_status(db: sqlite3.Connection, name: str, set_id: int, summary: Summary) -> SetStatus:
    head = _head(db, set_id)
    generation = catalog.generation_by_id(db, head.generation_id)
    (since,) = db.execute("SELECT created FROM versions WHERE id = ?", (head.version,)).fetchone()
    (last,) = db.execute("SELECT created FROM versions WHERE set_id = ? ORDER BY id DESC LIMIT 1", (set_id,)).fetchone()
    segments, size = db.execute(
        "SELECT count(*), coalesce(sum(size), 0) FROM segments WHERE generation_id = :g AND added_in <= :v "
        "AND (removed_in IS NULL OR removed_in > :v)",
        {"g": head.generation_id, "v": head.as_of},
    ).fetchone()
    return SetStatus(
        name=name,
        summary=summary,
        version=head.version,
        since=since,
        last_commit=last,
        age=max(0.0, (datetime.now(UTC) - datetime.fromisoformat(last)).total_seconds()),
        generation=generation.uuid,
        contract_hash=generation.contract.hash,
        segments=segments,
        bytes=size,
        tags=dict(db.execute("SELECT name, version FROM tags WHERE set_id = ? ORDER BY name", (set_id,))),
        pending=_pending(db, set_id, head),
    )


def _head(db: sqlite3.Connection, set_id: int) -> Head:
    head = catalog.head_of(db, set_id)
    assert head is not None
    return head


def _pending(db: sqlite3.Connection, set_id: int, head: Head) -> Pending | None:
    """Tell of the generation that the latest run wrote to, where readers do not see it."""
    latest = db.execute(
        "SELECT generation_id FROM versions WHERE set_id = ? AND kind = 'sync' AND id > ? ORDER BY id DESC LIMIT 1",
        (set_id, head.version),
    ).fetchone()
    if latest is None:
        return None
    generation = catalog.generation_by_id(db, latest[0])
    column_ids = catalog.columns_of(db, generation.id)
    images, lacking, any_lacking = _count_lacking(db, set_id, generation.id, list(column_ids.values()))
    named = zip((column.name for column in column_ids), lacking, strict=True)
    return Pending(
        generation=generation.uuid,
        contract_hash=generation.contract.hash,
        since=generation.created,
        images=images,
        lacking=any_lacking,
        columns={name: n for name, n in named if n},
    )


def _count_lacking(
    db: sqlite3.Connection, set_id: int, generation_id: int, column_ids: list[int]
) -> tuple[int, list[int], int]:
    """Count the live images, those that lack each column of a generation, and those that lack any."""
    held, refused = load_held(db, generation_id, column_ids), load_refused(db, column_ids)
    failed = excused(db, set_id, generation_id)
    lacking = np.zeros(len(column_ids), dtype=np.int64)
    images = any_lacking = 0
    bits = [1 << position for position in range(len(column_ids))]
    for names, contents in reading.alive_images(db, set_id, names=bool(failed)):
        images += contents.size
        lacks = ~(held.table(contents, bits) | refused.table(contents, bits))  # (k, columns)
        if failed and lacks.any():
            lacks[[key in failed for key in reading.names_of(names)]] = False
        lacking += lacks.sum(axis=0)
        any_lacking += int(lacks.any(axis=1).sum())
    return images, lacking.tolist(), any_lacking
