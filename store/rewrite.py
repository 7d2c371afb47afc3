"""Write a segment anew with some of its rows: the same place in the catalog, another file."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

from . import catalog
from .copying import blocks_of
from .errors import StoreDamagedError
from .holdings import pack_ids
from .needs import StoredSegment
from .places import Extent, Places
from .publishing import publish_segment
from .segment import check_arrays, read_header, read_identity

__all__ = ["discard_segments", "rewrite_segment"]


def rewrite_segment(
    folder: Path, db: sqlite3.Connection, set_name: str, generation: catalog.Generation, segment: StoredSegment
) -> int:
    """Replace a segment by one that has its needed rows only, alive as long; its old file is left to the sweep.

    Returns
    -------
    int
        Bytes by which the new file is smaller.

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
    column_ids = {c: i for c, i in catalog.columns_of(db, generation.id).items() if i in offsets}
    places = {
        column: Places(
            column,
            (Extent(path, segment.needed.size, offsets[column_id], column),),
            np.zeros(rows.size, dtype=np.int32),
            rows.astype(np.int64),
        )
        for column, column_id in column_ids.items()
    }
    written = publish_segment(
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
    with catalog.transaction(db):
        _note_files(db, [segment.id])
        db.execute(
            "UPDATE segments SET uuid = ?, path = ?, rows = ?, size = ?, checksum = ?, contents = ? WHERE id = ?",
            (
                written.uuid,
                written.path,
                rows.size,
                written.size,
                written.checksum,
                pack_ids(segment.contents[rows]),
                segment.id,
            ),
        )
        db.executemany(
            "UPDATE segment_columns SET offset = ? WHERE segment_id = ? AND column_id = ?",
            [(offset, segment.id, column_ids[column]) for column, offset in written.offsets.items()],
        )
        db.execute("DELETE FROM intents WHERE uuid = ?", (written.uuid,))
    return segment.size - written.size


def discard_segments(db: sqlite3.Connection, segment_ids: list[int]) -> None:
    """Take segments out of the catalog, inside the caller's transaction; their files are left to the sweep."""
    _note_files(db, segment_ids)
    for table, key in (("segment_columns", "segment_id"), ("segments", "id")):
        db.executemany(f"DELETE FROM {table} WHERE {key} = ?", [(segment_id,) for segment_id in segment_ids])


def _note_files(db: sqlite3.Connection, segment_ids: list[int]) -> None:
    db.executemany("INSERT INTO intents SELECT uuid, path FROM segments WHERE id = ?", [(one,) for one in segment_ids])


def _require_sound(path: Path) -> None:
    try:
        damaged = check_arrays(path)
    except (OSError, KeyError, RuntimeError) as exc:
        raise StoreDamagedError(f"{path}: cannot be read ({exc})") from exc
    if damaged:
        raise StoreDamagedError(f"{path}: bytes changed in {', '.join(damaged)}")
