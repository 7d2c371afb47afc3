"""Catalogs of format 1, brought to format 2.

Format 1 kept a row a vector and the clock of each look at a file; format 2 packs the contents of a segment into one
value and keeps only what followed from the clock, which halves the catalog.
"""

from __future__ import annotations

import sqlite3

import numpy as np

from .holdings import pack_ids
from .scan import RACY_NS

__all__ = ["migrate"]

_OLD = (
    "versions", "generations", "heads", "columns", "segments", "segment_columns", "contents", "vectors", "images",
    "failures", "refusals", "intents", "sets",
)  # fmt: skip
_RACY = f"max(mtime_ns, ctime_ns) > checked_ns - {RACY_NS}"
_COPY = f"""
INSERT INTO sets SELECT * FROM old_sets;
INSERT INTO generations SELECT * FROM old_generations;
INSERT INTO versions
    SELECT id, set_id, generation_id, 'sync', '', command, created, added, changed, removed, failed FROM old_versions;
INSERT INTO heads SELECT set_id, version, generation_id, as_of, NULL FROM old_heads;
INSERT INTO columns SELECT * FROM old_columns;
INSERT INTO contents SELECT sha256, id FROM old_contents;
INSERT INTO images
    SELECT set_id, id, added_in, removed_in, content_id, size, mtime_ns, ctime_ns, {_RACY} FROM old_images;
INSERT INTO failures
    SELECT generation_id, id, added_in, removed_in, kind, reason, attempts, first_at, last_at,
        size, mtime_ns, ctime_ns, {_RACY} FROM old_failures;
INSERT INTO refusals SELECT * FROM old_refusals;
INSERT INTO intents SELECT * FROM old_intents;
INSERT INTO meta SELECT 'next_content', coalesce(max(id), 0) + 1 FROM old_contents;
UPDATE meta SET value = '2' WHERE key = 'format_version'"""


def migrate(db: sqlite3.Connection, schema: list[str]) -> None:
    """Rewrite a catalog of format 1 in format 2, inside the caller's transaction.

    Foreign keys must be off: tables are renamed and dropped.
    """
    db.execute("DROP INDEX live_images")
    db.execute("DROP INDEX live_failures")
    for table in _OLD:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in schema:
        if "CREATE TABLE meta" not in statement:
            db.execute(statement)
    for statement in _COPY.split(";\n"):
        db.execute(statement)
    segments = "SELECT id, uuid, generation_id, path, rows, size, checksum, added_in, removed_in FROM old_segments"
    for row in db.execute(segments).fetchall():
        ids = db.execute("SELECT content_id FROM old_vectors WHERE segment_id = ? ORDER BY row", (row[0],))
        packed = pack_ids(np.fromiter((content for (content,) in ids), dtype=np.int64))
        db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, packed))
    db.execute("INSERT INTO segment_columns SELECT * FROM old_segment_columns")
    for table in _OLD:
        db.execute(f"DROP TABLE old_{table}")
