"""Which columns each content has: one small number a content, so that a million of them are two megabytes.

A content is its id in the catalog; a set of columns is a bit mask, the bits counted through a list of columns.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Sequence

import numpy as np

from .errors import StoreDamagedError

__all__ = ["Holdings", "load_held", "load_refused", "pack_ids", "unpack_ids"]

CURE = "`icecore store repair` puts it right"
_FIRST = 1024
_NOW, _THEN = "removed_in IS NULL", "added_in <= :v AND (removed_in IS NULL OR removed_in > :v)"


class Holdings:
    """A mask of columns for each content; contents never seen have none."""

    def __init__(self) -> None:
        self._kinds = np.zeros(_FIRST, dtype=np.uint16)  # content id -> which of the masks met so far
        self._masks = [0]
        self._index = {0: 0}

    def add(self, ids: np.ndarray, mask: int) -> None:
        """Give columns to contents, on top of those that they have."""
        if not ids.size:
            return
        self._grow(int(ids.max()) + 1)
        before = self._kinds[ids]
        for kind in np.unique(before).tolist():
            self._kinds[ids[before == kind]] = self._kind(self._masks[kind] | mask)

    def mask(self, content_id: int) -> int:
        """Give the columns of one content."""
        return self._masks[self._kinds[content_id]] if content_id < self._kinds.size else 0

    def holds(self, ids: np.ndarray, mask: int) -> np.ndarray:
        """Say which contents have all these columns: ``(n,)`` bool."""
        full = np.array([held & mask == mask for held in self._masks])
        if ids.size:
            self._grow(int(ids.max()) + 1)
        answer: np.ndarray = full[self._kinds[ids]]
        return answer

    def table(self, ids: np.ndarray, bits: Sequence[int]) -> np.ndarray:
        """Say which contents have which columns, given by their bits: ``(n, columns)`` bool."""
        columns = [self.holds(ids, bit) for bit in bits]
        return np.stack(columns, axis=1) if columns else np.zeros((ids.size, 0), dtype=bool)

    def groups(self, ids: np.ndarray) -> dict[int, np.ndarray]:
        """Group contents by their columns: mask -> positions in ``ids``; those without any are left out."""
        if not ids.size:
            return {}
        self._grow(int(ids.max()) + 1)
        kinds = self._kinds[ids]
        return {self._masks[kind]: np.flatnonzero(kinds == kind) for kind in np.unique(kinds).tolist() if kind}

    def lacking(self, ids: np.ndarray, mask: int) -> dict[int, np.ndarray]:
        """Group contents by those of these columns that they lack: mask -> positions in ``ids``; nothing, left out."""
        if not ids.size:
            return {}
        self._grow(int(ids.max()) + 1)
        kinds = self._kinds[ids]
        groups: dict[int, list[np.ndarray]] = {}
        for kind in np.unique(kinds).tolist():
            if missing := mask & ~self._masks[kind]:
                groups.setdefault(missing, []).append(np.flatnonzero(kinds == kind))
        return {missing: np.sort(np.concatenate(parts)) for missing, parts in groups.items()}

    def is_empty(self, ids: np.ndarray) -> np.ndarray:
        """Say which contents have no column at all: ``(n,)`` bool."""
        empty = np.array([held == 0 for held in self._masks])
        if ids.size:
            self._grow(int(ids.max()) + 1)
        answer: np.ndarray = empty[self._kinds[ids]]
        return answer

    def flags(self, mask: int) -> bytes:
        """Give a byte for each content up to the last one met: 1 where it has all these columns."""
        full = np.array([held & mask == mask for held in self._masks], dtype=np.uint8)
        return full[self._kinds].tobytes()

    def _kind(self, mask: int) -> int:
        if mask not in self._index:
            self._index[mask] = len(self._masks)
            self._masks.append(mask)
        return self._index[mask]

    def _grow(self, size: int) -> None:
        if size > self._kinds.size:
            kinds = np.zeros(max(size, 2 * self._kinds.size), dtype=np.uint16)
            kinds[: self._kinds.size] = self._kinds
            self._kinds = kinds


def load_held(
    db: sqlite3.Connection, generation_id: int, column_ids: Sequence[int], as_of: int | None = None
) -> Holdings:
    """Read which of these columns the segments of a generation hold, now or as of a version."""
    held = Holdings()
    bits = {column_id: 1 << position for position, column_id in enumerate(column_ids)}
    for rows, contents, columns in db.execute(
        "SELECT rows, contents, (SELECT group_concat(c.column_id) FROM segment_columns c WHERE c.segment_id = id) "
        f"FROM segments WHERE generation_id = :g AND {_NOW if as_of is None else _THEN}",
        {"g": generation_id, "v": as_of},
    ):
        mask = 0
        for column_id in columns.split(","):
            mask |= bits.get(int(column_id), 0)
        held.add(unpack_ids(contents, rows), mask)
    return held


def load_refused(db: sqlite3.Connection, column_ids: Sequence[int], as_of: int | None = None) -> Holdings:
    """Read which of these columns cannot hold a content, now or as of a version."""
    refused = Holdings()
    alive = _NOW if as_of is None else _THEN
    for position, column_id in enumerate(column_ids):
        rows = db.execute(
            f"SELECT content_id FROM refusals WHERE column_id = :c AND {alive}", {"c": column_id, "v": as_of}
        )
        refused.add(np.fromiter((row[0] for row in rows), dtype=np.int64), 1 << position)
    return refused


def pack_ids(ids: np.ndarray) -> bytes:
    """Pack content ids, ``(n,)`` int64: the differences of neighbours, little-endian int64, deflated."""
    return zlib.compress(np.diff(ids, prepend=np.int64(0)).astype("<i8").tobytes(), 1)


def unpack_ids(packed: bytes, rows: int) -> np.ndarray:
    """Give back what ``pack_ids`` took: ``(rows,)`` int64.

    Raises
    ------
    StoreDamagedError
        When the value is not what was packed.
    """
    try:
        ids = np.cumsum(np.frombuffer(zlib.decompress(packed), dtype="<i8"), dtype=np.int64)
    except (zlib.error, ValueError) as exc:
        raise StoreDamagedError(
            f"the catalog's list of the rows of a segment cannot be unpacked ({exc}); {CURE}"
        ) from exc
    if ids.size != rows:
        raise StoreDamagedError(f"the catalog lists {ids.size:,} rows of a segment that has {rows:,}; {CURE}")
    return ids
