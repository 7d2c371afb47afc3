"""One commit's rows in the catalog. Every function here runs inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .buffers import Buffers, Failed, Row
from .catalog import head_of, now
from .contract import Column
from .scan import SourceImage

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
    """Enter rows, failures and removals; give the new version, or None when readers see no difference."""
    version = 1 + int(db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()[0])
    counts: Counter[str] = Counter()
    for segment in segments:
        _add_segment(db, target, segment, version)
    for key, row in buffers.rows.items():
        counts[_add_image(db, target, key, row, version)] += 1
    for key, failed in buffers.failures.items():
        counts["failed"] += 1
        counts["removed"] += _add_failure(db, target, key, failed, version)
    for key in buffers.gone:
        counts["removed"] += _remove(db, target, key, version)
        counts["forgotten"] += _forget_failure(db, target, key)
    if not segments and not any(n for what, n in counts.items() if what != "kept"):
        return None
    _add_version(db, target, version, counts)
    head = head_of(db, target.set_id)
    if head is None or head.generation_id == target.generation_id:
        _set_head(db, target, version)
    return version


def move_head(db: sqlite3.Connection, target: Target) -> int:
    """Make the target's generation the one that readers see, in a version of its own."""
    version = 1 + int(db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()[0])
    _add_version(db, target, version, Counter())
    _set_head(db, target, version)
    return version


def _add_version(db: sqlite3.Connection, target: Target, version: int, counts: Counter[str]) -> None:
    numbers = [counts[name] for name in ("added", "changed", "removed", "failed")]
    db.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (version, target.set_id, target.generation_id, now(), target.command, *numbers),
    )


def _set_head(db: sqlite3.Connection, target: Target, version: int) -> None:
    db.execute("INSERT INTO heads VALUES (?, ?, ?, ?)", (target.set_id, version, target.generation_id, version))


def _add_segment(db: sqlite3.Connection, target: Target, segment: WrittenSegment, version: int) -> None:
    facts = (
        segment.uuid,
        target.generation_id,
        segment.path,
        len(segment.contents),
        segment.size,
        segment.checksum,
    )
    segment_id = db.execute(
        "INSERT INTO segments (uuid, generation_id, path, rows, size, checksum, added_in) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*facts, version),
    ).lastrowid
    db.executemany(
        "INSERT INTO segment_columns VALUES (?, ?, ?)",
        [(segment_id, target.column_ids[column], offset) for column, offset in segment.offsets.items()],
    )
    db.executemany("INSERT OR IGNORE INTO contents (sha256) VALUES (?)", [(content,) for content in segment.contents])
    db.executemany(
        "INSERT INTO vectors SELECT id, ?, ? FROM contents WHERE sha256 = ?",
        [(segment_id, row, content) for row, content in enumerate(segment.contents)],
    )
    db.execute("DELETE FROM intents WHERE uuid = ?", (segment.uuid,))


def _add_image(db: sqlite3.Connection, target: Target, key: bytes, row: Row, version: int) -> str:
    """Enter an image; say whether it was added, changed, or kept (the same content, at most new file times)."""
    content_id = db.execute("SELECT id FROM contents WHERE sha256 = ?", (row.content,)).fetchone()[0]
    live = _live(db, target, key)
    _forget_failure(db, target, key)
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


def _add_failure(db: sqlite3.Connection, target: Target, key: bytes, failed: Failed, version: int) -> int:
    """Enter a failure; give 1 where the image's features stop being alive, because its file is another now."""
    db.execute(
        "INSERT INTO failures VALUES (:generation, :id, :kind, :reason, 1, :at, :at, :size, :mtime, :ctime) "
        "ON CONFLICT DO UPDATE SET kind = :kind, reason = :reason, attempts = attempts + 1, last_at = :at, "
        "size = :size, mtime_ns = :mtime, ctime_ns = :ctime",
        {
            "generation": target.generation_id,
            "id": key,
            "kind": failed.kind,
            "reason": failed.reason,
            "at": now(),
            **dict(zip(("size", "mtime", "ctime"), _stat(failed.image), strict=True)),
        },
    )
    live = _live(db, target, key)
    if live is None:
        return 0
    same = live[1] == failed.content if failed.content is not None else live[2:] == _stat(failed.image)
    return 0 if same else _remove(db, target, key, version)


def _live(db: sqlite3.Connection, target: Target, key: bytes) -> tuple[int, bytes, int, int, int] | None:
    row: tuple[int, bytes, int, int, int] | None = db.execute(
        "SELECT i.content_id, c.sha256, i.size, i.mtime_ns, i.ctime_ns FROM images i "
        "JOIN contents c ON c.id = i.content_id WHERE i.set_id = ? AND i.id = ? AND i.removed_in IS NULL",
        (target.set_id, key),
    ).fetchone()
    return row


def _remove(db: sqlite3.Connection, target: Target, key: bytes, version: int) -> int:
    return db.execute(
        "UPDATE images SET removed_in = ? WHERE set_id = ? AND id = ? AND removed_in IS NULL",
        (version, target.set_id, key),
    ).rowcount


def _forget_failure(db: sqlite3.Connection, target: Target, key: bytes) -> int:
    return db.execute("DELETE FROM failures WHERE generation_id = ? AND id = ?", (target.generation_id, key)).rowcount


def _stat(image: SourceImage) -> tuple[int, int, int]:
    return image.size, image.mtime_ns, image.ctime_ns
