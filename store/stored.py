"""The segments of a generation as a collection sees them: their rows, and which of these are needed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .contract import Column
from .holdings import unpack_ids

__all__ = ["NEVER", "StoredSegment", "load_segments"]

NEVER = (1 << 63) - 1
"""When what is alive was removed."""


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
    columns: int
    """mask of its columns, bits counted through those of the generation"""
    contents: np.ndarray
    """``(n,)`` int64: content of each row"""
    alive_from: int = field(init=False)
    """version from which on it is to be alive: ``added_in``, or an earlier one for which it stands in"""
    turns: np.ndarray = field(init=False)
    """``(n,)``: how many rows before have the same content"""
    needed: np.ndarray = field(init=False)
    """``(n,)`` bool: rows that are needed"""

    def __post_init__(self) -> None:
        self.alive_from = self.added_in
        self.turns = _turns(self.contents)
        self.needed = np.zeros(self.contents.size, dtype=bool)

    @property
    def freed(self) -> int:
        """Bytes of the rows that nobody needs: the whole file, or their share of it."""
        return int(self.size * (self.needed.size - np.count_nonzero(self.needed)) // self.needed.size)


def load_segments(db: sqlite3.Connection, generation_id: int, column_ids: Mapping[Column, int]) -> list[StoredSegment]:
    """Read the segments of a generation, in the order in which they were entered."""
    bits = {str(column_id): 1 << position for position, column_id in enumerate(column_ids.values())}
    rows = db.execute(
        "SELECT id, path, size, added_in, removed_in, contents, rows, "
        "(SELECT group_concat(c.column_id) FROM segment_columns c WHERE c.segment_id = id) "
        "FROM segments WHERE generation_id = ? ORDER BY id",
        (generation_id,),
    )
    return [
        StoredSegment(
            segment_id,
            path,
            size,
            added_in,
            NEVER if removed_in is None else removed_in,
            sum(bits[column_id] for column_id in columns.split(",")),
            unpack_ids(packed, n),
        )
        for segment_id, path, size, added_in, removed_in, packed, n, columns in rows
    ]


def _turns(contents: np.ndarray) -> np.ndarray:
    order = np.argsort(contents, kind="stable")
    ordered = contents[order]
    turns = np.empty(contents.size, dtype=np.int64)
    turns[order] = np.arange(contents.size) - np.searchsorted(ordered, ordered)
    return turns
