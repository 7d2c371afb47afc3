"""Which generation readers may see: it must not fall behind what another one has recorded since."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from .catalog import head_of
from .holdings import load_held, load_refused
from .reading import alive_images, names_of

__all__ = ["count_uncovered", "excused", "is_read"]

_FACTS_OF_THE_BYTES = " AND kind IN ('decode', 'too-large', 'unsupported')"


def is_read(db: sqlite3.Connection, set_id: int, generation_id: int) -> bool:
    """Say whether commits to a generation are seen at once: readers see it, and nothing has happened that they do not.

    What they do not see: rows of another generation, or, after a revert, those that were reverted.
    """
    head = head_of(db, set_id)
    if head is None:
        return True
    latest = db.execute("SELECT max(id) FROM versions WHERE set_id = ? AND kind = 'sync'", (set_id,)).fetchone()[0]
    return head.generation_id == generation_id and latest <= head.as_of


def count_uncovered(db: sqlite3.Connection, set_id: int, generation_id: int, column_ids: Sequence[int]) -> int:
    """Count the live images that keep a generation from being read: they lack a column, and nothing says why."""
    held, refused = load_held(db, generation_id, column_ids), load_refused(db, column_ids)
    everything = (1 << len(column_ids)) - 1
    failed = excused(db, set_id, generation_id)
    uncovered = 0
    for names, contents in alive_images(db, set_id):
        lacking = ~held.holds(contents, everything)
        if lacking.any():
            keys = names_of(names)
            uncovered += sum(
                (held.mask(contents[i]) | refused.mask(contents[i])) != everything and keys[i] not in failed
                for i in lacking.nonzero()[0].tolist()
            )
    return uncovered


def excused(db: sqlite3.Connection, set_id: int, generation_id: int) -> set[bytes]:
    """Give the images whose failure says why a generation has no features of theirs.

    A file that could not be read this time does not end the life of features that another generation has, so only
    failures that are facts of the bytes count where the generation would replace another one.
    """
    head = head_of(db, set_id)
    replaces = head is not None and head.generation_id != generation_id
    query = "SELECT id FROM failures WHERE generation_id = ? AND removed_in IS NULL" + (
        _FACTS_OF_THE_BYTES if replaces else ""
    )
    return {row[0] for row in db.execute(query, (generation_id,))}
