"""One commit's rows in the catalog. Every function here runs inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import numpy as np

from .buffers import Buffers, Failed, Row
from .catalog import batched, now, printable
from .contract import Column
from .holdings import pack_ids
from .scan import RACY_NS, SourceImage

__all__ = [
    "Entered",
    "Kind",
    "Target",
    "WrittenSegment",
    "add_segment",
    "add_version",
    "apply_commit",
    "enter_contents",
    "find_contents",
    "next_version",
    "set_head",
]

Kind = Literal["sync", "compact", "revert", "repair"]
"""what made a version"""

AT_A_TIME = 500
"""Keys looked up by one query: below the 999 parameters that every SQLite takes."""


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
    run: str
    """the run's own id, for the log"""
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


@dataclass
class Entered:
    """What a commit has entered."""

    version: int | None = None
    """the new version; None when nothing has changed"""
    segments: list[tuple[np.ndarray, list[Column]]] = field(default_factory=list)
    """content ids and columns of each segment"""
    refused: list[tuple[int, Column]] = field(default_factory=list)
    """content id and column of each new refusal"""


def apply_commit(
    db: sqlite3.Connection,
    target: Target,
    buffers: Buffers,
    segments: Sequence[WrittenSegment],
    asked: Mapping[bytes, int | None],
) -> Entered:
    """Enter rows, refusals, failures and removals as one version, unless nothing has changed.

    ``asked`` gives the ids of contents that were looked up since the last commit, None where the catalog has none.
    """
    version = next_version(db)
    entered = Entered()
    counts: Counter[str] = Counter(segments=len(segments))
    contents = enter_contents(
        db, chain(*(segment.contents for segment in segments), (row.content for row in buffers.rows.values())), asked
    )
    for segment in segments:
        ids = np.array([contents[content] for content in segment.contents], dtype=np.int64)
        add_segment(db, target, segment, ids, version)
        entered.segments.append((ids, list(segment.offsets)))
    entered.refused = list(_add_refusals(db, target, contents, buffers.refusals, version))
    counts["refused"] = len(entered.refused)
    counts.update(_add_images(db, target, buffers.rows, contents, version))
    counts["mended"] = _forget_failures(db, target, buffers.rows, version)
    for key, failed in buffers.failures.items():
        counts[_add_failure(db, target, key, failed, version)] += 1
        counts["removed"] += _remove_stale(db, target, key, failed, version)
    counts["removed"] += _remove(db, target, buffers.gone, version)
    counts["forgotten"] = _forget_failures(db, target, buffers.gone, version)
    if any(n for what, n in counts.items() if what not in ("kept", "again")):
        add_version(db, target, version, "sync", counts)
        if target.moves_head:
            set_head(db, target, version)
        entered.version = version
    return entered


def next_version(db: sqlite3.Connection) -> int:
    """Give the number of the version to come; versions count through the store."""
    return 1 + int(db.execute("SELECT coalesce(max(id), 0) FROM versions").fetchone()[0])


def add_version(
    db: sqlite3.Connection, target: Target, version: int, kind: Kind, counts: Mapping[str, int] | None = None
) -> None:
    """Enter a version in the log."""
    numbers = [(counts or {}).get(name, 0) for name in ("added", "changed", "removed", "failed")]
    db.execute(
        "INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (version, target.set_id, target.generation_id, kind, target.run, target.command, now(), *numbers),
    )


def set_head(db: sqlite3.Connection, target: Target, version: int, as_of: int | None = None) -> None:
    """Let readers see the target's generation from a version on, as of this one or an earlier."""
    db.execute(
        "INSERT INTO heads VALUES (?, ?, ?, ?, NULL)",
        (target.set_id, version, target.generation_id, version if as_of is None else as_of),
    )


def add_segment(db: sqlite3.Connection, target: Target, segment: WrittenSegment, ids: np.ndarray, version: int) -> None:
    """Enter a segment whose rows hold these contents."""
    facts = (segment.uuid, target.generation_id, segment.path, len(ids), segment.size, segment.checksum, version)
    segment_id = db.execute(
        "INSERT INTO segments (uuid, generation_id, path, rows, size, checksum, added_in, contents) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*facts, pack_ids(ids)),
    ).lastrowid
    columns = [(segment_id, target.column_ids[column], offset) for column, offset in segment.offsets.items()]
    db.executemany("INSERT INTO segment_columns VALUES (?, ?, ?)", columns)
    if db.execute("SELECT 1 FROM refusals LIMIT 1").fetchone():
        # A column that was refused once and is stored now is no longer refused; where a repair takes in a segment
        # that is as old as the refusal, or older, it never was.
        keys = [(column_id, content_id, version) for _, column_id, _ in columns for content_id in ids.tolist()]
        live = "WHERE removed_in IS NULL AND column_id = ?1 AND content_id = ?2"
        db.executemany(f"DELETE FROM refusals {live} AND added_in >= ?3", keys)
        db.executemany(f"UPDATE refusals SET removed_in = ?3 {live}", keys)
    db.execute("DELETE FROM intents WHERE uuid = ?", (segment.uuid,))


def find_contents(db: sqlite3.Connection, contents: Iterable[bytes]) -> dict[bytes, int]:
    """Give the catalog's ids of those contents that it knows."""
    found: dict[bytes, int] = {}
    for some in batched(contents, AT_A_TIME):
        found.update(db.execute(f"SELECT sha256, id FROM contents WHERE sha256 IN ({_marks(some)})", some))
    return found


def enter_contents(
    db: sqlite3.Connection, contents: Iterable[bytes], asked: Mapping[bytes, int | None] | None = None
) -> dict[bytes, int]:
    """Give the ids of contents, new ones numbered in the order given."""
    wanted = list(dict.fromkeys(contents))
    asked = asked or {}
    known = {content: found for content in wanted if (found := asked.get(content)) is not None}
    known |= find_contents(db, (content for content in wanted if content not in asked))
    first = int(db.execute("SELECT value FROM meta WHERE key = 'next_content'").fetchone()[0])
    new = {content: first + number for number, content in enumerate(c for c in wanted if c not in known)}
    db.executemany("INSERT INTO contents VALUES (?, ?)", sorted(new.items()))
    db.execute("UPDATE meta SET value = ? WHERE key = 'next_content'", (str(first + len(new)),))
    return known | new


def _add_refusals(
    db: sqlite3.Connection,
    target: Target,
    contents: Mapping[bytes, int],
    refusals: Mapping[bytes, Mapping[Column, str]],
    version: int,
) -> Iterator[tuple[int, Column]]:
    """Enter the columns that cannot hold a content's features; yield those that are new."""
    for content, reasons in refusals.items():
        for column, reason in reasons.items():
            where = (contents[content], target.column_ids[column])
            known = db.execute(
                "SELECT 1 FROM refusals WHERE content_id = ? AND column_id = ? AND removed_in IS NULL", where
            ).fetchone()
            if known is None:
                facts = (*where, version, printable(reason), now())
                db.execute("INSERT INTO refusals VALUES (?, ?, ?, NULL, ?, ?)", facts)
                yield where[0], column


def _add_images(
    db: sqlite3.Connection, target: Target, rows: Mapping[bytes, Row], contents: Mapping[bytes, int], version: int
) -> Counter[str]:
    """Enter images; count those added, changed, and kept (the same content, at most new file times)."""
    counts: Counter[str] = Counter()
    for some in batched(rows.values(), AT_A_TIME):
        live = _live_images(db, target, [row.key for row in some])
        ended, entered, touched = [], [], []
        for key, image, content in some:
            before, content_id = live.get(key), contents[content]
            facts = (*_stat(image), _is_racy(image, target))
            if before is None or before[0] != content_id:
                entered.append((target.set_id, key, version, content_id, *facts))
                if before is not None:
                    ended.append(key)
            elif before[1:] != facts:
                touched.append((*facts, target.set_id, key))
        _remove(db, target, ended, version)
        db.executemany("INSERT INTO images VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?)", entered)
        db.executemany(
            "UPDATE images SET size = ?, mtime_ns = ?, ctime_ns = ?, racy = ? "
            "WHERE set_id = ? AND id = ? AND removed_in IS NULL",
            touched,
        )
        counts.update(added=len(entered) - len(ended), changed=len(ended), kept=len(some) - len(entered))
    return counts


def _live_images(db: sqlite3.Connection, target: Target, keys: Sequence[bytes]) -> dict[bytes, tuple[int, ...]]:
    """Give content, size, mtime, ctime and raciness of those images that are alive."""
    span = (target.set_id, min(keys, default=b""), max(keys, default=b""))
    if db.execute("SELECT 1 FROM images WHERE set_id = ? AND id BETWEEN ? AND ? LIMIT 1", span).fetchone() is None:
        return {}  # a first extraction, or new folders: nothing to look up one by one
    query = (
        "SELECT id, content_id, size, mtime_ns, ctime_ns, racy FROM images "
        f"WHERE set_id = ? AND id IN ({_marks(keys)}) AND removed_in IS NULL"
    )
    return {row[0]: row[1:] for row in db.execute(query, (target.set_id, *keys))}


def _add_failure(db: sqlite3.Connection, target: Target, key: bytes, failed: Failed, version: int) -> str:
    """Enter a failure; say whether it has failed anew, or only ``again``, for the same reason as before."""
    facts, when = (*_stat(failed.image), _is_racy(failed.image, target)), now()
    where = (target.generation_id, key)
    before = db.execute(
        "SELECT kind, reason, attempts, first_at FROM failures "
        "WHERE generation_id = ? AND id = ? AND removed_in IS NULL",
        where,
    ).fetchone()
    if before is not None and before[:2] == (failed.kind, failed.reason):
        db.execute(
            "UPDATE failures SET attempts = attempts + 1, last_at = ?, size = ?, mtime_ns = ?, ctime_ns = ?, racy = ? "
            "WHERE generation_id = ? AND id = ? AND removed_in IS NULL",
            (when, *facts, *where),
        )
        return "again"
    attempts, first_at = (0, when) if before is None else before[2:]
    _forget_failures(db, target, [key], version)  # another reason is another fact: earlier versions keep theirs
    db.execute(
        "INSERT INTO failures VALUES (?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*where, version, failed.kind, failed.reason, attempts + 1, first_at, when, *facts),
    )
    return "failed"


def _remove_stale(db: sqlite3.Connection, target: Target, key: bytes, failed: Failed, version: int) -> int:
    """End the life of a failed image's features where its file may be another now; give 1 where it did."""
    live = _live_images(db, target, [key]).get(key)
    if live is None or not failed.image.is_there:
        return 0  # an unmounted disk must not empty the store
    # Times too fresh to be trusted may hide that these are other bytes; a file that cannot be read says nothing.
    trusted = not live[4] or failed.kind in ("read", "transient")
    return 0 if live[1:4] == _stat(failed.image) and trusted else _remove(db, target, [key], version)


def _remove(db: sqlite3.Connection, target: Target, keys: Iterable[bytes], version: int) -> int:
    return _total(
        db.executemany(
            "UPDATE images SET removed_in = ? WHERE set_id = ? AND id = ? AND removed_in IS NULL",
            ((version, target.set_id, key) for key in keys),
        )
    )


def _forget_failures(db: sqlite3.Connection, target: Target, keys: Iterable[bytes], version: int) -> int:
    live = "FROM failures WHERE generation_id = ? AND removed_in IS NULL LIMIT 1"
    if db.execute(f"SELECT 1 {live}", (target.generation_id,)).fetchone() is None:
        return 0
    return _total(
        db.executemany(
            "UPDATE failures SET removed_in = ? WHERE generation_id = ? AND id = ? AND removed_in IS NULL",
            ((version, target.generation_id, key) for key in keys),
        )
    )


def _total(cursor: sqlite3.Cursor) -> int:
    """Give the rows that an ``executemany`` changed; SQLite says -1 when it was given nothing to do."""
    return max(cursor.rowcount, 0)


def _marks(values: Sequence[bytes]) -> str:
    return ",".join("?" * len(values))


def _is_racy(image: SourceImage, target: Target) -> int:
    return int(max(image.mtime_ns, image.ctime_ns) > target.checked_ns - RACY_NS)


def _stat(image: SourceImage) -> tuple[int, int, int]:
    return image.size, image.mtime_ns, image.ctime_ns
