"""What gc keeps: the versions that somebody may want, and the rows that these need. Nothing is changed here.

A need is a generation as of a version, or as it is now (``LIVE``). A row of a segment is needed when, as of one of the
needs at which its segment is alive, an image has its content.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from .bundles import BundleCard, card_paths, read_card
from .catalog import head_of
from .errors import FormatError, RefusedError
from .holdings import unpack_ids

__all__ = ["LIVE", "Keep", "Kept", "Needs", "Refusals", "StoredSegment", "find_needs", "mark_needed", "read_cards"]

LIVE = 1 << 62
"""Stands for "as it is now": behind every version."""
_NEVER = (1 << 63) - 1
"""When what is alive was removed."""


@dataclass(frozen=True)
class Keep:
    """Which versions gc keeps, besides those with a tag or a bundle."""

    versions: int = 1
    """the newest of each set, at least the one that readers see"""
    days: float = 0
    """those that readers have seen in the last days"""

    def __post_init__(self) -> None:
        if self.versions < 1 or not 0 <= self.days <= 36_500:
            raise RefusedError(f"gc keeps 1 version or more, and 0 to 36,500 days: found {self.versions}, {self.days}")


@dataclass(frozen=True)
class Kept:
    """A version that can be read after gc."""

    version: int
    """its number"""
    because: tuple[str, ...]
    """why it is kept"""


@dataclass
class Needs:
    """What gc leaves of a set."""

    set_id: int
    """row of the set"""
    kept: tuple[Kept, ...]
    """versions that stay readable, the newest first"""
    collected: tuple[int, ...]
    """versions that are readable now and will not be"""
    points: dict[int, list[int]]
    """row of each generation -> versions, in order, as of which it is needed; none where nothing of it is"""

    @property
    def versions(self) -> list[int]:
        """Versions as of which images are needed, under whatever generation."""
        return sorted({point for points in self.points.values() for point in points})


@dataclass
class StoredSegment:
    """A segment, and which rows of it are needed."""

    id: int
    """row in the catalog"""
    path: str
    """its file"""
    size: int
    """bytes of the file"""
    added_in: int
    """version from which on it is alive"""
    removed_in: int
    """version from which on it is not"""
    contents: np.ndarray
    """``(n,)`` int64: content of each row"""
    needed: np.ndarray = field(init=False)
    """``(n,)`` bool: rows that are needed"""

    def __post_init__(self) -> None:
        self.needed = np.zeros(self.contents.size, dtype=bool)
        self._turn = _turns(self.contents)

    def mark(self, point: int, images: np.ndarray) -> None:
        """Mark the rows needed as of a version, given the number of images that each content has."""
        if self.added_in <= point < self.removed_in:
            self.needed |= self._turn < images[self.contents]

    @property
    def freed(self) -> int:
        """Bytes of the rows that nobody needs: the whole file, or their share of it."""
        return int(self.size * (self.needed.size - np.count_nonzero(self.needed)) // self.needed.size)


@dataclass
class Refusals:
    """The refusals of a generation, and which of them are needed."""

    keys: np.ndarray
    """``(n, 3)`` int64: content, column and version of each"""
    removed_in: np.ndarray
    """``(n,)`` int64: version from which on it does not hold"""
    needed: np.ndarray
    """``(n,)`` bool"""


def read_cards(folder: Path) -> list[BundleCard]:
    """Read the cards of all bundles.

    Raises
    ------
    RefusedError
        When one cannot be read: nobody knows which version its bundle relies on.
    """
    try:
        return [read_card(path) for path in card_paths(folder)]
    except (FormatError, OSError) as exc:
        raise RefusedError(
            f"{exc}; gc keeps the versions that bundles rely on, so nothing was collected: "
            f"restore the bundle, or move it out of the store"
        ) from exc


def find_needs(db: sqlite3.Connection, set_id: int, name: str, keep: Keep, cards: Iterable[BundleCard]) -> Needs:
    """Decide which versions of a set are kept, and what of its generations these need."""
    heads = db.execute(
        "SELECT h.version, h.generation_id, h.as_of, v.created FROM heads h JOIN versions v ON v.id = h.version "
        "WHERE h.set_id = ? AND h.collected IS NULL ORDER BY h.version DESC",
        (set_id,),
    ).fetchall()
    because: defaultdict[int, list[str]] = defaultdict(list)
    for version, reason in _reasons(db, set_id, name, [(row[0], row[3]) for row in heads], keep, cards):
        because[version].append(reason)
    points: defaultdict[int, set[int]] = defaultdict(set)
    for version, generation_id, as_of, _ in heads:
        if version in because:
            points[generation_id].add(as_of)
    same = [row[0] for row in heads if row[0] not in because and row[2] in points.get(row[1], ())]
    for version in same:
        because[version].append("the same state as another one")
    for generation_id in _live_generations(db, set_id):
        points[generation_id].add(LIVE)
    every = [row[0] for row in db.execute("SELECT id FROM generations WHERE set_id = ? ORDER BY id", (set_id,))]
    return Needs(
        set_id,
        tuple(Kept(row[0], tuple(because[row[0]])) for row in heads if row[0] in because),
        tuple(row[0] for row in heads if row[0] not in because),
        {generation_id: sorted(points[generation_id]) for generation_id in every},
    )


def mark_needed(
    db: sqlite3.Connection, needs: Needs, generations: Iterable[int] | None = None
) -> Iterator[tuple[int, list[StoredSegment], Refusals]]:
    """Give every segment and refusal of a set, by generation, with what is needed of it marked."""
    content, added, removed = _image_lives(db, needs.set_id)
    size = 1 + int(db.execute("SELECT value FROM meta WHERE key = 'next_content'").fetchone()[0])
    for generation_id in needs.points if generations is None else generations:
        segments, refusals = _segments(db, generation_id), _refusals(db, generation_id)
        for point in needs.points[generation_id]:
            images = np.bincount(content[(added <= point) & (point < removed)], minlength=size)
            for segment in segments:
                segment.mark(point, images)
            alive = (refusals.keys[:, 2] <= point) & (point < refusals.removed_in)
            refusals.needed |= alive & (images[refusals.keys[:, 0]] > 0)
        yield generation_id, segments, refusals


def _reasons(
    db: sqlite3.Connection,
    set_id: int,
    name: str,
    heads: Sequence[tuple[int, str]],
    keep: Keep,
    cards: Iterable[BundleCard],
) -> Iterator[tuple[int, str]]:
    """Give each version that is kept, as often as there are reasons."""
    since = (datetime.now(UTC) - timedelta(days=keep.days)).isoformat(timespec="seconds")
    followed = "9999"
    for place, (version, created) in enumerate(heads):
        if place == 0:
            yield version, "readers see it"
        elif place < keep.versions:
            yield version, f"one of the newest {keep.versions}"
        elif keep.days and followed > since:
            yield version, f"seen in the last {keep.days:g} days"
        followed = created
    for tag, version in db.execute("SELECT name, version FROM tags WHERE set_id = ? ORDER BY name", (set_id,)):
        yield version, f"tag {tag}"
    for card in cards:
        head = head_of(db, set_id, card.version) if card.set_name == name else None
        if head is not None and not head.collected:
            yield head.version, f"bundle {card.name}"


def _live_generations(db: sqlite3.Connection, set_id: int) -> list[int]:
    """Give the generations that must stay complete: read now, written last, or being filled.

    One that is older than what readers see, and that they have never seen, was given up.
    """
    head = head_of(db, set_id)
    rows = db.execute(
        "SELECT id FROM generations WHERE set_id = :set AND (id = :read OR id > :read "
        "AND id NOT IN (SELECT generation_id FROM heads) OR id = (SELECT generation_id FROM versions "
        "WHERE set_id = :set AND kind = 'sync' ORDER BY id DESC LIMIT 1))",
        {"set": set_id, "read": head.generation_id if head else 0},
    )
    return [row[0] for row in rows]


def _image_lives(db: sqlite3.Connection, set_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read content, first version and version of removal of every image, dead ones too: ``(n,)`` int64 each."""
    cursor = db.execute("SELECT content_id, added_in, removed_in FROM images WHERE set_id = ?", (set_id,))
    parts = [np.empty((0, 3), dtype=np.int64)]
    while rows := cursor.fetchmany(65_536):
        parts.append(np.array([(content, added, removed or _NEVER) for content, added, removed in rows]))
    content, added, removed = np.concatenate(parts).T
    return content, added, removed


def _segments(db: sqlite3.Connection, generation_id: int) -> list[StoredSegment]:
    rows = db.execute(
        "SELECT id, path, size, added_in, removed_in, contents, rows FROM segments WHERE generation_id = ? ORDER BY id",
        (generation_id,),
    )
    return [
        StoredSegment(segment_id, path, size, added_in, removed_in or _NEVER, unpack_ids(packed, n))
        for segment_id, path, size, added_in, removed_in, packed, n in rows
    ]


def _refusals(db: sqlite3.Connection, generation_id: int) -> Refusals:
    rows = db.execute(
        "SELECT content_id, column_id, added_in, removed_in FROM refusals "
        "WHERE column_id IN (SELECT id FROM columns WHERE generation_id = ?)",
        (generation_id,),
    ).fetchall()
    keys = np.array([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3)
    removed = np.array([row[3] or _NEVER for row in rows], dtype=np.int64)
    return Refusals(keys, removed, np.zeros(len(rows), dtype=bool))


def _turns(contents: np.ndarray) -> np.ndarray:
    """Count through the rows that a content has in a segment: ``(n,)``, 0 for the first one."""
    order = np.argsort(contents, kind="stable")
    ordered = contents[order]
    first = np.searchsorted(ordered, ordered)
    turns = np.empty(contents.size, dtype=np.int64)
    turns[order] = np.arange(contents.size) - first
    return turns
