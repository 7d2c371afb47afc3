"""Write a segment anew with some of its rows: the same place in the catalog, another file."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import catalog
from .commit import WrittenSegment
from .contract import Column
from .copying import blocks_of
from .errors import StoreDamagedError
from .examine import check_file, recorded
from .holdings import pack_ids
from .layout import layout_of, read_digests, read_ids
from .places import Extent, Places
from .publishing import publish_segment
from .segment import SegmentHeader
from .stored import StoredSegment

__all__ = ["discard_segments", "enter_rewritten", "publish_rewritten", "write_rows"]


def write_rows(
    folder: Path,
    db: sqlite3.Connection,
    header: SegmentHeader,
    generation: catalog.Generation,
    path: str,
    offsets: Mapping[Column, int],
    rows: np.ndarray,
    ids: Sequence[bytes],
    digests: Sequence[bytes],
    *,
    dry_run: bool = False,
) -> WrittenSegment:
    """Write some rows and columns of a segment as a new one, as old as the first: its ids, the last word on an image.

    Parameters
    ----------
    folder, db
        The store, and its catalog open for writing, outside a transaction.
    header
        What the first segment says of itself.
    generation
        Where the new one belongs.
    path, offsets
        The first segment's file, relative to the store, and where the columns wanted begin in it.
    rows
        ``(n,)`` int64: rows wanted, in their new order.
    ids, digests
        Image id and content of each of these.
    dry_run
        Write nothing, and give what would be written under a name that is made up.
    """
    if dry_run:
        name = uuid.uuid4().hex
        relative = f"segments/{header.set_name}/{generation.uuid}/{name}.h5"
        return WrittenSegment(name, relative, 0, "", dict.fromkeys(offsets, 0), digests)
    which = np.zeros(rows.size, dtype=np.int32)
    places = {
        column: Places(column, (Extent(folder / path, header.rows, offset, column),), which, rows.astype(np.int64))
        for column, offset in offsets.items()
    }
    return publish_segment(
        folder,
        db,
        header.set_name,
        generation,
        ids,
        digests,
        {column: blocks_of(where) for column, where in places.items()},
        source=header.source,
        versions=header.versions,
        created=header.created,
    )


def publish_rewritten(
    folder: Path, db: sqlite3.Connection, set_name: str, generation: catalog.Generation, segment: StoredSegment
) -> WrittenSegment:
    """Write the needed rows of a segment to a file of their own, which ``enter_rewritten`` puts in its place.

    Raises
    ------
    StoreDamagedError
        When the segment does not match its checksums: damage must not be copied under fresh ones.
    """
    (entry,) = recorded(db, [segment.id])
    path = folder / segment.path
    if what := check_file(folder, entry).what:
        raise StoreDamagedError(f"{path}: {'; '.join(what)}")
    layout, rows = layout_of(path), np.flatnonzero(segment.needed)
    ids, digests = read_ids(path, layout), read_digests(path, layout)
    return write_rows(
        folder,
        db,
        layout.header,
        generation,
        segment.path,
        entry.columns,
        rows,
        [ids[row] for row in rows.tolist()],
        [digests[row] for row in rows.tolist()],
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
