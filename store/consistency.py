"""The catalog by itself: its pages, its references, and that no column has a content twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import numpy as np

from .contents import load_contents
from .contract import Column, Contract
from .disk_errors import sqlite_errors
from .errors import FormatError
from .examine import Recorded
from .sqlite_file import CATALOG
from .summary import changed_summaries

__all__ = ["catalog_trouble", "doubled"]


def catalog_trouble(db: sqlite3.Connection) -> list[str]:
    """Say what is wrong with the catalog; where its pages are, nothing else is looked at.

    Segments are compared among each other only; whether the files are what the catalog says is ``examine``'s business.
    """
    try:
        with sqlite_errors(CATALOG):
            return _pages(db) or [*_references(db), *_contracts(db), *_numbers(db), *_lifetimes(db)] or _summaries(db)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:  # the latter where SQLite quotes damaged text
        return [f"cannot be read ({exc})"]


def doubled(segments: list[Recorded]) -> Iterator[str]:
    """Name the columns that hold a content in two segments alive as of the same version."""
    holding: dict[tuple[str, Column], list[Recorded]] = {}
    for segment in segments:
        for column in segment.columns:
            holding.setdefault((segment.generation.uuid, column), []).append(segment)
    for (generation, column), some in holding.items():
        if count := _overlaps(some):
            yield f"{count:,} contents have {column.name} of generation {generation} twice"


def _pages(db: sqlite3.Connection) -> list[str]:
    return [line for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]


def _summaries(db: sqlite3.Connection) -> list[str]:
    """Compare what readers see, each name and each content, with the digest that the last writer took of it."""
    return [f"set {name} reads as something else than it did" for name in changed_summaries(db)]


def _references(db: sqlite3.Connection) -> Iterator[str]:
    for row in db.execute("PRAGMA foreign_key_check"):
        yield f"table {row[0]} refers to rows of {row[2]} that are not there"
    wrong_heads = (
        "heads h JOIN generations g ON g.id = h.generation_id WHERE g.set_id != h.set_id OR h.as_of > h.version"
    )
    wrong_columns = (
        "segment_columns c JOIN segments s ON s.id = c.segment_id JOIN columns k ON k.id = c.column_id "
        "WHERE k.generation_id != s.generation_id"
    )
    for rows, what in ((wrong_heads, "heads"), (wrong_columns, "columns of segments")):
        (count,) = db.execute(f"SELECT count(*) FROM {rows}").fetchone()
        if count:
            yield f"{count:,} {what} refer to another generation"


def _contracts(db: sqlite3.Connection) -> Iterator[str]:
    for uuid, text, hashed in db.execute("SELECT uuid, contract, contract_hash FROM generations"):
        if _hash_of(text) != hashed:
            yield f"the contract of generation {uuid} does not match its hash"
    for name, spec, hashed, width in db.execute("SELECT name, spec, hash, width FROM columns"):
        if _column_of(spec, width) != (name, hashed):
            yield f"column {name} does not match its hash"


def _numbers(db: sqlite3.Connection) -> Iterator[str]:
    """Check that each content has a number of its own, and that no image has one that is not given."""
    following = db.execute("SELECT value FROM meta WHERE key = 'next_content'").fetchone()
    count, least, most, odd = db.execute(
        "SELECT count(*), coalesce(min(id), 1), coalesce(max(id), 0), coalesce(sum(length(sha256) != 32), 0) "
        "FROM contents"
    ).fetchone()
    if following is None or not following[0].isdecimal() or int(following[0]) <= most:
        yield f"contents are numbered up to {most:,}, and the next number is {following and following[0]!r}"
    elif odd or least < 1 or (known := load_contents(db).known).sum() != count:
        yield "contents are not numbered one by one"
    else:
        used = np.fromiter((row[0] for row in db.execute("SELECT content_id FROM images")), dtype=np.int64)
        if used.size and (used.min() < 0 or used.max() >= known.size or not known[used].all()):
            yield "images have contents that are not there"


def _lifetimes(db: sqlite3.Connection) -> Iterator[str]:
    for table in ("images", "segments", "failures", "refusals"):
        (count,) = db.execute(f"SELECT count(*) FROM {table} WHERE removed_in <= added_in OR added_in < 1").fetchone()
        if count:
            yield f"{count:,} {table} end before they begin"
    (count,) = db.execute(
        "SELECT count(*) FROM (SELECT added_in, lag(removed_in, 1, 0) OVER (PARTITION BY set_id, id ORDER BY added_in) "
        "AS ended FROM images) WHERE ended IS NULL OR ended > added_in"
    ).fetchone()
    if count:
        yield f"{count:,} images are alive twice"


def _overlaps(segments: list[Recorded]) -> int:
    """Count contents that two of the segments hold as of the same version."""
    seen = np.zeros(max((int(segment.contents.max(initial=0)) for segment in segments), default=0) + 1, dtype=bool)
    shared = np.zeros_like(seen)
    for segment in segments:
        shared[segment.contents[seen[segment.contents]]] = True
        seen[segment.contents] = True
    if not shared.any():
        return 0
    held, added, removed = (np.concatenate(part) for part in zip(*(_spans(s, shared) for s in segments), strict=True))
    order = np.lexsort((added, held))
    held, added, removed = held[order], added[order], removed[order]
    return int(((held[1:] == held[:-1]) & (added[1:] < removed[:-1])).sum())


def _spans(segment: Recorded, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the chosen ones of a segment's contents, each once, and from when to when they are alive."""
    held = np.unique(segment.contents[chosen[segment.contents]])
    end = np.iinfo(np.int64).max if segment.removed_in is None else segment.removed_in
    return held, np.full(held.size, segment.added_in), np.full(held.size, end)


def _hash_of(contract: str) -> str | None:
    try:
        return Contract.from_json(json.loads(contract)).hash
    except (FormatError, ValueError, TypeError, AttributeError):
        return None


def _column_of(spec: str, width: int) -> tuple[str, str] | None:
    try:
        column = Column.from_json(json.loads(spec), width)
    except (FormatError, ValueError, TypeError, AttributeError, KeyError):
        return None
    return column.name, column.hash
