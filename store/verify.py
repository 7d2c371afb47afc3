"""Re-read every byte of a store and hold it against the catalog."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .errors import StoreError
from .segment import check_arrays, file_checksum, read_header, read_identity

__all__ = ["Problem", "VerifyReport", "verify_store"]


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
    with closing(catalog.connect(folder)) as db:
        for (line,) in db.execute("PRAGMA integrity_check").fetchall():
            if line != "ok":
                problems.append(Problem(catalog.CATALOG, line))
        rows = db.execute("SELECT id, path, rows, size, checksum, generation_id FROM segments ORDER BY id").fetchall()
        for segment_id, relative, n_rows, size, checksum, generation_id in rows:
            trouble = _file_trouble(folder / relative, size, checksum)
            if not trouble:
                trouble = _row_trouble(db, folder / relative, segment_id, n_rows, generation_id)
            problems.extend(Problem(relative, what) for what in trouble)
        problems.extend(_strangers(folder, db))
    return VerifyReport(len(rows), sum(r[2] for r in rows), sum(r[3] for r in rows), tuple(problems))


def _file_trouble(path: Path, size: int, checksum: str) -> list[str]:
    if not path.is_file():
        return ["is missing"]
    found = path.stat().st_size
    if found != size:
        return [f"has {found:,} bytes, should have {size:,}"]
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
    if header.contract != generation.contract or header.generation != generation.uuid:
        trouble.append("its contract or generation is not the catalog's")
    if not header.rows == n_rows == len(ids) == len(content):
        trouble.append(f"rows: {header.rows} in the header, {len(ids)} ids, {len(content)} contents, {n_rows} expected")
    entered = db.execute(
        "SELECT c.sha256 FROM vectors v JOIN contents c ON c.id = v.content_id WHERE v.segment_id = ? ORDER BY v.row",
        (segment_id,),
    ).fetchall()
    if [row[0] for row in entered] != [row.tobytes() for row in content]:
        trouble.append("its rows are not those that the catalog names")
    columns = dict(
        db.execute(
            "SELECT k.name, k.width FROM segment_columns c JOIN columns k ON k.id = c.column_id WHERE c.segment_id = ?",
            (segment_id,),
        ).fetchall()
    )
    if columns != {column.name: column.width for column in header.columns}:
        trouble.append("its columns are not those that the catalog names")
    return trouble


def _strangers(folder: Path, db: sqlite3.Connection) -> list[Problem]:
    """Name segment files that the catalog does not know; the next writer's sweep takes announced ones away."""
    known = {row[0] for row in db.execute("SELECT path FROM segments UNION SELECT path FROM intents")}
    found = sorted(p.relative_to(folder).as_posix() for p in (folder / "segments").rglob("*.h5"))
    return [Problem(path, "is not in the catalog") for path in found if path not in known]
