"""What gc keeps: the versions that somebody may want, and what of each generation these need.

A need is a generation as of a version, or as it is now (``LIVE``); ``needed`` says which rows that makes.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .bundles import BundleCard, card_paths, read_card
from .catalog import head_of
from .errors import FormatError, RefusedError

__all__ = ["LIVE", "Keep", "Kept", "Needs", "find_needs", "read_cards"]

LIVE = 1 << 62
"""Stands for "as it is now": behind every version."""


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
    until = followed = "9999"
    for place, (version, created) in enumerate(heads):
        until = followed if followed >= created else until  # else a clock was set back: as the one after it
        if place == 0:
            yield version, "readers see it"
        elif place < keep.versions:
            yield version, f"one of the newest {keep.versions}"
        elif keep.days and until > since:
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
