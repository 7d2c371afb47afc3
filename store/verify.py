"""Re-read every byte of a store and hold it against the catalog."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import catalog
from .commit import find_contents
from .errors import StoreDamagedError, StoreError
from .holdings import unpack_ids
from .segment import check_arrays, file_checksum, read_extents, read_header, read_identity

__all__ = ["Problem", "VerifyReport", "require_segments", "verify_store"]


@dataclass(frozen=True)
class Problem:
    """Something found wrong."""

    path: str
    """file, relative to the store"""
    what: str
    """what is wrong with it"""


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify_store`` found."""

    segments: int
    """segments read"""
    rows: int
    """rows of them"""
    bytes: int
    """bytes read"""
    problems: tuple[Problem, ...]
    """what is wrong, by file"""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify_store(path: Path | str) -> VerifyReport:
    """Check every segment: whole-file and dataset checksums, header, contract, and each row against the catalog.

    Reads all bytes once, and holds one segment in memory at a time.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog itself cannot be opened.
    """
    folder = Path(path)
    problems: list[Problem] = []
    files = sorted(p.relative_to(folder).as_posix() for p in (folder / "segments").rglob("*.h5"))  # before the query
    rows: list[tuple[int, str, int, int, str, int]] = []
    with closing(catalog.connect(folder)) as db:
        try:
            problems.extend(Problem(catalog.CATALOG, what) for what in _catalog_trouble(db))
            rows = db.execute(
                "SELECT id, path, rows, size, checksum, generation_id FROM segments ORDER BY id"
            ).fetchall()
            for segment_id, relative, n_rows, size, checksum, generation_id in rows:
                trouble = _file_trouble(folder / relative, size, checksum)
                if not trouble:
                    trouble = _row_trouble(db, folder / relative, segment_id, n_rows, generation_id)
                problems.extend(Problem(relative, what) for what in trouble)
            problems.extend(_strangers(files, db))
        except sqlite3.DatabaseError as exc:
            problems.append(Problem(catalog.CATALOG, f"cannot be read ({exc})"))
    return VerifyReport(len(rows), sum(r[2] for r in rows), sum(r[3] for r in rows), tuple(problems))


def require_segments(folder: Path, db: sqlite3.Connection, set_id: int) -> None:
    """Look at the size of every live segment of a set, so that no run counts on rows that are not there.

    Raises
    ------
    StoreDamagedError
        When a file is missing, or not as long as it was written.
    """
    rows = db.execute(
        "SELECT s.path, s.size FROM segments s JOIN generations g ON g.id = s.generation_id "
        "WHERE g.set_id = ? AND s.removed_in IS NULL",
        (set_id,),
    )
    trouble = [f"{path} {what[0]}" for path, size in rows if (what := _size_trouble(folder / path, size))]
    if trouble:
        raise StoreDamagedError(
            f"{folder}: {len(trouble)} segments are damaged: {', '.join(trouble[:3])}; restore them from a back-up, "
            f"or extract into a new set; `icecore store verify` tells all"
        )


def _catalog_trouble(db: sqlite3.Connection) -> list[str]:
    """Check the catalog by itself: its pages, its references, and that no column has a content twice."""
    trouble = [line for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
    trouble += [
        f"table {row[0]} refers to rows of {row[2]} that are not there"
        for row in db.execute("PRAGMA foreign_key_check")
    ]
    return trouble + [f"{count:,} images have {name} twice" for name, count in _doubled(db)]


def _doubled(db: sqlite3.Connection) -> Iterator[tuple[str, int]]:
    """Give the columns that hold a content in two live segments, with the number of such contents."""
    for column_id, name in db.execute("SELECT id, name FROM columns").fetchall():
        rows = db.execute(
            "SELECT s.contents, s.rows FROM segments s JOIN segment_columns c ON c.segment_id = s.id "
            "WHERE c.column_id = ? AND s.removed_in IS NULL",
            (column_id,),
        )
        held = np.concatenate([np.empty(0, dtype=np.int64), *(np.unique(unpack_ids(*row)) for row in rows)])
        if count := held.size - np.unique(held).size:
            yield name, count


def _size_trouble(path: Path, size: int) -> list[str]:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return ["is missing"]
    return [] if found == size else [f"has {found:,} bytes, should have {size:,}"]


def _file_trouble(path: Path, size: int, checksum: str) -> list[str]:
    if trouble := _size_trouble(path, size):
        return trouble
    if file_checksum(path) == checksum:
        return []
    try:
        damaged = check_arrays(path)
    except (OSError, KeyError, RuntimeError) as exc:
        return [f"bytes changed; HDF5 cannot read it ({exc})"]
    return [f"bytes changed in {', '.join(damaged)}" if damaged else "bytes changed outside the data"]


def _row_trouble(db: sqlite3.Connection, path: Path, segment_id: int, n_rows: int, generation_id: int) -> list[str]:
    try:
        header = read_header(path)
        ids, content = read_identity(path)
    except StoreError as exc:
        return [str(exc)]
    trouble = []
    generation = catalog.generation_by_id(db, generation_id)
    if header.contract != generation.contract or header.generation != generation.uuid or header.uuid != path.stem:
        trouble.append("its contract, generation or name is not the catalog's")
    if not header.rows == n_rows == len(ids) == len(content):
        trouble.append(f"rows: {header.rows} in the header, {len(ids)} ids, {len(content)} contents, {n_rows} expected")
    (packed,) = db.execute("SELECT contents FROM segments WHERE id = ?", (segment_id,)).fetchone()
    entered = find_contents(db, (row.tobytes() for row in content))
    if [entered.get(row.tobytes()) for row in content] != unpack_ids(packed, n_rows).tolist():
        trouble.append("its rows are not those that the catalog names")
    entered_columns = db.execute(
        "SELECT k.name, k.width, c.offset FROM segment_columns c JOIN columns k ON k.id = c.column_id "
        "WHERE c.segment_id = ? ORDER BY k.name",
        (segment_id,),
    ).fetchall()
    if entered_columns != read_extents(path):
        trouble.append("its columns are not those, or not where, the catalog says")
    return trouble


def _strangers(files: list[str], db: sqlite3.Connection) -> list[Problem]:
    """Name segment files that the catalog does not know; the next writer's sweep takes announced ones away."""
    known = {row[0] for row in db.execute("SELECT path FROM segments UNION SELECT path FROM intents")}
    return [Problem(path, "is not in the catalog") for path in files if path not in known]
