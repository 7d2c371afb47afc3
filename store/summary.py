"""What readers of a set see, counted and digested: read in one pass, and kept until something else is seen.

The digest is equal for two stores that read alike, whatever their history, the layout of their segments or the place
they lie in. A million images take the better part of a second, so the writer enters the summary in the catalog when it
closes, with a stamp of what it was made from; where the stamp is another one, as in the middle of a run, it is made
anew.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from . import catalog, reading
from .catalog import Head
from .contents import load_contents
from .contract import Column, canonical_json
from .holdings import load_held, load_refused

__all__ = ["Summary", "changed_summaries", "read_summary", "refresh_summaries", "store_digest", "summarise"]

FORMAT = 1
"""Goes up when a digest comes to mean something else: what an earlier release has kept is then made anew."""


@dataclass(frozen=True)
class Summary:
    """What readers of a set see, in numbers."""

    digest: str
    """sha256, in hex, of all that can be read: name, contract, columns, ids, contents, which image has which column,
    failures with their reasons"""
    images: int
    """images that have features"""
    columns: Mapping[str, int]
    """images that have each column, by its name"""
    lacking: Mapping[str, int]
    """images that have not, and nothing says why; columns that all have are left out"""
    failed: Mapping[str, int]
    """images that gave no features, or not those of a column, by kind"""


def read_summary(db: sqlite3.Connection, set_id: int, head: Head) -> Summary:
    """Give the summary of what readers see now: the one that was kept, or one made for this call."""
    kept = _kept(db, set_id, _stamp(db, head))
    return summarise(db, set_id, head) if kept is None else kept


def refresh_summaries(db: sqlite3.Connection) -> None:
    """Keep the summaries of all sets whose readers see something else than when it was last done."""
    for (set_id,) in db.execute("SELECT id FROM sets").fetchall():
        head = catalog.head_of(db, set_id)
        if head is None or _kept(db, set_id, stamp := _stamp(db, head)) is not None:
            continue
        told = json.dumps(asdict(summarise(db, set_id, head)))
        with catalog.transaction(db):
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_key(set_id), f"{_seal(stamp, told)} {told}"))


def store_digest(digests: Mapping[str, str]) -> str:
    """Give the digest of a store from those of its sets, by their names."""
    return hashlib.sha256(canonical_json(dict(digests))).hexdigest()


def summarise(db: sqlite3.Connection, set_id: int, head: Head) -> Summary:
    """Read what readers see, in one pass over the images; memory grows by 32 bytes a content."""
    return _Pass(db, set_id, head).run()


def changed_summaries(db: sqlite3.Connection) -> Iterator[str]:
    """Name the sets whose readers see something else than was kept when they last saw the same."""
    for set_id, name in db.execute("SELECT id, name FROM sets").fetchall():
        head = catalog.head_of(db, set_id)
        kept = None if head is None else _kept(db, set_id, _stamp(db, head))
        if head is not None and kept is not None and kept != summarise(db, set_id, head):
            yield name


class _Pass:
    """One pass over the images of a set as readers see it."""

    def __init__(self, db: sqlite3.Connection, set_id: int, head: Head) -> None:
        self.db, self.set_id, self.head = db, set_id, head
        column_ids = catalog.columns_of(db, head.generation_id)
        there = reading.columns_as_of(db, head)
        self.columns: Sequence[Column] = sorted(there, key=lambda column: column.name)
        positions = {column: position for position, column in enumerate(column_ids)}
        self.bits = [1 << positions[column] for column in self.columns]
        ids = list(column_ids.values())
        self.held = load_held(db, head.generation_id, ids, head.as_of)
        self.refused = load_refused(db, ids, head.as_of)
        self.failures = {row[0]: row[1:] for row in _failures(db, head)}
        self.refusals = _refusals(db, head)
        self.digests = load_contents(db).digests
        self.hashes = {part: hashlib.sha256() for part in ("ids", "contents", "refusals")}
        self.holders = [hashlib.sha256() for _ in self.columns]
        self.images = 0
        self.covered = np.zeros(len(self.columns), dtype=np.int64)
        self.lacking = np.zeros(len(self.columns), dtype=np.int64)
        self.failed = Counter(kind for kind, _ in self.failures.values())

    def run(self) -> Summary:
        for some in reading.alive_images(self.db, self.set_id, self.head.as_of):
            self._take(*some)
        names = [column.name for column in self.columns]
        lacking = dict(zip(names, self.lacking.tolist(), strict=True))
        return Summary(
            digest=self._digest(),
            images=self.images,
            columns=dict(zip(names, self.covered.tolist(), strict=True)),
            lacking={name: n for name, n in lacking.items() if n},
            failed=dict(sorted(self.failed.items())),
        )

    def _take(self, names: bytes, contents: np.ndarray) -> None:
        has = self.held.table(contents, self.bits)  # (k, columns)
        seen = ~self.held.is_empty(contents)
        self.images += int(seen.sum())
        self.covered += has.sum(axis=0)
        refused = ~self.refused.is_empty(contents)
        keys: list[bytes] = [] if has.all() and not refused.any() else reading.names_of(names)
        if keys:
            failed = np.fromiter((key in self.failures for key in keys), dtype=bool, count=len(keys))
            lacks = ~has & ~self.refused.table(contents, self.bits) & ~failed[:, None]
            self.lacking += lacks.sum(axis=0)
            self._take_refusals(keys, contents, refused)
            kept = seen | ~(failed | refused)  # what failed altogether stands among the failures
            keys = [keys[i] for i in kept.nonzero()[0].tolist()]
            names, contents, has = b"\0".join(keys), contents[kept], has[kept]
        if contents.size:
            self.hashes["ids"].update(names + b"\0")
            self.hashes["contents"].update(self.digests[contents].data)
            for position, holder in enumerate(self.holders):
                holder.update(has[:, position].tobytes())

    def _take_refusals(self, keys: Sequence[bytes], contents: np.ndarray, refused: np.ndarray) -> None:
        for i in refused.nonzero()[0].tolist():
            self.failed["value"] += 1
            self.hashes["refusals"].update(_lines([(keys[i], *self.refusals[int(contents[i])])]))

    def _digest(self) -> str:
        failures = sorted((key, kind.encode(), why.encode()) for key, (kind, why) in self.failures.items())
        (name,) = self.db.execute("SELECT name FROM sets WHERE id = ?", (self.set_id,)).fetchone()
        state = {
            "set": name,
            "contract": catalog.generation_by_id(self.db, self.head.generation_id).contract.hash,
            "columns": [
                [column.name, column.hash, column.width, holder.hexdigest()]
                for column, holder, n in zip(self.columns, self.holders, self.covered.tolist(), strict=True)
                if n  # rows of images that are gone may hold others still
            ],
            "failures": hashlib.sha256(_lines(failures)).hexdigest(),
            "rows": {part: made.hexdigest() for part, made in self.hashes.items()},
        }
        return hashlib.sha256(canonical_json(state)).hexdigest()


def _lines(rows: Sequence[Sequence[bytes]]) -> bytes:
    """Give a text in which no row can be taken for another: no part holds a NUL."""
    return b"".join(b"\0".join(row) + b"\0\0" for row in rows)


def _failures(db: sqlite3.Connection, head: Head) -> list[tuple[bytes, str, str]]:
    return db.execute(
        "SELECT id, kind, reason FROM failures WHERE generation_id = :g AND added_in <= :v "
        "AND (removed_in IS NULL OR removed_in > :v)",
        {"g": head.generation_id, "v": head.as_of},
    ).fetchall()


def _refusals(db: sqlite3.Connection, head: Head) -> dict[int, list[bytes]]:
    """Give column and reason, in turn, of the refusals of each content, by the columns' names."""
    found: dict[int, list[bytes]] = {}
    for content_id, *facts in db.execute(
        "SELECT r.content_id, c.name, r.reason FROM refusals r JOIN columns c ON c.id = r.column_id "
        "WHERE c.generation_id = :g AND r.added_in <= :v AND (r.removed_in IS NULL OR r.removed_in > :v) "
        "ORDER BY c.name",
        {"g": head.generation_id, "v": head.as_of},
    ):
        found.setdefault(content_id, []).extend(fact.encode() for fact in facts)
    return found


def _kept(db: sqlite3.Connection, set_id: int, stamp: str) -> Summary | None:
    row = db.execute("SELECT value FROM meta WHERE key = ?", (_key(set_id),)).fetchone()
    seal, _, told = str(row[0]).partition(" ") if row else ("", "", "")
    return Summary(**json.loads(told)) if seal == _seal(stamp, told) else None


def _seal(stamp: str, told: str) -> str:
    """Bind a kept summary to what it was made from, and to its own bytes."""
    return hashlib.sha256(f"{stamp} {told}".encode()).hexdigest()


def _stamp(db: sqlite3.Connection, head: Head) -> str:
    """Say what a summary is made from: the head, and the segments that it reads, which a repair may take away."""
    segments = db.execute(
        "SELECT uuid FROM segments WHERE generation_id = :g AND added_in <= :v "
        "AND (removed_in IS NULL OR removed_in > :v) ORDER BY uuid",
        {"g": head.generation_id, "v": head.as_of},
    ).fetchall()
    facts = [FORMAT, head.version, head.generation_id, head.as_of, segments]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _key(set_id: int) -> str:
    return f"summary.{set_id}"
