"""Which generation readers may see: it must not fall behind what another one has recorded since."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .catalog import head_of

__all__ = ["count_uncovered", "is_read"]

_LACKING = (
    "SELECT count(*) FROM images i WHERE i.set_id = :set AND i.removed_in IS NULL AND NOT EXISTS ("
    "  SELECT 1 FROM vectors v JOIN segment_columns c ON c.segment_id = v.segment_id AND c.column_id = :column"
    "  JOIN segments s ON s.id = v.segment_id AND s.removed_in IS NULL WHERE v.content_id = i.content_id)"
    " AND NOT EXISTS (SELECT 1 FROM refusals r WHERE r.content_id = i.content_id AND r.column_id = :column"
    "  AND r.removed_in IS NULL)"
    " AND NOT EXISTS (SELECT 1 FROM failures f WHERE f.generation_id = :generation AND f.id = i.id"
    "  AND f.removed_in IS NULL"
)
_FACTS_OF_THE_BYTES = " AND f.kind IN ('decode', 'too-large', 'unsupported')"


def is_read(db: sqlite3.Connection, set_id: int, generation_id: int) -> bool:
    """Say whether commits to a generation are seen at once: it is the one read, and no other has moved images since."""
    head = head_of(db, set_id)
    if head is None:
        return True
    moved = db.execute(
        "SELECT 1 FROM versions WHERE set_id = ? AND id > ? AND generation_id != ? LIMIT 1",
        (set_id, head.as_of, generation_id),
    ).fetchone()
    return head.generation_id == generation_id and moved is None


def count_uncovered(db: sqlite3.Connection, set_id: int, generation_id: int, column_ids: Sequence[int]) -> int:
    """Count the live images that keep a generation from being read: they lack a column, and nothing says why.

    A file that could not be read this time does not end the life of features that another generation has, so only
    failures that are facts of the bytes count where the generation would replace another one.
    """
    head = head_of(db, set_id)
    replaces = head is not None and head.generation_id != generation_id
    query = _LACKING + (_FACTS_OF_THE_BYTES if replaces else "") + ")"
    facts = {"set": set_id, "generation": generation_id}
    return max((db.execute(query, {**facts, "column": c}).fetchone()[0] for c in column_ids), default=0)
