"""Where the rows of a column lie, and how they come together into one array."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from .contract import Column, Dtype
from .segment import map_column

__all__ = ["Location", "gather", "locate"]


@dataclass(frozen=True)
class Location:
    """The rows of one column that are alive in one segment."""

    path: str
    """segment file, relative to the store"""
    segment_rows: int
    """rows of the whole segment"""
    offset: int
    """byte offset of the column's data in the file"""
    rows: np.ndarray
    """``(k,)`` int64, rows in the segment"""
    places: np.ndarray
    """``(k,)`` int64, where each goes in the result"""

    def select(self, kept: np.ndarray, place: np.ndarray) -> Self:
        """Keep some rows, and send each to its new place."""
        return type(self)(self.path, self.segment_rows, self.offset, self.rows[kept], place[self.places[kept]])

    @property
    def is_whole(self) -> bool:
        """True when it is a whole segment in its own order."""
        return self.rows.size == self.segment_rows and bool(
            (self.rows == np.arange(self.segment_rows)).all() and (self.places == self.rows).all()
        )


def locate(db: sqlite3.Connection, set_id: int, column_id: int, as_of: int) -> tuple[list[bytes], list[Location]]:
    """Find the rows of a column that are alive as of a version.

    Returns
    -------
    keys : list of bytes
        Encoded image ids, ordered.
    locations : list of Location
        One a segment; their ``places`` together count through the keys.
    """
    segments: dict[int, tuple[str, int, int]] = {
        row[0]: (row[1], row[2], row[3])
        for row in db.execute(
            "SELECT s.id, s.path, s.rows, c.offset FROM segments s JOIN segment_columns c ON c.segment_id = s.id "
            "WHERE c.column_id = ? AND s.added_in <= ? AND (s.removed_in IS NULL OR s.removed_in > ?)",
            (column_id, as_of, as_of),
        )
    }
    keys: list[bytes] = []
    rows: dict[int, tuple[list[int], list[int]]] = {segment: ([], []) for segment in segments}
    for key, segment, row in db.execute(
        "SELECT i.id, v.segment_id, v.row FROM images i JOIN vectors v ON v.content_id = i.content_id "
        "WHERE i.set_id = ? AND i.added_in <= ? AND (i.removed_in IS NULL OR i.removed_in > ?) ORDER BY i.id",
        (set_id, as_of, as_of),
    ):
        if segment in segments:
            rows[segment][0].append(row)
            rows[segment][1].append(len(keys))
            keys.append(key)
    return keys, [
        Location(*segments[segment], np.array(taken, dtype=np.int64), np.array(places, dtype=np.int64))
        for segment, (taken, places) in rows.items()
        if taken
    ]


def gather(folder: Path, parts: list[tuple[Column, list[Location]]], n: int, dtype: Dtype | None) -> np.ndarray:
    """Bring columns together side by side: ``(n, D)``.

    With dtype None, one column that is one whole segment comes back as its read-only memory map.
    """
    if dtype is None and len(parts) == 1:
        (column, locations), *_ = parts
        if len(locations) == 1 and locations[0].is_whole:
            return _map(folder, column, locations[0])
    kind = dtype or np.result_type(*(column.dtype for column, _ in parts))
    X = np.empty((n, sum(column.width for column, _ in parts)), dtype=kind)
    left = 0
    for column, locations in parts:
        for location in locations:
            source = _map(folder, column, location)
            _copy_rows(source, location.rows, X[:, left : left + column.width], location.places)
        left += column.width
    return X


def _copy_rows(source: np.ndarray, rows: np.ndarray, target: np.ndarray, places: np.ndarray) -> None:
    """Copy ``source[rows]`` to ``target[places]``; stretches that lie together on both sides go in one piece."""
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
    if breaks.size > rows.size // 8:  # scattered: index, some thousand rows at a time
        for part in np.array_split(np.arange(rows.size), range(4096, rows.size, 4096)):
            target[places[part]] = source[rows[part]]
        return
    for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), rows.size], strict=True):
        target[places[start] : places[start] + stop - start] = source[rows[start] : rows[start] + stop - start]


def _map(folder: Path, column: Column, location: Location) -> np.ndarray:
    return map_column(folder / location.path, column, location.segment_rows, location.offset)
