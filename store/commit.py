"""One commit's rows in the catalog. Every function here runs inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .buffers import Buffers, Failed, Row
from .catalog import now, printable
from .contract import Column
from .scan import RACY_NS, SourceImage

__all__ = ["Target", "WrittenSegment", "apply_commit", "move_head"]


@dataclass(frozen=True)
class Target:
    """Where a commit goes."""

    set_id: int
    """row of the feature set"""
    generation_id: int
    """row of the generation"""
    column_ids: Mapping[Column, int]
    """rows of its columns"""
    command: str
    """what ran, for the log"""
    checked_ns: int
    """clock before the source was looked at"""
    moves_head: bool
    """whether readers see the commit at once"""


@dataclass(frozen=True)
class WrittenSegment:
    """A segment that has its name on disk and waits for its transaction."""

    uuid: str
    """32 hex digits"""
    path: str
    """relative to the store, with ``/``"""
    size: int
    """bytes of the file"""
    checksum: str
    """XXH3-128 of the file"""
    offsets: Mapping[Column, int]
    """where each column's data begins"""
    contents: Sequence[bytes]
    """content of each row"""


def apply_commit(
    db: sqlite3.Connection, target: Target, buffers: Buffers, segments: Sequence[WrittenSegment]
) -> int | None:
    """Enter rows, refusals, failures and removals; give the new version, or None when nothing has changed."""
    version = _next_version(db)
    counts: Counter[str] = Counter(segments=len(segments))
    contents = {row.content for row in buffers.rows.values()}
    db.executemany("INSERT OR IGNORE INTO contents (sha256) VALUES (?)", [(content,) for content in contents])
    for segment in segments:
        _add_segment(db, target, segment, version)
    for content, reasons in buffers.refusals.items():
        counts["refused"] += _add_refusals(db, target, content, reasons, version)
    for key, row in buffers.rows.items():
        counts[_add_image(db, target, key, row, version)] += 1
        counts["mended"] += _forget_failure(db, target, key, version)
    for key, failed in buffers.failures.items():
        counts[_add_failure(db, target, key, failed, version)] += 1
        counts["removed"] += _remove_stale(db, target, key, failed, version)
    for key in buffers.gone:
        counts["removed"] += _remove(db, target, key, version)
        counts["forgotten"] += _forget_failure(db, target, key, version)
    if not any(n for what, n in counts.items() if what not in ("kept", "again")):
        return None
    _add_version(db, target, version, counts)
    if target.moves_head:
        _set_head(db, target, version)
    return version


def move_head(db: sqlite3.Connection, target: Target) -> int:
    """Make the target's generation, as it is now, the one that readers see, in a version of its own."""
    version = _next_version(db)
    _add_version(db, target, version, Counter())
    _set_head(db, target, version)
    return version


def _next_version(db: sqlite3.Connection) -> int:
    return 1 + int(db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()[0])


def _add_version(db: sqlite3.Connection, target: Target, version: int, counts: Counter[str]) -> None:
    numbers = [counts[name] for name in ("added", "changed", "removed", "failed")]
    db.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (version, target.set_id, target.generation_id, now(), target.command, *numbers),
    )


def _set_head(db: sqlite3.Connection, target: Target, version: int) -> None:
    db.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", (target.set_id, version, target.generation_id, version))


def _add_segment(db: sqlite3.Connection, target: Target, segment: WrittenSegment, version: int) -> None:
    facts = (segment.uuid, target.generation_id, segment.path, len(segment.contents), segment.size, segment.checksum)
    segment_id = db.execute(
        "INSERT INTO segments (uuid, generation_id, path, rows, size, checksum, added_in) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*facts, version),
    ).lastrowid
    columns = [(segment_id, target.column_ids[column], offset) for column, offset in segment.offsets.items()]
    db.executemany("INSERT INTO segment_columns VALUES (?, ?, ?)", columns)
    db.executemany("INSERT OR IGNORE INTO contents (sha256) VALUES (?)", [(content,) for content in segment.contents])
    db.executemany(
        "INSERT INTO vectors SELECT id, ?, ? FROM contents WHERE sha256 = ?",
        [(segment_id, row, content) for row, content in enumerate(segment.contents)],
    )
    # A column that was refused once and is stored now is no longer refused.
    db.executemany(
        "UPDATE refusals SET removed_in = ? WHERE removed_in IS NULL AND column_id = ? "
        "AND content_id = (SELECT id FROM contents WHERE sha256 = ?)",
        [(version, column_id, content) for _, column_id, _ in columns for content in segment.contents]
        if db.execute("SELECT 1 FROM refusals LIMIT 1").fetchone()
        else [],
    )
    db.execute("DELETE FROM intents WHERE uuid = ?", (segment.uuid,))


def _add_refusals(
    db: sqlite3.Connection, target: Target, content: bytes, reasons: Mapping[Column, str], version: int
) -> int:
    """Enter the columns that cannot hold a content's features; give how many are new."""
    content_id = _content_id(db, content)
    assert content_id is not None  # entered with its image
    added = 0
    for column, reason in reasons.items():
        known = db.execute(
            "SELECT 1 FROM refusals WHERE content_id = ? AND column_id = ? AND removed_in IS NULL",
            (content_id, target.column_ids[column]),
        ).fetchone()
        if known is None:
            facts = (content_id, target.column_ids[column], version, printable(reason), now())
            db.execute("INSERT INTO refusals VALUES (?, ?, ?, NULL, ?, ?)", facts)
            added += 1
    return added


def _add_image(db: sqlite3.Connection, target: Target, key: bytes, row: Row, version: int) -> str:
    """Enter an image; say whether it was added, changed, or kept (the same content, at most new file times)."""
    content_id = _content_id(db, row.content)
    live = db.execute(
        "SELECT content_id FROM images WHERE set_id = ? AND id = ? AND removed_in IS NULL", (target.set_id, key)
    ).fetchone()
    if live is not None and live[0] == content_id:
        db.execute(
            "UPDATE images SET size = ?, mtime_ns = ?, ctime_ns = ?, checked_ns = ? "
            "WHERE set_id = ? AND id = ? AND removed_in IS NULL",
            (*_stat(row.image), target.checked_ns, target.set_id, key),
        )
        return "kept"
    if live is not None:
        _remove(db, target, key, version)
    db.execute(
        "INSERT INTO images (set_id, id, added_in, content_id, size, mtime_ns, ctime_ns, checked_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (target.set_id, key, version, content_id, *_stat(row.image), target.checked_ns),
    )
    return "added" if live is None else "changed"


def _add_failure(db: sqlite3.Connection, target: Target, key: bytes, failed: Failed, version: int) -> str:
    """Enter a failure; say whether it has failed anew, or only ``again``, for the same reason as before."""
    stat, when = _stat(failed.image), now()
    where = (target.generation_id, key)
    before = db.execute(
        "SELECT kind, reason FROM failures WHERE generation_id = ? AND id = ? AND removed_in IS NULL", where
    ).fetchone()
    if before is None:
        facts = (failed.kind, failed.reason, 1, when, when, *stat, target.checked_ns)
        db.execute("INSERT INTO failures VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*where, version, *facts))
        return "failed"
    db.execute(
        "UPDATE failures SET kind = ?, reason = ?, attempts = attempts + 1, last_at = ?, size = ?, mtime_ns = ?, "
        "ctime_ns = ?, checked_ns = ? WHERE generation_id = ? AND id = ? AND removed_in IS NULL",
        (failed.kind, failed.reason, when, *stat, target.checked_ns, *where),
    )
    return "again" if before == (failed.kind, failed.reason) else "failed"


def _remove_stale(db: sqlite3.Connection, target: Target, key: bytes, failed: Failed, version: int) -> int:
    """End the life of a failed image's features where its file may be another now; give 1 where it did."""
    live = db.execute(
        "SELECT size, mtime_ns, ctime_ns, checked_ns FROM images WHERE set_id = ? AND id = ? AND removed_in IS NULL",
        (target.set_id, key),
    ).fetchone()
    if live is None:
        return 0
    # Times too fresh to be trusted may hide that these are other bytes; a file that cannot be read says nothing.
    trusted = max(live[1:3]) <= live[3] - RACY_NS or failed.kind in ("read", "transient")
    return 0 if live[:3] == _stat(failed.image) and trusted else _remove(db, target, key, version)


def _content_id(db: sqlite3.Connection, content: bytes) -> int | None:
    row = db.execute("SELECT id FROM contents WHERE sha256 = ?", (content,)).fetchone()
    return None if row is None else int(row[0])


def _remove(db: sqlite3.Connection, target: Target, key: bytes, version: int) -> int:
    return db.execute(
        "UPDATE images SET removed_in = ? WHERE set_id = ? AND id = ? AND removed_in IS NULL",
        (version, target.set_id, key),
    ).rowcount


def _forget_failure(db: sqlite3.Connection, target: Target, key: bytes, version: int) -> int:
    return db.execute(
        "UPDATE failures SET removed_in = ? WHERE generation_id = ? AND id = ? AND removed_in IS NULL",
        (version, target.generation_id, key),
    ).rowcount


def _stat(image: SourceImage) -> tuple[int, int, int]:
    return image.size, image.mtime_ns, image.ctime_ns
