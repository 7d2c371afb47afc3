"""Collection: what no kept version needs goes, row by row; and generations that were given up, on request.

Every step is one transaction, so that a kill leaves a store in which all that is kept reads as before, and the next
collection does the rest. Files are deleted last: they are entered in ``intents`` by the transaction that takes them
out of the catalog, and whoever writes next deletes what is still there.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import catalog
from .difference import find_generation_id
from .errors import RefusedError, StoreDamagedError
from .holdings import unpack_ids
from .needs import Keep, Kept, Needs, Refusals, StoredSegment, find_needs, mark_needed, read_cards
from .registry import sweep
from .rewrite import discard_segments, rewrite_segment
from .session import writing

__all__ = ["Collected", "Collection", "Dropped", "collect_store", "drop_generation"]

log = logging.getLogger(__name__)

VACUUM_PAST = 0.25
"""Share of free pages past which the catalog is written anew: a commit fills free pages again."""


@dataclass(frozen=True)
class Collected:
    """What was taken from a set, or would be."""

    set_name: str
    """feature set"""
    kept: tuple[Kept, ...]
    """versions that can be read, the newest first, and why each is kept"""
    collected: tuple[int, ...]
    """versions that can no longer be read, the newest first"""
    segments: int
    """segments deleted as a whole"""
    rewritten: int
    """segments written anew without the rows that nobody needs"""
    rows: int
    """rows of segments taken away"""
    bytes: int
    """bytes of segments freed; on a dry run estimated where a segment would be written anew"""


@dataclass(frozen=True)
class Collection:
    """What gc has done, or would do."""

    sets: tuple[Collected, ...]
    """each set, by name"""
    damaged: tuple[str, ...]
    """what is wrong with segments that were therefore left whole"""
    catalog_bytes: int
    """bytes by which the catalog shrank; 0 on a dry run"""
    dry_run: bool
    """whether nothing was changed"""

    @property
    def bytes(self) -> int:
        """Bytes freed."""
        return sum(one.bytes for one in self.sets) + self.catalog_bytes


@dataclass(frozen=True)
class Dropped:
    """A generation that was given up, or would be."""

    set_name: str
    """feature set"""
    generation: str
    """its uuid"""
    segments: int
    """segments deleted"""
    rows: int
    """rows of them"""
    bytes: int
    """bytes of them"""


@dataclass
class _Work:
    """What is to be done in one set."""

    name: str
    needs: Needs
    segments: list[tuple[int, StoredSegment]]
    """those with rows that nobody needs, and their generations"""
    refusals: list[Refusals]

    @property
    def whole(self) -> list[StoredSegment]:
        """Segments of which nothing is needed."""
        return [segment for _, segment in self.segments if not segment.needed.any()]

    @property
    def partial(self) -> list[tuple[int, StoredSegment]]:
        """Segments of which something is, and their generations."""
        return [(generation_id, segment) for generation_id, segment in self.segments if segment.needed.any()]


def collect_store(
    folder: Path, *, keep_versions: int = 1, keep_days: float = 0, dry_run: bool = False, command: str = ""
) -> Collection:
    """Delete what no kept version needs; see ``FeatureStore.collect``."""
    keep = Keep(keep_versions, keep_days)
    with _reading(folder) if dry_run else writing(folder, command=command) as db:
        cards = read_cards(folder)
        sets = db.execute("SELECT name, id FROM sets ORDER BY name").fetchall()
        works = [_plan(db, name, find_needs(db, set_id, name, keep, cards)) for name, set_id in sets]
        if dry_run:
            done = tuple(_told(work, {one.id: one.freed for _, one in work.partial}) for work in works)
            return Collection(done, (), 0, dry_run=True)
        with catalog.transaction(db):
            for work in works:
                _forget(db, work)
        sweep(folder, db)
        damaged: list[str] = []
        done = tuple(_told(work, _rewrite(folder, db, work, damaged)) for work in works)
        with catalog.transaction(db):
            _forget_unused(db)
        return Collection(done, tuple(damaged), _vacuum(db), dry_run=False)


def drop_generation(folder: Path, part: str, *, dry_run: bool = False, command: str = "") -> Dropped:
    """Delete a generation that no version needs; see ``FeatureStore.drop``."""
    with _reading(folder) if dry_run else writing(folder, command=command) as db:
        generation_id = find_generation_id(db, folder, part)
        generation = catalog.generation_by_id(db, generation_id)
        set_id, set_name = db.execute(
            "SELECT s.id, s.name FROM sets s JOIN generations g ON g.set_id = s.id WHERE g.id = ?", (generation_id,)
        ).fetchone()
        _refuse_drop(db, set_id, set_name, generation)
        segments = db.execute(
            "SELECT id, rows, size FROM segments WHERE generation_id = ?", (generation_id,)
        ).fetchall()
        dropped = Dropped(
            set_name, generation.uuid, len(segments), sum(row[1] for row in segments), sum(row[2] for row in segments)
        )
        if not dry_run:
            with catalog.transaction(db):
                discard_segments(db, [row[0] for row in segments])
                db.execute("DELETE FROM failures WHERE generation_id = ?", (generation_id,))
                db.execute(
                    "DELETE FROM refusals WHERE column_id IN (SELECT id FROM columns WHERE generation_id = ?)",
                    (generation_id,),
                )
                _forget_unused(db)
            sweep(folder, db)
    return dropped


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the catalog for queries that all see the same commit."""
    with closing(catalog.connect(folder)) as db:
        db.execute("BEGIN")
        yield db


def _plan(db: sqlite3.Connection, name: str, needs: Needs) -> _Work:
    work = _Work(name, needs, [], [])
    for generation_id, segments, refusals in mark_needed(db, needs):
        work.segments += [(generation_id, segment) for segment in segments if not segment.needed.all()]
        work.refusals.append(refusals)
    return work


def _told(work: _Work, freed: Mapping[int, int]) -> Collected:
    """Count what was done, given the bytes freed in each segment that was written anew."""
    whole, partial = work.whole, [segment for _, segment in work.partial if segment.id in freed]
    return Collected(
        work.name,
        work.needs.kept,
        work.needs.collected,
        len(whole),
        len(partial),
        sum(int(np.count_nonzero(~segment.needed)) for segment in (*whole, *partial)),
        sum(segment.size for segment in whole) + sum(freed.values()),
    )


def _forget(db: sqlite3.Connection, work: _Work) -> None:
    """Take what nobody needs out of the catalog, but for rows of segments of which others are needed."""
    set_id = work.needs.set_id
    db.executemany(
        "UPDATE heads SET collected = ? WHERE set_id = ? AND version = ?",
        [(catalog.now(), set_id, version) for version in work.needs.collected],
    )
    db.execute("CREATE TEMP TABLE IF NOT EXISTS points (version INTEGER PRIMARY KEY)")
    _delete_unneeded(db, "images", "set_id", set_id, work.needs.versions)
    for generation_id, points in work.needs.points.items():
        _delete_unneeded(db, "failures", "generation_id", generation_id, points)
    for refusals in work.refusals:
        db.executemany(
            "DELETE FROM refusals WHERE content_id = ? AND column_id = ? AND added_in = ?",
            refusals.keys[~refusals.needed].tolist(),
        )
    discard_segments(db, [segment.id for segment in work.whole])


def _delete_unneeded(db: sqlite3.Connection, table: str, key: str, value: int, points: list[int]) -> None:
    """Delete the rows that are alive as of none of these versions."""
    db.execute("DELETE FROM points")
    db.executemany("INSERT INTO points VALUES (?)", [(point,) for point in points])
    db.execute(
        f"DELETE FROM {table} WHERE {key} = ? AND NOT EXISTS (SELECT 1 FROM points "
        f"WHERE version >= added_in AND (removed_in IS NULL OR version < removed_in))",
        (value,),
    )


def _rewrite(folder: Path, db: sqlite3.Connection, work: _Work, damaged: list[str]) -> dict[int, int]:
    """Write segments anew without the rows that nobody needs; give the bytes freed in each."""
    freed: dict[int, int] = {}
    for generation_id, segment in work.partial:
        generation = catalog.generation_by_id(db, generation_id)
        try:
            freed[segment.id] = rewrite_segment(folder, db, work.name, generation, segment)
        except StoreDamagedError as exc:
            damaged.append(str(exc))
        sweep(folder, db)  # before the next one needs the space
    return freed


def _forget_unused(db: sqlite3.Connection) -> None:
    """Take out contents, columns and generations that nothing refers to any more."""
    every = np.array([row[0] for row in db.execute("SELECT id FROM contents")], dtype=np.int64)
    unused = np.setdiff1d(every, _used_contents(db), assume_unique=True)
    if unused.size:
        db.execute("CREATE TEMP TABLE IF NOT EXISTS unused (id INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM unused")
        db.executemany("INSERT INTO unused VALUES (?)", [(content_id,) for content_id in unused.tolist()])
        db.execute("DELETE FROM contents WHERE id IN (SELECT id FROM unused)")
    db.execute(
        "DELETE FROM columns WHERE id NOT IN (SELECT column_id FROM segment_columns) "
        "AND id NOT IN (SELECT column_id FROM refusals)"
    )
    users = ("versions", "heads", "segments", "failures", "columns")
    unused_by = " AND ".join(f"id NOT IN (SELECT generation_id FROM {table})" for table in users)
    db.execute(
        f"DELETE FROM generations WHERE {unused_by} "
        "AND id NOT IN (SELECT parent_id FROM generations WHERE parent_id IS NOT NULL)"
    )


def _used_contents(db: sqlite3.Connection) -> np.ndarray:
    """Give the contents that an image, a segment or a refusal has: ``(n,)`` int64, each once."""
    parts = [
        np.array([row[0] for row in db.execute(f"SELECT content_id FROM {table}")], dtype=np.int64)
        for table in ("images", "refusals")
    ]
    for packed, rows in db.execute("SELECT contents, rows FROM segments"):
        parts.append(unpack_ids(packed, rows))
    return np.unique(np.concatenate(parts))


def _vacuum(db: sqlite3.Connection) -> int:
    """Write the catalog anew where much of it is free; give the bytes by which it shrank."""
    pages, free = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
    if free <= VACUUM_PAST * pages:
        return 0
    try:
        db.execute("VACUUM")
    except sqlite3.OperationalError as exc:
        log.warning("%s was not written anew and stays as large as it was (%s)", catalog.CATALOG, exc)
        return 0
    size, after = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_size", "page_count"))
    return int(size * (pages - after))


def _refuse_drop(db: sqlite3.Connection, set_id: int, set_name: str, generation: catalog.Generation) -> None:
    head = catalog.head_of(db, set_id)
    if head is not None and head.generation_id == generation.id:
        raise RefusedError(f"generation {generation.uuid} is what readers of {set_name!r} see; it cannot be dropped")
    readable = [
        str(row[0])
        for row in db.execute(
            "SELECT version FROM heads WHERE generation_id = ? AND collected IS NULL ORDER BY version", (generation.id,)
        )
    ]
    if readable:
        raise RefusedError(
            f"generation {generation.uuid}: version {', '.join(readable[-5:])} of {set_name!r} can still be read from "
            f"it; `icecore store gc` collects versions that have no tag and no bundle"
        )
