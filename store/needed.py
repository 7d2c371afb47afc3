"""Which rows of segments, and which refusals, the needs of a set make needed. Nothing is changed here.

A row is needed when, as of a need at which its segment is alive, an image has its content, and no newer segment alive
then has that under the same columns. After a merge an old version would keep all of the old segments; where the new
ones hold the same, they stand in for them: a tag costs what is no longer live, not a second copy of everything.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .catalog import columns_of
from .contract import Column
from .copying import blocks_of
from .errors import StoreDamagedError
from .holdings import Holdings
from .needs import Needs
from .places import Extent, Places
from .reading import locate
from .stored import NEVER, StoredSegment, load_segments

__all__ = ["Marked", "Refusals", "mark_needed", "mark_without_stand_ins"]


@dataclass
class Refusals:
    """The refusals of a generation, and which of them are needed."""

    keys: np.ndarray
    """``(n, 3)`` int64: content, column and version of each"""
    removed_in: np.ndarray
    """``(n,)`` int64: version from which on it does not hold"""
    needed: np.ndarray
    """``(n,)`` bool"""

    def mark(self, point: int, images: np.ndarray) -> None:
        """Mark those that hold as of a version, of contents that an image has then."""
        self.needed |= (self.keys[:, 2] <= point) & (point < self.removed_in) & (images[self.keys[:, 0]] > 0)


@dataclass
class Marked:
    """A generation, and what is needed of it."""

    generation_id: int
    """row of the generation"""
    column_ids: Mapping[Column, int]
    """rows of its columns"""
    segments: list[StoredSegment]
    """all its segments"""
    refusals: Refusals
    """all its refusals"""

    @property
    def moved(self) -> list[StoredSegment]:
        """Segments that stand in for others as of an earlier version than they did."""
        return [segment for segment in self.segments if segment.alive_from != segment.added_in]

    @property
    def whole(self) -> list[StoredSegment]:
        """Segments of which no row is needed."""
        return [segment for segment in self.segments if not segment.needed.any()]

    @property
    def partial(self) -> list[StoredSegment]:
        """Segments of which some rows are needed and others are not."""
        return [segment for segment in self.segments if segment.needed.any() and not segment.needed.all()]


def mark_needed(db: sqlite3.Connection, folder: Path, needs: Needs) -> list[Marked]:
    """Mark what is needed of every generation of a set."""
    lives = _image_lives(db, needs.set_id)
    return [_mark(db, folder, lives, generation_id, points) for generation_id, points in needs.points.items()]


def mark_without_stand_ins(db: sqlite3.Connection, folder: Path, needs: Needs, generation_id: int) -> Marked:
    """Mark what is needed of one generation when no segment is read by an earlier version than now."""
    lives = _image_lives(db, needs.set_id)
    return _mark(db, folder, lives, generation_id, needs.points[generation_id], stand_in=False)


def _mark(
    db: sqlite3.Connection,
    folder: Path,
    lives: tuple[np.ndarray, np.ndarray, np.ndarray],
    generation_id: int,
    points: Sequence[int],
    *,
    stand_in: bool = True,
) -> Marked:
    content, added, removed = lives
    size = 1 + int(db.execute("SELECT value FROM meta WHERE key = 'next_content'").fetchone()[0])
    column_ids = columns_of(db, generation_id)
    earliest: dict[int, int] = {}
    while True:
        marked = Marked(
            generation_id, column_ids, load_segments(db, generation_id, column_ids), _refusals(db, generation_id)
        )
        later: list[StoredSegment] = []
        for point in reversed(points):
            images = np.bincount(content[(added <= point) & (point < removed)], minlength=size)
            candidates = [s for s in later if s.added_in > point >= earliest.get(s.id, 0)] if stand_in else []
            later = _mark_at(db, folder, marked, candidates, point, images)
            marked.refusals.mark(point, images)
        clash = _find_clash(marked, size)
        if clash is None:
            return marked
        earliest.update([clash])


def _mark_at(
    db: sqlite3.Connection,
    folder: Path,
    marked: Marked,
    candidates: Iterable[StoredSegment],
    point: int,
    images: np.ndarray,
) -> list[StoredSegment]:
    """Mark the rows needed as of a version; give the segments that are needed then.

    Parameters
    ----------
    candidates
        Segments needed as of the next later version, and not alive as of this one: they may stand in for others.
    images
        ``(m,)``: number of images that each content has.
    """
    native = [segment for segment in marked.segments if segment.added_in <= point < segment.removed_in]
    there = Holdings()
    for segment in native:
        there.add(segment.contents, segment.columns)
    alive = []
    for segment in _newest_first(candidates):
        rows = np.flatnonzero((segment.turns == 0) & (images[segment.contents] > 0))
        fits = there.groups(segment.contents[rows]).get(segment.columns, rows[:0]).size == rows.size > 0
        if fits and _is_alike(db, folder, marked.column_ids, segment, rows, point):
            segment.alive_from = point
            alive.append(segment)
    alive += _newest_first(native)
    held = Holdings()
    for segment in alive:
        wanted = segment.turns < images[segment.contents]
        segment.needed |= wanted & ~held.holds(segment.contents, segment.columns)
        held.add(segment.contents, segment.columns)
    return [segment for segment in alive if segment.needed.any()]


def _find_clash(marked: Marked, size: int) -> tuple[int, int] | None:
    """Find a stand-in that would hold a content beside another segment that keeps it for a version of its own.

    Gives the stand-in's id, and the version from which on it holds nothing twice with that segment.
    """
    for segment in marked.moved:
        held = np.zeros(size, dtype=bool)
        held[segment.contents[segment.needed]] = True
        for other in marked.segments:
            is_beside = other.alive_from < segment.removed_in and segment.alive_from < other.removed_in
            is_beside = is_beside and other is not segment and bool(other.columns & segment.columns)
            if is_beside and held[other.contents[other.needed]].any():
                return segment.id, other.removed_in
    return None


def _newest_first(segments: Iterable[StoredSegment]) -> list[StoredSegment]:
    return sorted(segments, key=lambda segment: (segment.added_in, segment.id), reverse=True)


def _is_alike(
    db: sqlite3.Connection,
    folder: Path,
    column_ids: Mapping[Column, int],
    segment: StoredSegment,
    rows: np.ndarray,
    point: int,
) -> bool:
    """Say whether rows of a segment are, bit for bit, what their contents read as at an earlier version.

    They need not be: a content that was collected and came back was computed anew.
    """
    offsets = db.execute("SELECT column_id, offset FROM segment_columns WHERE segment_id = ?", (segment.id,))
    columns = {column_id: column for column, column_id in column_ids.items()}
    which = np.zeros(rows.size, dtype=np.int32)
    try:
        for column_id, offset in offsets.fetchall():
            column = columns[column_id]
            extent = Extent(folder / segment.path, segment.contents.size, offset, column)
            before, _ = locate(db, folder, segment.contents[rows], column, column_id, point)
            if not _is_equal(blocks_of(Places(column, (extent,), which, rows)), blocks_of(before)):
                return False
    except StoreDamagedError:
        return False  # what cannot be read stands in for nothing, and stays
    return True


def _is_equal(a: Iterable[np.ndarray], b: Iterable[np.ndarray]) -> bool:
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in zip(a, b, strict=True))


def _image_lives(db: sqlite3.Connection, set_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read content, first version and version of removal of every image, dead ones too: ``(n,)`` int64 each."""
    cursor = db.execute("SELECT content_id, added_in, removed_in FROM images WHERE set_id = ?", (set_id,))
    parts = [np.empty((0, 3), dtype=np.int64)]
    while rows := cursor.fetchmany(65_536):
        parts.append(np.array([(content, added, removed or NEVER) for content, added, removed in rows]))
    content, added, removed = np.concatenate(parts).T
    return content, added, removed


def _refusals(db: sqlite3.Connection, generation_id: int) -> Refusals:
    rows = db.execute(
        "SELECT content_id, column_id, added_in, removed_in FROM refusals "
        "WHERE column_id IN (SELECT id FROM columns WHERE generation_id = ?)",
        (generation_id,),
    ).fetchall()
    keys = np.array([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3)
    removed = np.array([row[3] or NEVER for row in rows], dtype=np.int64)
    return Refusals(keys, removed, np.zeros(len(rows), dtype=bool))
