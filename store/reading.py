"""What is alive as of a version, where the rows of a column lie, and how they come together into one array.

The queries run inside one read transaction of the caller, so that they all see the same commit.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from .catalog import Head, columns_of
from .contract import Column, Dtype
from .segment import map_column

__all__ = [
    "Location",
    "align",
    "columns_as_of",
    "count_as_of",
    "failures_as_of",
    "gather",
    "ids_as_of",
    "lacking_as_of",
    "locate",
]

_HAS_COLUMN = (
    "EXISTS (SELECT 1 FROM vectors v JOIN segment_columns c ON c.segment_id = v.segment_id AND c.column_id = :column"
    " JOIN segments s ON s.id = v.segment_id AND s.added_in <= :v AND (s.removed_in IS NULL OR s.removed_in > :v)"
    " WHERE v.content_id = i.content_id)"
)
_ALIVE = "i.set_id = :set AND i.added_in <= :v AND (i.removed_in IS NULL OR i.removed_in > :v)"


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


def columns_as_of(db: sqlite3.Connection, head: Head) -> dict[Column, int]:
    """Give the columns of a generation that some row has, with their rows in the catalog."""
    rows = db.execute(
        "SELECT DISTINCT c.column_id FROM segments s JOIN segment_columns c ON c.segment_id = s.id "
        "WHERE s.generation_id = ? AND s.added_in <= ? AND (s.removed_in IS NULL OR s.removed_in > ?)",
        (head.generation_id, head.as_of, head.as_of),
    )
    filled = {row[0] for row in rows}
    return {c: column_id for c, column_id in columns_of(db, head.generation_id).items() if column_id in filled}


def ids_as_of(db: sqlite3.Connection, set_id: int, head: Head) -> list[bytes]:
    """Give the images that have any vector, ordered."""
    rows = db.execute(
        f"SELECT i.id FROM images i WHERE {_ALIVE} AND EXISTS ("
        "  SELECT 1 FROM vectors v JOIN segments s ON s.id = v.segment_id WHERE v.content_id = i.content_id"
        "  AND s.generation_id = :g AND s.added_in <= :v AND (s.removed_in IS NULL OR s.removed_in > :v))"
        " ORDER BY i.id",
        {"set": set_id, "v": head.as_of, "g": head.generation_id},
    )
    return [row[0] for row in rows]


def count_as_of(db: sqlite3.Connection, set_id: int, column_id: int, as_of: int) -> int:
    """Count the images that have a column."""
    facts = {"set": set_id, "v": as_of, "column": column_id}
    query = f"SELECT count(*) FROM images i WHERE {_ALIVE} AND {_HAS_COLUMN}"
    return int(db.execute(query, facts).fetchone()[0])


def lacking_as_of(db: sqlite3.Connection, set_id: int, column_id: int, head: Head) -> int:
    """Count the images that should have a column and have not: neither failed nor refused by it."""
    live = "{0}.added_in <= :v AND ({0}.removed_in IS NULL OR {0}.removed_in > :v)"
    row = db.execute(
        f"SELECT count(*) FROM images i WHERE {_ALIVE} AND NOT {_HAS_COLUMN}"
        " AND NOT EXISTS (SELECT 1 FROM failures f WHERE f.generation_id = :g AND f.id = i.id"
        f" AND {live.format('f')})"
        " AND NOT EXISTS (SELECT 1 FROM refusals r WHERE r.content_id = i.content_id AND r.column_id = :column"
        f" AND {live.format('r')})",
        {"set": set_id, "v": head.as_of, "g": head.generation_id, "column": column_id},
    ).fetchone()
    return int(row[0])


def failures_as_of(db: sqlite3.Connection, set_id: int, head: Head) -> list[tuple[bytes, str, str, int, str, str]]:
    """Give the failures as (id, kind, reason, attempts, first_at, last_at), ordered by id."""
    files = db.execute(
        "SELECT id, kind, reason, attempts, first_at, last_at FROM failures "
        "WHERE generation_id = ? AND added_in <= ? AND (removed_in IS NULL OR removed_in > ?)",
        (head.generation_id, head.as_of, head.as_of),
    ).fetchall()
    values = db.execute(
        "SELECT i.id, 'value', group_concat(r.reason, '; '), 1, min(r.at), max(r.at) FROM refusals r "
        "JOIN columns c ON c.id = r.column_id AND c.generation_id = :g "
        f"JOIN images i ON i.content_id = r.content_id AND {_ALIVE} "
        "WHERE r.added_in <= :v AND (r.removed_in IS NULL OR r.removed_in > :v) GROUP BY i.id",
        {"set": set_id, "v": head.as_of, "g": head.generation_id},
    ).fetchall()
    return sorted([*files, *values])


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
        "JOIN segment_columns c ON c.segment_id = v.segment_id AND c.column_id = ? "
        "WHERE i.set_id = ? AND i.added_in <= ? AND (i.removed_in IS NULL OR i.removed_in > ?) ORDER BY i.id",
        (column_id, set_id, as_of, as_of),
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


def align(found: list[tuple[list[bytes], list[Location]]]) -> tuple[list[bytes], list[list[Location]]]:
    """Keep the images that every column has, with the places that they take then."""
    keys = found[0][0]
    if all(other == keys for other, _ in found[1:]):
        return keys, [locations for _, locations in found]
    common = set(keys).intersection(*(other for other, _ in found[1:]))
    return [key for key in keys if key in common], [_keep(other, locations, common) for other, locations in found]


def _keep(keys: list[bytes], locations: list[Location], common: set[bytes]) -> list[Location]:
    kept = np.array([key in common for key in keys], dtype=bool)
    place = np.cumsum(kept) - 1
    chosen = (location.select(kept[location.places], place) for location in locations)
    return [location for location in chosen if location.rows.size]


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
