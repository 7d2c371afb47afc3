"""Write a segment anew with some of its rows: the same place in the catalog, another file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from . import catalog
from .commit import WrittenSegment
from .contract import Column
from .copying import blocks_of
from .errors import StoreDamagedError
from .holdings import pack_ids
from .places import Extent, Places
from .publishing import publish_segment
from .segment import check_arrays, read_header, read_identity
from .stored import StoredSegment

__all__ = ["discard_segments", "enter_rewritten", "publish_rewritten"]


def publish_rewritten(
    folder: Path, db: sqlite3.Connection, set_name: str, generation: catalog.Generation, segment: StoredSegment
) -> WrittenSegment:
    """Write the needed rows of a segment to a file of their own, which ``enter_rewritten`` puts in its place.

    Raises
    ------
    StoreDamagedError
        When the segment does not match its checksums: damage must not be copied under fresh ones.
    """
    path = folder / segment.path
    _require_sound(path)
    header = read_header(path)
    ids, digests = read_identity(path)
    rows = np.flatnonzero(segment.needed)
    offsets = dict(
        db.execute("SELECT column_id, offset FROM segment_columns WHERE segment_id = ?", (segment.id,)).fetchall()
    )
    which = np.zeros(rows.size, dtype=np.int32)
    places = {
        column: Places(column, (Extent(path, segment.needed.size, offsets[column_id], column),), which, rows)
        for column, column_id in catalog.columns_of(db, generation.id).items()
        if column_id in offsets
    }
    return publish_segment(
        folder,
        db,
        set_name,
        generation,
        [ids[row] for row in rows.tolist()],
        [digests[row].tobytes() for row in rows.tolist()],
        {column: blocks_of(place) for column, place in places.items()},
        source=header.source,
        versions=header.versions,
        created=header.created,  # the rows are as old as they were: a repair takes the latest word on an image
    )


def enter_rewritten(
    db: sqlite3.Connection, segment: StoredSegment, written: WrittenSegment, column_ids: Mapping[Column, int]
) -> None:
    """Put a file in the place of a segment, inside the caller's transaction; the old one is left to the sweep."""
    _note_files(db, [segment.id])
    contents = segment.contents[segment.needed]
    db.execute(
        "UPDATE segments SET uuid = ?, path = ?, rows = ?, size = ?, checksum = ?, contents = ? WHERE id = ?",
        (
            written.uuid,
            written.path,
            contents.size,
            written.size,
            written.checksum,
            pack_ids(contents),
            segment.id,
        ),
    )
    db.executemany(
        "UPDATE segment_columns SET offset = ? WHERE segment_id = ? AND column_id = ?",
        [(offset, segment.id, column_ids[column]) for column, offset in written.offsets.items()],
    )
    db.execute("DELETE FROM intents WHERE uuid = ?", (written.uuid,))


def discard_segments(db: sqlite3.Connection, segment_ids: Iterable[int]) -> None:
    """Take segments out of the catalog, inside the caller's transaction; their files are left to the sweep."""
    segment_ids = list(segment_ids)
    _note_files(db, segment_ids)
    for table, key in (("segment_columns", "segment_id"), ("segments", "id")):
        db.executemany(f"DELETE FROM {table} WHERE {key} = ?", [(segment_id,) for segment_id in segment_ids])


def _note_files(db: sqlite3.Connection, segment_ids: Iterable[int]) -> None:
    db.executemany("INSERT INTO intents SELECT uuid, path FROM segments WHERE id = ?", [(one,) for one in segment_ids])


def _require_sound(path: Path) -> None:
    try:
        damaged = check_arrays(path)
    except (OSError, KeyError, RuntimeError) as exc:
        raise StoreDamagedError(f"{path}: cannot be read ({exc})") from exc
    if damaged:
        raise StoreDamagedError(f"{path}: bytes changed in {', '.join(damaged)}")
