"""Take segment files into a catalog that does not know them: strangers, or all of them where the catalog was lost.

A file is looked at by another process first, and then held against the checksums that it carries itself. A content is
entered once a column, from the first segment that has it; of a segment of which only some rows or columns are wanted,
these are written anew. Nothing is deleted here: the caller moves away what is not in use afterwards.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

from . import catalog
from .apart import layouts_of
from .aside import Movements
from .catalog import Generation
from .commit import Target, WrittenSegment, add_segment, enter_contents
from .contract import Column
from .errors import ContractMismatchError, StoreDamagedError
from .examine import file_trouble
from .holdings import Holdings, unpack_ids
from .layout import Layout, StoredArray, read_digests, read_ids
from .measure import Extents, Measured, OnBytes, measure, read_bytes
from .registry import ensure_columns
from .rewrite import write_rows
from .segment import SegmentHeader

__all__ = ["Adopted", "Adopter", "Stranger", "look_at", "settle"]

_HOME = re.compile(r"segments/\w[\w.-]{0,127}/[0-9a-f]{32}/[0-9a-f]{32}\.h5", re.ASCII)


@dataclass(frozen=True)
class Stranger:
    """A segment file by its own word."""

    path: str
    """file, relative to the store"""
    layout: Layout
    """what it says of itself"""
    measured: Measured
    """checksums of its bytes"""
    good: frozenset[Column]
    """columns that match their checksums, every value finite"""

    @property
    def header(self) -> SegmentHeader:
        """What it says of itself, without its arrays."""
        return self.layout.header

    @property
    def home(self) -> str:
        """Where it belongs, relative to the store."""
        return f"segments/{self.header.set_name}/{self.header.generation}/{self.header.uuid}.h5"

    @property
    def order(self) -> tuple[str, int, str]:
        """Sorts strangers from the oldest to the newest; of the same second, the longer one is the merged one."""
        return self.header.created, self.header.rows, self.header.uuid


@dataclass(frozen=True)
class Adopted:
    """What became of a stranger."""

    in_use: bool
    """whether the file itself is in the catalog now"""
    written: tuple[str, ...] = ()
    """new files that hold what was wanted of it, relative to the store"""
    what: str = ""
    """why the file itself is not in use"""


def look_at(folder: Path, names: Sequence[str], on_bytes: OnBytes) -> Iterator[tuple[str, Stranger | str]]:
    """Check files that the catalog does not know, all bytes of each; give a stranger, or why it is of no use.

    Raises
    ------
    StoreDamagedError
        When the system refuses to read a file: that says nothing of the file.
    """
    for name in names:
        _require_readable(folder / name)
    layouts = layouts_of(folder / name for name in names if not file_trouble(folder / name))
    for name in names:
        trouble = file_trouble(folder / name)
        layout = StoreDamagedError(trouble) if trouble else next(layouts)
        if isinstance(layout, StoreDamagedError):
            yield name, str(layout)
        else:
            yield name, _checked(folder, name, layout, on_bytes)


class Adopter:
    """Enters strangers in a catalog that is open for writing; on a dry run in a private copy, and writes no segment."""

    def __init__(self, folder: Path, db: sqlite3.Connection, *, dry_run: bool) -> None:
        self._folder, self._db, self._dry_run = folder, db, dry_run
        self._held: dict[int, Holdings] = {}

    def adopt(self, set_id: int, generation: Generation, stranger: Stranger, version: int) -> Adopted:
        """Enter what a stranger has and its generation lacks, alive from a version on."""
        digests = read_digests(self._folder / stranger.path, stranger.layout)
        try:
            with catalog.transaction(self._db):
                column_ids = ensure_columns(self._db, generation.id, sorted(stranger.good, key=lambda c: c.name))
                numbers = enter_contents(self._db, digests)
        except ContractMismatchError as exc:
            return Adopted(in_use=False, what=str(exc))
        contents = np.array([numbers[digest] for digest in digests], dtype=np.int64)
        bits = {column: 1 << position for position, column in enumerate(column_ids)}
        held = self._held_from(generation.id, list(column_ids.values()), version)
        groups = held.lacking(contents, sum(bits[column] for column in stranger.good))
        target = Target(set_id, generation.id, column_ids, "", "", 0, moves_head=False)
        written = []
        for mask, rows in groups.items():
            columns = [column for column in bits if mask & bits[column]]
            segment = self._segment(generation, stranger, columns, rows, digests)
            with catalog.transaction(self._db):
                add_segment(self._db, target, segment, contents[rows], version)
            held.add(contents[rows], mask)
            written.append(segment.path)
        if stranger.path in written:
            return Adopted(in_use=True)
        return Adopted(in_use=False, written=tuple(written), what=_why_not(stranger, groups))

    def _segment(
        self,
        generation: Generation,
        stranger: Stranger,
        columns: Sequence[Column],
        rows: np.ndarray,
        digests: Sequence[bytes],
    ) -> WrittenSegment:
        """Give the file itself where all of it is wanted, else write what is."""
        header, measured = stranger.header, stranger.measured
        offsets = {column: array.offset for column, array in stranger.layout.columns.items()}
        if set(columns) == set(offsets) and rows.size == header.rows and header.generation == generation.uuid:
            return WrittenSegment(header.uuid, stranger.path, measured.size, measured.checksum, offsets, digests)
        ids = read_ids(self._folder / stranger.path, stranger.layout)
        return write_rows(
            self._folder,
            self._db,
            header,
            generation,
            stranger.path,
            {column: offsets[column] for column in columns},
            rows,
            [ids[row] for row in rows.tolist()],
            [digests[row] for row in rows.tolist()],
            dry_run=self._dry_run,
        )

    def _held_from(self, generation_id: int, column_ids: Sequence[int], version: int) -> Holdings:
        """Give which columns contents have in any segment that is alive at a version or later; adopted ones counted."""
        if generation_id not in self._held:
            bits = {column_id: 1 << position for position, column_id in enumerate(column_ids)}
            held = self._held[generation_id] = Holdings()
            for rows, packed, columns in self._db.execute(
                "SELECT rows, contents, (SELECT group_concat(column_id) FROM segment_columns WHERE segment_id = id) "
                "FROM segments WHERE generation_id = ? AND (removed_in IS NULL OR removed_in > ?)",
                (generation_id, version),
            ):
                held.add(unpack_ids(packed, rows), sum(bits[int(column)] for column in columns.split(",")))
        return self._held[generation_id]


def settle(stranger: Stranger, moves: Movements) -> Stranger | None:
    """Move a stranger to the place that it says is its own; None where another file is there, and it is moved aside."""
    if stranger.path == stranger.home:
        return stranger
    if os.path.lexists(moves.folder / stranger.home):
        moves.aside(stranger.path, f"is a copy of {stranger.home}")
        return None
    moves.back(stranger.path, stranger.home)
    return stranger if moves.dry_run else replace(stranger, path=stranger.home)


def _checked(folder: Path, name: str, layout: Layout, on_bytes: OnBytes) -> Stranger | str:
    header, path = layout.header, folder / name
    try:
        measured = measure(
            path, Extents(header.rows, {c: array.offset for c, array in layout.columns.items()}), on_bytes
        )
        ids, content = _proven(path, layout.ids), _proven(path, layout.content)
    except OSError as exc:
        raise _refused(path, exc) from exc
    if ids is None or content is None or ids.count(b"\0") != header.rows:
        return "bytes changed in the names or contents of its rows"
    good = {column for column, array in layout.columns.items() if measured.columns.get(column) == array.checksum}
    stranger = Stranger(name, layout, measured, frozenset(good - measured.not_finite.keys()))
    return stranger if _HOME.fullmatch(stranger.home) else f"says that it is {stranger.home}"


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except (FileNotFoundError, IsADirectoryError):
        return
    except OSError as exc:
        raise _refused(path, exc) from exc


def _refused(path: Path, exc: OSError) -> StoreDamagedError:
    return StoreDamagedError(f"{path}: cannot be read ({exc.strerror or exc}); nothing was changed")


def _proven(path: Path, array: StoredArray) -> bytes | None:
    """Read an array; None where its bytes do not match its checksum."""
    found = read_bytes(path, array.offset, array.nbytes)
    return found if xxhash.xxh3_128_hexdigest(found) == array.checksum else None


def _why_not(stranger: Stranger, groups: Mapping[int, np.ndarray]) -> str:
    bad = sorted(column.name for column in stranger.layout.columns if column not in stranger.good)
    if bad:
        return f"bytes changed in {', '.join(bad)}"
    return "some of its rows are in other segments too" if groups else "all of its rows are in other segments too"
