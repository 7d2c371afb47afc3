"""Collection: what no kept version needs goes, row by row; and generations that were given up, on request.

Every step is one transaction, so that a kill leaves a store in which all that is kept reads as before, and the next
collection does the rest. Files are deleted last: they are entered in ``intents`` by the transaction that takes them
out of the catalog, and whoever writes next deletes what is still there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import catalog
from .canaries import forget_canaries
from .difference import find_generation_id
from .errors import RefusedError, StoreDamagedError
from .needed import Marked, mark_needed, mark_without_stand_ins
from .needs import Keep, Kept, Needs, find_needs, read_cards
from .registry import sweep
from .rewrite import discard_segments, enter_rewritten, publish_rewritten
from .session import writing
from .stored import StoredSegment
from .unused import forget_unused, shrink

__all__ = ["Collected", "Collection", "Dropped", "collect_store", "drop_generation"]


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
    generations: list[Marked]
    freed: dict[int, int]
    """bytes freed in each segment that was written anew"""


def collect_store(
    folder: Path, *, keep_versions: int = 1, keep_days: float = 0, dry_run: bool = False, command: str = ""
) -> Collection:
    """Delete what no kept version needs; see ``FeatureStore.collect``."""
    keep = Keep(keep_versions, keep_days)
    with _reading(folder) if dry_run else writing(folder, command=command) as db:
        cards = read_cards(folder)
        works = []
        for name, set_id in db.execute("SELECT name, id FROM sets ORDER BY name").fetchall():
            needs = find_needs(db, set_id, name, keep, cards)
            works.append(_Work(name, needs, mark_needed(db, folder, needs), {}))
        damaged: list[str] = []
        if not dry_run:
            with catalog.transaction(db):
                for work in works:
                    _forget(db, work)
            sweep(folder, db)
            for work in works:
                _rewrite(folder, db, work, damaged)
            with catalog.transaction(db):
                forget_unused(db)
            forget_canaries(folder, _filled(db))
        done = tuple(_told(work, dry_run=dry_run) for work in works)
        return Collection(done, tuple(damaged), 0 if dry_run else shrink(db), dry_run)


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
                forget_unused(db)
            sweep(folder, db)
            forget_canaries(folder, _filled(db))
    return dropped


def _filled(db: sqlite3.Connection) -> list[str]:
    """Give the generations that have rows."""
    rows = db.execute("SELECT uuid FROM generations WHERE id IN (SELECT generation_id FROM segments)")
    return [uuid for (uuid,) in rows]


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open the catalog for queries that all see the same commit."""
    with closing(catalog.connect(folder)) as db:
        db.execute("BEGIN")
        yield db


def _told(work: _Work, *, dry_run: bool) -> Collected:
    whole = [segment for marked in work.generations for segment in marked.whole]
    partial = [segment for marked in work.generations for segment in marked.partial]
    freed = {segment.id: segment.freed for segment in partial} if dry_run else work.freed
    rewritten = [segment for segment in partial if segment.id in freed]
    return Collected(
        work.name,
        work.needs.kept,
        work.needs.collected,
        len(whole),
        len(rewritten),
        sum(int(np.count_nonzero(~segment.needed)) for segment in (*whole, *rewritten)),
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
    for marked in work.generations:
        _delete_unneeded(db, "failures", "generation_id", marked.generation_id, work.needs.points[marked.generation_id])
        db.executemany(
            "DELETE FROM refusals WHERE content_id = ? AND column_id = ? AND added_in = ?",
            marked.refusals.keys[~marked.refusals.needed].tolist(),
        )
        if not marked.moved:
            discard_segments(db, (segment.id for segment in marked.whole))


def _delete_unneeded(db: sqlite3.Connection, table: str, key: str, value: int, points: list[int]) -> None:
    """Delete the rows that are alive as of none of these versions."""
    db.execute("DELETE FROM points")
    db.executemany("INSERT INTO points VALUES (?)", [(point,) for point in points])
    db.execute(
        f"DELETE FROM {table} WHERE {key} = ? AND NOT EXISTS (SELECT 1 FROM points "
        f"WHERE version >= added_in AND (removed_in IS NULL OR version < removed_in))",
        (value,),
    )


def _rewrite(folder: Path, db: sqlite3.Connection, work: _Work, damaged: list[str]) -> None:
    """Write segments anew without the rows that nobody needs; those that are damaged stay as they are."""
    for place, marked in enumerate(work.generations):
        if marked.moved:
            try:
                _replace(folder, db, work, marked, marked.partial)
                continue
            except StoreDamagedError:  # what cannot be written anew needs no stand-in, nor can be one
                sweep(folder, db)
                marked = work.generations[place] = mark_without_stand_ins(db, folder, work.needs, marked.generation_id)
                with catalog.transaction(db):
                    discard_segments(db, (segment.id for segment in marked.whole))
        for segment in marked.partial:
            try:
                _replace(folder, db, work, marked, [segment])
            except StoreDamagedError as exc:
                damaged.append(str(exc))


def _replace(
    folder: Path, db: sqlite3.Connection, work: _Work, marked: Marked, segments: Sequence[StoredSegment]
) -> None:
    """Write segments of a generation anew; in the same transaction stand-ins take over from those that go."""
    generation = catalog.generation_by_id(db, marked.generation_id)
    written = [publish_rewritten(folder, db, work.name, generation, segment) for segment in segments]
    with catalog.transaction(db):
        for segment, new in zip(segments, written, strict=True):
            enter_rewritten(db, segment, new, marked.column_ids)
            work.freed[segment.id] = segment.size - new.size
        if marked.moved:
            facts = [(segment.alive_from, segment.id) for segment in marked.moved]
            db.executemany("UPDATE segments SET added_in = ? WHERE id = ?", facts)
            discard_segments(db, (segment.id for segment in marked.whole))
    sweep(folder, db)  # before the next one needs the space


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
