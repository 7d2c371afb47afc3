"""Merge segments: many small files become few, their rows in the order of the images' ids.

Nothing that is read changes: the merged segments are alive from a new version on, and the old ones stay for the
versions before it until gc. Rows that no live image needs are left behind. Each source is checked against its
checksums first, so that damage is never copied under a fresh one.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import catalog
from .catalog import Generation
from .commit import Target, WrittenSegment, add_segment, add_version, next_version, set_head
from .contract import Column
from .copying import blocks_of, digests_of
from .errors import SetNotFoundError, StoreDamagedError
from .examine import check_file, recorded
from .heads import is_read
from .holdings import Holdings, unpack_ids
from .publishing import publish_segment
from .reading import alive_images, locate, names_of
from .session import writing

__all__ = ["Compaction", "choose_small", "compact_generation", "compact_store"]

COMPACT_PAST = 32
"""Small segments of a generation, past which a run merges some of them when it ends."""
SMALL = 64 << 20
"""Bytes of a segment that a run does not merge any more by itself: rewriting it costs more than one file saves."""
FEW_DUPLICATES = 0.05
"""Share of images up to which a content that several of them have is written once for each, so that the rows of the
segment are those of the matrix and need no copy."""


@dataclass(frozen=True)
class Compaction:
    """What was merged, or would be."""

    set_name: str
    """feature set"""
    generation: str
    """its generation's uuid"""
    segments_before: int
    """segments merged"""
    segments_after: int
    """segments that they became"""
    rows_before: int
    """rows of the segments merged"""
    rows_after: int
    """rows of those that they became: without rows that no live image needs"""
    version: int | None
    """version from which on they are read; None on a dry run"""


@dataclass(frozen=True)
class _Group:
    """Rows of one new segment."""

    columns: Mapping[Column, int]
    """its columns, with their rows in the catalog"""
    ids: list[bytes]
    """image id of each row"""
    contents: np.ndarray
    """``(n,)`` int64 content id of each row"""


def choose_small(db: sqlite3.Connection, generation_id: int) -> list[int]:
    """Choose the segments that a run merges by itself: none, or so many small ones that each row is rarely rewritten.

    From the smallest on, a segment is taken while it is at most twice as long as all before it together.
    """
    small = db.execute(
        "SELECT id, rows FROM segments WHERE generation_id = ? AND removed_in IS NULL AND size < ? ORDER BY rows, id",
        (generation_id, SMALL),
    ).fetchall()
    if len(small) <= COMPACT_PAST:
        return []
    chosen: list[int] = []
    total = 0
    for segment_id, rows in small:
        if chosen[1:] and rows > 2 * total:
            break
        chosen.append(segment_id)
        total += rows
    return chosen


def compact_store(
    folder: Path, set_name: str | None = None, *, dry_run: bool = False, command: str = ""
) -> list[Compaction]:
    """Merge all segments of the generations that are read or being filled; see ``FeatureStore.compact``."""
    opened = closing(catalog.connect(folder)) if dry_run else writing(folder, command=command)
    with opened as db:
        sets = db.execute("SELECT name, id FROM sets ORDER BY name").fetchall()
        if set_name is not None and set_name not in dict(sets):
            raise SetNotFoundError(folder, set_name, [name for name, _ in sets])
        done = [
            compact_generation(
                folder,
                db,
                name,
                generation,
                _live_segments(db, generation.id),
                command=command,
                run=uuid.uuid4().hex,
                dry_run=dry_run,
            )
            for name, set_id in sets
            if set_name in (None, name)
            for generation in _generations_in_use(db, set_id)
        ]
    return [one for one in done if one is not None]


def _generations_in_use(db: sqlite3.Connection, set_id: int) -> list[Generation]:
    """Give the generation that readers see, and those that no reader has seen yet."""
    head = catalog.head_of(db, set_id)
    rows = db.execute(
        "SELECT id FROM generations WHERE set_id = ? AND id NOT IN (SELECT generation_id FROM heads) OR id = ?",
        (set_id, head.generation_id if head else None),
    )
    return [catalog.generation_by_id(db, row[0]) for row in rows.fetchall()]


def _live_segments(db: sqlite3.Connection, generation_id: int) -> list[int]:
    rows = db.execute("SELECT id FROM segments WHERE generation_id = ? AND removed_in IS NULL", (generation_id,))
    return [row[0] for row in rows]


def compact_generation(
    folder: Path,
    db: sqlite3.Connection,
    set_name: str,
    generation: Generation,
    chosen: Sequence[int],
    *,
    command: str,
    run: str,
    dry_run: bool = False,
) -> Compaction | None:
    """Merge live segments of a generation; the caller holds the writer's lock.

    Returns
    -------
    Compaction or None
        None when they are as they would become: nothing was written.

    Raises
    ------
    StoreDamagedError
        When a segment is missing, or does not match its checksums; nothing was changed.
    """
    set_id = catalog.set_id_of(db, set_name)
    assert set_id is not None
    sources = _sources(db, chosen)
    column_ids = catalog.columns_of(db, generation.id)
    groups = list(_groups(db, set_id, column_ids, sources))
    if _is_done(sources, groups):
        return None
    facts = (set_name, generation.uuid, len(sources), len(groups), sum(len(s.contents) for s in sources))
    rows_after = sum(len(group.ids) for group in groups)
    if dry_run:
        return Compaction(*facts, rows_after, None)
    _require_sound(folder, db, chosen)
    as_of = next_version(db) - 1
    written = [_write(folder, db, set_name, generation, group, as_of) for group in groups]
    target = Target(set_id, generation.id, column_ids, command, run, 0, is_read(db, set_id, generation.id))
    with catalog.transaction(db):
        version = _commit(db, target, [source.id for source in sources], written, groups)
    return Compaction(*facts, rows_after, version)


@dataclass(frozen=True)
class _Source:
    id: int
    path: str
    contents: np.ndarray
    column_ids: frozenset[int]


def _sources(db: sqlite3.Connection, chosen: Sequence[int]) -> list[_Source]:
    found = []
    for segment_id in chosen:
        path, rows, packed = db.execute(
            "SELECT path, rows, contents FROM segments WHERE id = ?", (segment_id,)
        ).fetchone()
        columns = db.execute("SELECT column_id FROM segment_columns WHERE segment_id = ?", (segment_id,))
        found.append(_Source(segment_id, path, unpack_ids(packed, rows), frozenset(row[0] for row in columns)))
    return found


def _groups(
    db: sqlite3.Connection, set_id: int, column_ids: Mapping[Column, int], sources: Sequence[_Source]
) -> Iterator[_Group]:
    """Group the live contents of the sources by the columns that they have there, in the order of the images' ids."""
    bits = {column_id: 1 << position for position, column_id in enumerate(column_ids.values())}
    held = Holdings()
    for source in sources:
        held.add(source.contents, sum(bits[column_id] for column_id in source.column_ids))
    names: list[bytes] = []
    parts = [np.empty(0, dtype=np.int64)]
    for joined, some in alive_images(db, set_id):
        names += names_of(joined)
        parts.append(some)
    contents = np.concatenate(parts)
    for mask, places in held.groups(contents).items():
        kept = _without_duplicates(contents, places)
        columns = {column: column_id for column, column_id in column_ids.items() if mask & bits[column_id]}
        yield _Group(columns, [names[i] for i in kept.tolist()], contents[kept])


def _without_duplicates(contents: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Keep one image a content, the first, unless so few are alike that each image may have a row of its own."""
    _, first = np.unique(contents[places], return_index=True)
    few = places.size - first.size <= FEW_DUPLICATES * places.size
    return places if few else places[np.sort(first)]


def _is_done(sources: Sequence[_Source], groups: Sequence[_Group]) -> bool:
    """Say whether the sources are the groups already, row by row."""
    have = {(source.column_ids, source.contents.tobytes()) for source in sources}
    return len(sources) == len(groups) and have == {
        (frozenset(group.columns.values()), group.contents.tobytes()) for group in groups
    }


def _require_sound(folder: Path, db: sqlite3.Connection, chosen: Sequence[int]) -> None:
    for segment in recorded(db, chosen):
        if (finding := check_file(folder, segment)).what:
            raise StoreDamagedError(
                f"{folder / segment.path}: {'; '.join(finding.what)}; nothing was merged; "
                f"`icecore store repair` saves the rest"
            )


def _write(
    folder: Path, db: sqlite3.Connection, set_name: str, generation: Generation, group: _Group, as_of: int
) -> WrittenSegment:
    found = {
        column: locate(db, folder, group.contents, column, column_id, as_of)[0]
        for column, column_id in group.columns.items()
    }
    return publish_segment(
        folder,
        db,
        set_name,
        generation,
        group.ids,
        digests_of(next(iter(found.values()))),
        {column: blocks_of(places) for column, places in found.items()},
        source=generation.source,
        versions=generation.versions,
    )


def _commit(
    db: sqlite3.Connection,
    target: Target,
    replaced: Sequence[int],
    written: Sequence[WrittenSegment],
    groups: Sequence[_Group],
) -> int:
    version = next_version(db)
    add_version(db, target, version, "compact")
    for segment, group in zip(written, groups, strict=True):
        add_segment(db, target, segment, group.contents, version)
    db.executemany("UPDATE segments SET removed_in = ? WHERE id = ?", [(version, old) for old in replaced])
    if target.moves_head and catalog.head_of(db, target.set_id) is not None:
        set_head(db, target, version)
    return version
