"""One segment file against what the catalog says of it; HDF5 opens it only once its bytes are proven.

The catalog knows where each column's data lies and the checksum of the whole file. Where that differs, a column is
still proven good when the checksum of its bytes stands in the file as text, as it was written beside the column; and
that the file is the right one, when its own name stands in it.
"""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from . import catalog
from .catalog import Generation
from .contents import Contents
from .contract import Column
from .errors import StoreDamagedError
from .holdings import unpack_ids
from .layout import Layout, layout_of
from .measure import Extents, Measured, OnBytes, find_texts, measure, read_bytes
from .segment import COLUMNS

__all__ = ["Finding", "Recorded", "check_file", "examine", "file_trouble", "header_trouble", "recorded"]


@dataclass(frozen=True)
class Recorded:
    """A segment as the catalog has it."""

    id: int
    """its row in the catalog"""
    uuid: str
    """its name, 32 hex digits"""
    set_id: int
    """row of its feature set"""
    set_name: str
    """name of the set"""
    generation: Generation
    """its generation"""
    path: str
    """file, relative to the store"""
    rows: int
    """number of rows"""
    size: int
    """bytes of the file"""
    checksum: str
    """XXH3-128 of the file"""
    added_in: int
    """version from which on it is alive"""
    removed_in: int | None
    """version from which on it is not"""
    contents: np.ndarray
    """``(rows,)`` int64: content id of each row; empty where the catalog's value cannot be unpacked"""
    columns: Mapping[Column, int]
    """where the data of each of its columns begins"""

    @property
    def extents(self) -> Extents:
        """Where its columns lie in the file."""
        return Extents(self.rows, self.columns)


@dataclass(frozen=True)
class Finding:
    """What is wrong with a segment."""

    segment: Recorded
    """the segment"""
    state: Literal["sound", "missing", "damaged", "misrecorded", "unreadable"]
    """missing: no file; damaged: not the bytes that were written; misrecorded: the bytes that were written, but the
    catalog says otherwise of their rows or columns; unreadable: the system does not let it be read now"""
    what: tuple[str, ...] = ()
    """each thing that is wrong"""
    good: frozenset[Column] = frozenset()
    """columns whose data is proven to be as written"""


def recorded(db: sqlite3.Connection, ids: Collection[int] | None = None) -> list[Recorded]:
    """Read some segments, or all, of a catalog that has been found consistent; dead ones too."""
    generations = {row[0]: catalog.generation_by_id(db, row[0]) for row in db.execute("SELECT id FROM generations")}
    columns = {
        column_id: column
        for generation in generations
        for column, column_id in catalog.columns_of(db, generation).items()
    }
    places: dict[int, dict[Column, int]] = {}
    for segment_id, column_id, offset in db.execute("SELECT segment_id, column_id, offset FROM segment_columns"):
        places.setdefault(segment_id, {})[columns[column_id]] = offset
    rows = db.execute(
        "SELECT s.id, s.uuid, s.generation_id, s.path, s.rows, s.size, s.checksum, s.added_in, s.removed_in, "
        "s.contents, g.set_id, t.name FROM segments s JOIN generations g ON g.id = s.generation_id "
        "JOIN sets t ON t.id = g.set_id ORDER BY s.id"
    )
    rows.row_factory = sqlite3.Row
    return [
        Recorded(
            id=row["id"],
            uuid=row["uuid"],
            set_id=row["set_id"],
            set_name=row["name"],
            generation=generations[row["generation_id"]],
            path=row["path"],
            rows=row["rows"],
            size=row["size"],
            checksum=row["checksum"],
            added_in=row["added_in"],
            removed_in=row["removed_in"],
            contents=_unpacked(row["contents"], row["rows"]),
            columns=places.get(row["id"], {}),
        )
        for row in rows
        if ids is None or row["id"] in ids
    ]


def check_file(folder: Path, segment: Recorded, *, on_bytes: OnBytes = lambda n: None) -> Finding:
    """Read every byte of a segment: say whether they are those that were written, and every value is finite."""
    path = folder / segment.path
    if trouble := file_trouble(path):
        return Finding(segment, "missing", (trouble,))
    try:
        measured = measure(path, segment.extents, on_bytes)
        if measured.checksum != segment.checksum:
            return _damaged(path, segment, measured)
    except OSError as exc:
        return Finding(segment, "unreadable", (f"cannot be read ({exc.strerror or exc})",))
    good = frozenset(segment.columns) - measured.not_finite.keys()
    return Finding(segment, "damaged" if measured.not_finite else "sound", tuple(_not_finite(measured)), good)


def examine(folder: Path, segment: Recorded, contents: Contents, *, on_bytes: OnBytes = lambda n: None) -> Finding:
    """Check the file, and then compare its header, columns and rows with the catalog."""
    path = folder / segment.path
    finding = check_file(folder, segment, on_bytes=on_bytes)
    if finding.state != "sound":
        return finding
    try:
        layout = layout_of(path)
        what = (*header_trouble(segment, layout), *_row_trouble(path, segment, layout, contents))
    except StoreDamagedError as exc:
        return Finding(segment, "damaged", (str(exc),))
    return Finding(segment, "misrecorded" if what else "sound", what, frozenset(segment.columns))


def file_trouble(path: Path, size: int | None = None) -> str:
    """Say what is wrong with a file from the outside: not there, not a file, not of this size; or nothing."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as exc:
        return f"cannot be looked at ({exc.strerror})"
    if not stat.S_ISREG(found.st_mode):
        return "is not a file"
    return "" if size in (None, found.st_size) else f"has {found.st_size:,} bytes, should have {size:,}"


def header_trouble(segment: Recorded, layout: Layout) -> list[str]:
    """Compare what a segment says of itself with the catalog."""
    header, generation = layout.header, segment.generation
    trouble = []
    if (header.uuid, header.generation, header.set_name) != (segment.uuid, generation.uuid, segment.set_name):
        trouble.append(f"is another: segment {header.uuid} of set {header.set_name}, generation {header.generation}")
    if header.contract != generation.contract:
        trouble.append("its contract is not that of its generation")
    if header.rows != segment.rows:
        trouble.append(f"has {header.rows:,} rows, should have {segment.rows:,}")
    found = {column.name: (column, column.width, array.offset) for column, array in layout.columns.items()}
    entered = {column.name: (column, column.width, offset) for column, offset in segment.columns.items()}
    if found != entered:
        trouble.append("its columns are not those, or not where, the catalog says")
    return trouble


def _damaged(path: Path, segment: Recorded, measured: Measured) -> Finding:
    stands = find_texts(path, segment.extents, measured.size, [segment.uuid, *measured.columns.values()])
    good = {c for c, digest in measured.columns.items() if digest in stands} - measured.not_finite.keys()
    same_size = measured.size == segment.size
    what = "bytes changed" if same_size else f"has {measured.size:,} bytes, should have {segment.size:,}: bytes lost"
    if segment.uuid not in stands:
        return Finding(segment, "damaged", (f"{what}; its name does not stand in it: it may be another file",))
    bad = sorted(f"{COLUMNS}/{column.name}" for column in segment.columns if column not in good)
    where = f"in {', '.join(bad)}" if bad else "outside the features"
    return Finding(segment, "damaged", (f"{what} {where}",), frozenset(good))


def _not_finite(measured: Measured) -> Iterator[str]:
    for column, row in measured.not_finite.items():
        yield f"{COLUMNS}/{column.name} has a value in row {row:,} that is not finite"


def _row_trouble(path: Path, segment: Recorded, layout: Layout, contents: Contents) -> list[str]:
    """Compare the rows of an intact file with the catalog."""
    trouble = []
    ids = read_bytes(path, layout.ids.offset, layout.ids.nbytes)
    count = ids.count(b"\0")
    if count != segment.rows or not ids.endswith(b"\0"):
        trouble.append(f"has {count:,} ids for {segment.rows:,} rows")
    found = np.frombuffer(read_bytes(path, layout.content.offset, layout.content.nbytes), dtype=np.uint8)
    entered = segment.contents
    numbered = entered.size == segment.rows and entered.min() >= 0 and entered.max() < len(contents.known)
    if not numbered or not np.array_equal(contents.digests[entered].ravel(), found):
        trouble.append("its rows are not those that the catalog names")
    return trouble


def _unpacked(packed: bytes, rows: int) -> np.ndarray:
    try:
        return unpack_ids(packed, rows)
    except StoreDamagedError:
        return np.empty(0, dtype=np.int64)
