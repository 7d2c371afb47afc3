"""Where the bytes of a store are: by set, generation and column, and what nobody reads any more."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from . import catalog
from .catalog import CATALOG
from .collect import collect_store
from .errors import RefusedError

__all__ = ["GenerationUsage", "StoreUsage", "store_usage"]

KINDS = ("catalog", "canaries", "models", "sweeps", "comparisons", "weights", "runs", "quarantine", "strays", "other")
State = Literal["read", "filling", "old"]


@dataclass(frozen=True)
class GenerationUsage:
    """The segments of one generation."""

    set_name: str
    """feature set"""
    generation: str
    """its uuid"""
    state: State
    """``read`` by the latest version; ``filling``: not read yet; ``old``: only earlier versions read it"""
    segments: int
    """segments, those that only earlier versions need included"""
    bytes: int
    """bytes of them on disk"""
    columns: Mapping[str, int]
    """bytes of each column's values, by name"""
    overhead: int
    """the rest: ids, content hashes, headers, alignment"""
    old: int
    """bytes of the segments that only earlier versions need"""


@dataclass(frozen=True)
class StoreUsage:
    """Bytes of all files of a store, as their lengths tell; the parts add up to ``total``."""

    total: int
    """bytes of everything below the store's folder"""
    generations: tuple[GenerationUsage, ...]
    """segments that the catalog knows, by set and age"""
    rest: Mapping[str, int]
    """bytes of all else, by what it is; ``strays`` are below ``segments/`` and the catalog does not know them"""
    missing: int
    """segments that the catalog names and that are not there"""
    gc_frees: int | None
    """bytes of segments that gc would free, the newest version alone kept besides those with a tag or a bundle; an
    estimate where a segment would be written anew. None where gc refuses"""
    gc_refuses: str
    """why it does: a bundle whose card cannot be read"""

    @property
    def old(self) -> int:
        """Bytes of segments that only earlier versions need."""
        return sum(generation.old for generation in self.generations)


def store_usage(path: Path | str) -> StoreUsage:
    """Add up the files of a store, and ask gc what it would free.

    Reads the catalog and cards, and after a merge, as gc does, the rows that may stand in for those of older versions.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog cannot be opened.
    """
    folder = Path(path)
    with closing(catalog.connect(folder)) as db:
        db.execute("BEGIN")
        sizes = dict(_files(folder))
        known = {row[0] for row in db.execute("SELECT path FROM segments")}
        generations = db.execute(
            "SELECT g.id, g.uuid, s.name, g.set_id FROM generations g JOIN sets s ON s.id = g.set_id "
            "ORDER BY s.name, g.id"
        ).fetchall()
        parts = tuple(_generation(db, sizes, *row) for row in generations)
    rest: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    for name, size in sizes.items():
        if name not in known:
            rest[_kind(name)] += size
    return StoreUsage(sum(sizes.values()), parts, dict(rest), len(known - sizes.keys()), *_collectable(folder))


def _collectable(folder: Path) -> tuple[int | None, str]:
    try:
        return collect_store(folder, dry_run=True).bytes, ""
    except RefusedError as exc:
        return None, str(exc)


def _generation(
    db: sqlite3.Connection, sizes: Mapping[str, int], generation_id: int, uuid: str, set_name: str, set_id: int
) -> GenerationUsage:
    state, as_of = _state(db, set_id, generation_id)
    per_row = {
        column_id: (column.name, column.width * np.dtype(column.dtype).itemsize)
        for column, column_id in catalog.columns_of(db, generation_id).items()
    }
    columns: Counter[str] = Counter({name: 0 for name, _ in per_row.values()})
    segments = total = old = 0
    for path, rows, column_ids, is_old in db.execute(
        "SELECT path, rows, (SELECT group_concat(c.column_id) FROM segment_columns c WHERE c.segment_id = s.id), "
        "removed_in IS NOT NULL AND NOT (added_in <= :v AND removed_in > :v) FROM segments s WHERE generation_id = :g",
        {"g": generation_id, "v": as_of},
    ):
        size = sizes.get(path, 0)
        segments, total, old = segments + 1, total + size, old + size * (state == "old" or is_old)
        data = {name: rows * width for name, width in (per_row[int(one)] for one in column_ids.split(","))}
        if sum(data.values()) <= size:  # else it is cut short: what is left belongs to no column
            columns.update(data)
    return GenerationUsage(set_name, uuid, state, segments, total, dict(columns), total - sum(columns.values()), old)


def _state(db: sqlite3.Connection, set_id: int, generation_id: int) -> tuple[State, int]:
    """Say what a generation is there for, and as of which version it is read."""
    head = catalog.head_of(db, set_id)
    if head is not None and head.generation_id == generation_id:
        return "read", head.as_of
    (was_read,) = db.execute("SELECT count(*) FROM heads WHERE generation_id = ?", (generation_id,)).fetchone()
    (last,) = db.execute("SELECT max(id) FROM versions WHERE generation_id = ?", (generation_id,)).fetchone()
    is_later = head is None or (last or 0) > head.version
    return ("old" if was_read and not is_later else "filling"), -1


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Give path, with ``/``, and length of every file; one that vanishes meanwhile is left out."""
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            try:
                yield path.relative_to(folder).as_posix(), path.lstat().st_size
            except FileNotFoundError:
                continue


def _kind(name: str) -> str:
    top, _, below = name.partition("/")
    if top in (CATALOG, f"{CATALOG}-wal", f"{CATALOG}-shm"):
        return "catalog"
    if top == "segments":
        return "strays"
    known = top in KINDS and top not in ("catalog", "strays")
    return top if below and known else "other"
