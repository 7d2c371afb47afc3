"""What is alive as of a version, and where the rows of a column lie.

The queries run inside one read transaction of the caller, so that they all see the same commit. Images are read some
ten thousand at a time as two values, their names and the ids of their contents, which NumPy then joins with the
segments: a million images take a third of a second.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .catalog import CATALOG, CURE, Head, columns_of
from .contents import load_contents
from .contract import Column
from .errors import StoreDamagedError
from .holdings import load_held, load_refused, unpack_ids
from .places import Extent, Places
from .scan import decode_id

__all__ = [
    "alive_images",
    "columns_as_of",
    "contents_as_of",
    "count_as_of",
    "failures_as_of",
    "find_lacking",
    "ids_as_of",
    "images_as_of",
    "locate",
    "names_of",
]

AT_A_TIME = 65_536
"""Images read by one query; their names must stay far below the gigabyte that SQLite allows one value."""

_ALIVE = "added_in <= :v AND (removed_in IS NULL OR removed_in > :v)"


def alive_images(
    db: sqlite3.Connection, set_id: int, as_of: int | None = None, *, names: bool = True
) -> Iterator[tuple[bytes, np.ndarray]]:
    """Read the images alive now, or as of a version, in the order of their ids.

    Yields
    ------
    names : bytes
        Ids joined by NUL bytes, for ``names_of``; empty where ``names`` is False.
    contents : np.ndarray
        ``(k,)`` int64: the content of each.
    """
    alive = "removed_in IS NULL" if as_of is None else _ALIVE
    joined = "CAST(group_concat(id, char(0)) AS BLOB)" if names else "x''"
    query = (
        f"SELECT count(*), max(id), {joined}, group_concat(content_id) FROM (SELECT id, content_id FROM images "
        f"WHERE set_id = :set AND id > :last AND {alive} ORDER BY id LIMIT {AT_A_TIME})"
    )
    last = b""
    while True:
        count, last, found, contents = db.execute(query, {"set": set_id, "v": as_of, "last": last}).fetchone()
        if count:
            yield found, np.fromstring(contents, dtype=np.int64, sep=",")
        if count < AT_A_TIME:
            return


def names_of(joined: bytes) -> list[bytes]:
    """Take apart the ids that ``alive_images`` gives."""
    return joined.split(b"\0")


def images_as_of(
    db: sqlite3.Connection, set_id: int, as_of: int, *, names: bool = True
) -> tuple[list[str], np.ndarray]:
    """Give the images alive as of a version, in the order of their ids.

    Returns
    -------
    ids : list of str
        Empty where ``names`` is False.
    contents : np.ndarray
        ``(n,)`` int64: the content of each.
    """
    ids: list[str] = []
    parts = [np.empty(0, dtype=np.int64)]
    for joined, contents in alive_images(db, set_id, as_of, names=names):
        parts.append(contents)
        if names:
            ids += joined.decode("utf-8", "surrogateescape").split("\0")
    found = np.concatenate(parts)
    if len(ids) != (found.size if names else 0):
        raise StoreDamagedError(f"{CATALOG}: the id of an image holds a NUL byte; {CURE}")
    return ids, found


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
    column_ids = list(columns_of(db, head.generation_id).values())
    held = load_held(db, head.generation_id, column_ids, head.as_of)
    ids: list[bytes] = []
    for names, contents in alive_images(db, set_id, head.as_of):
        some = ~held.is_empty(contents)
        keys = names_of(names)
        ids += keys if some.all() else [keys[i] for i in some.nonzero()[0].tolist()]
    return ids


def contents_as_of(db: sqlite3.Connection, set_id: int, head: Head) -> dict[str, bytes]:
    """Give the sha256 of the file of each image that has any vector, by id, in the order of the ids."""
    held = load_held(db, head.generation_id, list(columns_of(db, head.generation_id).values()), head.as_of)
    known = load_contents(db)
    found: dict[str, bytes] = {}
    for names, contents in alive_images(db, set_id, head.as_of):
        if int(contents.max(initial=0)) >= known.known.size or not known.known[contents].all():
            raise StoreDamagedError(f"{CATALOG}: the content of an image is not listed; {CURE}")
        has = ~held.is_empty(contents)
        keys, digests = names_of(names), known.digests[contents]
        found.update((decode_id(keys[i]), digests[i].tobytes()) for i in has.nonzero()[0].tolist())
    return found


def count_as_of(db: sqlite3.Connection, contents: np.ndarray, generation_id: int, column_id: int, as_of: int) -> int:
    """Count those of the images, given by their contents, that have a column."""
    return int(load_held(db, generation_id, [column_id], as_of).holds(contents, 1).sum())


def locate(
    db: sqlite3.Connection, folder: Path, contents: np.ndarray, column: Column, column_id: int, as_of: int
) -> tuple[Places, np.ndarray]:
    """Find the rows of a column for the contents of images.

    Returns
    -------
    places : Places
        Of the images that have the column, in the order given.
    present : np.ndarray
        ``(n,)`` bool: which images those are.
    """
    extents: list[Extent] = []
    held: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    for path, rows, offset, packed in db.execute(
        "SELECT s.path, s.rows, c.offset, s.contents FROM segments s JOIN segment_columns c ON c.segment_id = s.id "
        "WHERE c.column_id = ? AND s.added_in <= ? AND (s.removed_in IS NULL OR s.removed_in > ?) ORDER BY s.id",
        (column_id, as_of, as_of),
    ):
        extents.append(Extent(folder / path, rows, offset, column))
        held.append(unpack_ids(packed, rows))
    lengths = np.array([ids.size for ids in held[1:]], dtype=np.int64)
    everything = np.concatenate(held)
    if np.array_equal(everything, contents):  # as after a compaction, or a first extraction: each row in its place
        rank = np.arange(contents.size)
        present = np.ones(contents.size, dtype=bool)
    else:
        rank, present = _find(everything, contents)
    starts = np.cumsum(lengths) - lengths
    which = np.searchsorted(starts, rank, side="right").astype(np.int32) - np.int32(1)
    row = rank - starts[which] if lengths.size else rank
    return Places(column, tuple(extents), which, row), present


def _find(held: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give where those of ``wanted`` that are in ``held`` stand there, and a mask that says which those are."""
    if not held.size:
        return np.empty(0, dtype=np.int64), np.zeros(wanted.size, dtype=bool)
    order = np.argsort(held, kind="stable")
    found = np.searchsorted(held[order], wanted)
    rank = order[np.minimum(found, held.size - 1)]
    present = held[rank] == wanted
    return rank[present], present


def find_lacking(
    db: sqlite3.Connection, set_id: int, head: Head, column_id: int, contents: np.ndarray, present: np.ndarray
) -> int:
    """Count the images that should have a column and have not: neither failed nor refused by it."""
    if present.all():
        return 0
    alive = _ALIVE.replace(":v", str(head.as_of))
    failed = {
        row[0]
        for row in db.execute(f"SELECT id FROM failures WHERE generation_id = ? AND {alive}", (head.generation_id,))
    }
    refused = load_refused(db, [column_id], head.as_of).holds(contents, 1)
    lacking, top = 0, 0
    for names, some in alive_images(db, set_id, head.as_of):
        missing = ~present[top : top + some.size] & ~refused[top : top + some.size]
        keys = names_of(names) if missing.any() else []
        lacking += sum(keys[i] not in failed for i in missing.nonzero()[0].tolist())
        top += some.size
    return lacking


def failures_as_of(db: sqlite3.Connection, set_id: int, head: Head) -> list[tuple[bytes, str, str, int, str, str]]:
    """Give the failures as (id, kind, reason, attempts, first_at, last_at), ordered by id."""
    facts = {"set": set_id, "v": head.as_of, "g": head.generation_id}
    files = db.execute(
        f"SELECT id, kind, reason, attempts, first_at, last_at FROM failures WHERE generation_id = :g AND {_ALIVE}",
        facts,
    ).fetchall()
    if db.execute("SELECT 1 FROM refusals LIMIT 1").fetchone() is None:
        return sorted(files)
    values = db.execute(
        "SELECT i.id, 'value', r.reasons, 1, r.first, r.last FROM images i JOIN ("
        "  SELECT content_id, group_concat(reason, '; ') AS reasons, min(at) AS first, max(at) AS last FROM refusals"
        "  JOIN columns c ON c.id = column_id AND c.generation_id = :g"
        f"  WHERE {_ALIVE} GROUP BY content_id) r ON r.content_id = i.content_id WHERE i.set_id = :set AND {_ALIVE}",
        facts,
    ).fetchall()
    return sorted([*files, *values])
