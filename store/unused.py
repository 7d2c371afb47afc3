"""What nothing in the catalog refers to any more, and the room that it leaves there."""

from __future__ import annotations

import logging
import sqlite3

import numpy as np

from .catalog import CATALOG
from .holdings import unpack_ids

__all__ = ["forget_unused", "shrink"]

log = logging.getLogger(__name__)

VACUUM_PAST = 0.25
"""Share of free pages past which the catalog is written anew: commits fill free pages again."""


def forget_unused(db: sqlite3.Connection) -> None:
    """Take out contents, columns and generations that nothing refers to, inside the caller's transaction."""
    every = np.array([row[0] for row in db.execute("SELECT id FROM contents")], dtype=np.int64)
    unused = np.setdiff1d(every, _used_contents(db), assume_unique=True)
    if unused.size:
        db.execute("CREATE TEMP TABLE IF NOT EXISTS unused (id INTEGER PRIMARY KEY)")
        db.execute("DELETE FROM unused")
        db.executemany("INSERT INTO unused VALUES (?)", [(content_id,) for content_id in unused.tolist()])
        db.execute("DELETE FROM contents WHERE id IN (SELECT id FROM unused)")
    db.execute(
        "DELETE FROM columns WHERE id NOT IN (SELECT column_id FROM segment_columns) "
        "AND id NOT IN (SELECT column_id FROM refusals)"
    )
    users = ("versions", "heads", "segments", "failures", "columns")
    unused_by = " AND ".join(f"id NOT IN (SELECT generation_id FROM {table})" for table in users)
    db.execute(
        f"DELETE FROM generations WHERE {unused_by} "
        "AND id NOT IN (SELECT parent_id FROM generations WHERE parent_id IS NOT NULL)"
    )


def shrink(db: sqlite3.Connection) -> int:
    """Write the catalog anew where much of it is free; give the bytes by which it shrank."""
    pages, free = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "freelist_count"))
    if free <= VACUUM_PAST * pages:
        return 0
    try:
        db.execute("VACUUM")
    except sqlite3.OperationalError as exc:
        log.warning("%s was not written anew and stays as large as it was (%s)", CATALOG, exc)
        return 0
    size, after = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_size", "page_count"))
    return int(size * (pages - after))


def _used_contents(db: sqlite3.Connection) -> np.ndarray:
    """Give the contents that an image, a segment or a refusal has: ``(n,)`` int64, each once."""
    parts = [
        np.array([row[0] for row in db.execute(f"SELECT content_id FROM {table}")], dtype=np.int64)
        for table in ("images", "refusals")
    ]
    for packed, rows in db.execute("SELECT contents, rows FROM segments"):
        parts.append(unpack_ids(packed, rows))
    return np.unique(np.concatenate(parts))
