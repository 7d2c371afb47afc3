"""The writer: rows in, commits out. One at a time, and whatever happens the store is before or after a commit.

A commit is: note the segment's name in the catalog (``intents``), write ``<uuid>.h5.tmp``, close, fsync, rename,
fsync the folder, then one SQLite transaction. Killed before the transaction, the next writer sweeps what the
intents name; killed after it, everything is there.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from . import catalog
from .buffers import Buffers, Row, cast_rows, require_shapes
from .catalog import Generation, printable
from .commit import Target, WrittenSegment, apply_commit, move_head
from .contract import Column, Contract, Difference
from .durable import make_folder, publish
from .errors import ContractMismatchError, StoreError
from .lock import writer_lock
from .plan import Plan, plan_against
from .scan import Scan, SourceImage, encode_id
from .segment import SegmentHeader, file_checksum, write_segment

__all__ = ["RefusedRow", "Writer"]

log = logging.getLogger(__name__)

FIRST_ROWS, MOST_ROWS = 256, 65_536
"""Rows after which the first segment of a run is committed, and the most that later, growing ones reach."""
MOST_BYTES = 64 << 20
"""Bytes of buffered features after which a segment is committed."""
MOST_SECONDS = 60.0
"""Seconds after which what is there is committed: what a kill can cost."""

_SET_NAME = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class RefusedRow:
    """A row that was not stored, recorded as a failure instead."""

    image: SourceImage
    """the image"""
    reason: str
    """which column cannot hold which value"""


class Writer:
    """Appends rows to one generation of one feature set; made by ``FeatureStore.writer``.

    Call ``append``, ``link`` and ``fail`` in the order of the plan, so that what is committed is always a prefix
    of the work. Leaving the ``with`` block commits the rest; after an exception other than KeyboardInterrupt or
    SystemExit it does not, and only what was committed before stays.
    """

    def __init__(
        self,
        folder: Path,
        set_name: str,
        contract: Contract,
        columns: Sequence[Column],
        *,
        command: str = "",
        source: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        if not _SET_NAME.fullmatch(set_name):
            raise StoreError(f"set name {set_name!r}: use letters, digits, '.', '_' and '-', at most 128 of them")
        self.folder, self.set_name, self.contract, self.columns = folder, set_name, contract, tuple(columns)
        self.command = command
        self._source, self._versions = dict(source or {}), dict(versions or {})
        self._lock = threading.Lock()
        self._closing = ExitStack()
        self._checked_ns = time.time_ns()
        self._segment_rows = FIRST_ROWS
        self._committed_at = time.monotonic()
        self._buffers = Buffers()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(writer_lock(self.folder, command=self.command))
            self._db = catalog.connect(self.folder, write=True)
            stack.callback(self._db.close)
            _sweep(self.folder, self._db)
            with catalog.transaction(self._db):
                self._set_id = _ensure_set(self._db, self.set_name)
                self._generation = self._ensure_generation()
                self._column_ids = self._ensure_columns()
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
                self.commit()
            if kind is None:
                self._switch_readers()

    @property
    def generation(self) -> str:
        """Uuid of the generation written to."""
        return self._generation.uuid

    def plan(self, scan: Scan, *, rehash: bool = False, retry_failed: bool = False) -> Plan:
        """Compare a source with the set; see ``plan_sync``."""
        self._checked_ns = scan.started_ns
        with self._lock:
            return plan_against(
                self._db,
                self.set_name,
                self.contract,
                self.columns,
                scan,
                rehash=rehash,
                retry_failed=retry_failed,
            )

    def is_known(self, content: bytes, columns: Sequence[Column]) -> bool:
        """Say whether a content (sha256 digest, 32 bytes) has vectors in all these columns already.

        Committed and appended ones count. Safe to call from any thread.
        """
        with self._lock:
            return not self._missing(content, columns)

    def append(
        self, images: Sequence[SourceImage], contents: Sequence[bytes], features: Mapping[Column, np.ndarray]
    ) -> list[RefusedRow]:
        """Add rows, and commit when the buffer is full.

        Parameters
        ----------
        images
            The n images.
        contents
            sha256 digest of each image file's bytes.
        features
            ``(n, D)`` of each column, any float dtype; copied. Columns that a content has already are skipped.

        Returns
        -------
        list of RefusedRow
            Rows with a value that the stored dtype cannot hold (NaN, infinity, overflow); recorded as failures.

        Raises
        ------
        ValueError
            When an array has not one row an image, or not the column's width.
        """
        require_shapes(len(images), contents, features)
        stored, refusals = cast_rows(features)
        with self._lock:
            for position, (image, content) in enumerate(zip(images, contents, strict=True)):
                if position in refusals:
                    self._buffers.fail(image, "value", refusals[position], content)
                    continue
                missing = self._missing(content, list(features))
                self._buffers.add(image, content, {column: stored[column][position] for column in missing})
            if self._full():
                self._commit()
        return [RefusedRow(images[position], reason) for position, reason in refusals.items()]

    def link(self, image: SourceImage, content: bytes) -> None:
        """Record an image whose content has its vectors already: moved, copied, or merely touched."""
        with self._lock:
            self._buffers.add(image, content, {})
            if self._full():
                self._commit()

    def fail(self, image: SourceImage, kind: str, reason: str) -> None:
        """Record an image that gave no features; features of its earlier content stop being alive."""
        with self._lock:
            self._buffers.fail(image, kind, printable(reason), None)
            if self._full():
                self._commit()

    def remove(self, ids: Sequence[str]) -> None:
        """Record images that the source has no more; older versions keep them."""
        with self._lock:
            self._buffers.gone.update(encode_id(image_id) for image_id in ids)

    def commit(self) -> int | None:
        """Make everything appended so far durable.

        Returns
        -------
        int or None
            The new version; None when readers would see no difference.
        """
        with self._lock:
            return self._commit()

    def _full(self) -> bool:
        return (
            self._buffers.entries >= self._segment_rows
            or self._buffers.bytes >= MOST_BYTES
            or time.monotonic() - self._committed_at > MOST_SECONDS
        )

    def _missing(self, content: bytes, columns: Sequence[Column]) -> list[Column]:
        """Give the columns that a content lacks, committed or buffered."""
        pending = self._buffers.columns_of(content)
        rows = self._db.execute(
            "SELECT DISTINCT sc.column_id FROM contents c JOIN vectors v ON v.content_id = c.id "
            "JOIN segments s ON s.id = v.segment_id AND s.removed_in IS NULL AND s.generation_id = ? "
            "JOIN segment_columns sc ON sc.segment_id = s.id WHERE c.sha256 = ?",
            (self._generation.id, content),
        )
        committed = {row[0] for row in rows}
        return [c for c in columns if c not in pending and self._column_ids.get(c) not in committed]

    def _commit(self) -> int | None:
        buffers, self._buffers = self._buffers, Buffers()
        self._committed_at = time.monotonic()
        if not buffers.entries and not buffers.gone:
            return None
        segments = [self._write_segment(*parts) for parts in buffers.segments()]
        with catalog.transaction(self._db):
            version = apply_commit(self._db, self._target(), buffers, segments)
        if segments:
            self._segment_rows = min(self._segment_rows * 2, MOST_ROWS)
        if version is not None:
            log.info("committed version %d: %d images, %d segments", version, buffers.entries, len(segments))
        return version

    def _target(self) -> Target:
        return Target(self._set_id, self._generation.id, self._column_ids, printable(self.command), self._checked_ns)

    def _write_segment(
        self, columns: tuple[Column, ...], rows: list[Row], features: Mapping[Column, np.ndarray]
    ) -> WrittenSegment:
        name = uuid.uuid4().hex
        relative = f"segments/{self.set_name}/{self._generation.uuid}/{name}.h5"
        final = self.folder / relative
        temporary = final.with_suffix(".h5.tmp")
        self._db.execute("INSERT INTO intents VALUES (?, ?)", (name, relative))
        make_folder(final.parent)
        header = SegmentHeader(
            uuid=name,
            set_name=self.set_name,
            generation=self._generation.uuid,
            contract=self.contract,
            columns=columns,
            rows=len(rows),
            created=catalog.now(),
            versions=self._versions,
            source=self._source,
        )
        contents = [row.content for row in rows]
        digests = np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, 32)
        offsets = write_segment(temporary, header, [row.image.key for row in rows], digests, features)
        checksum, size = file_checksum(temporary), temporary.stat().st_size
        publish(temporary, final)
        return WrittenSegment(name, relative, size, checksum, offsets, contents)

    def _switch_readers(self) -> None:
        """Make this generation the one that is read, once it covers every image of the set."""
        head = catalog.head_of(self._db, self._set_id)
        if head is None or head.generation_id == self._generation.id or not self._covers_all():
            return
        with catalog.transaction(self._db):
            version = move_head(self._db, self._target())
        log.info("readers of %s moved to generation %s at version %d", self.set_name, self.generation, version)

    def _covers_all(self) -> bool:
        return all(
            self._db.execute(
                "SELECT 1 FROM images i WHERE i.set_id = ? AND i.removed_in IS NULL AND NOT EXISTS ("
                "  SELECT 1 FROM vectors v JOIN segment_columns sc ON sc.segment_id = v.segment_id"
                "  JOIN segments s ON s.id = v.segment_id AND s.removed_in IS NULL"
                "  WHERE v.content_id = i.content_id AND sc.column_id = ?)"
                " AND NOT EXISTS (SELECT 1 FROM failures f WHERE f.generation_id = ? AND f.id = i.id) LIMIT 1",
                (self._set_id, self._column_ids[column], self._generation.id),
            ).fetchone()
            is None
            for column in self.columns
        )

    def _ensure_generation(self) -> Generation:
        found = catalog.find_generation(self._db, self._set_id, self.contract)
        if found:
            return found
        head = catalog.head_of(self._db, self._set_id)
        self._db.execute(
            "INSERT INTO generations (set_id, uuid, contract_hash, contract, parent_id, created, source, versions) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._set_id,
                uuid.uuid4().hex,
                self.contract.hash,
                json.dumps(self.contract.to_json()),
                head.generation_id if head else None,
                catalog.now(),
                json.dumps(self._source),
                json.dumps(self._versions),
            ),
        )
        made = catalog.find_generation(self._db, self._set_id, self.contract)
        assert made is not None
        return made

    def _ensure_columns(self) -> dict[Column, int]:
        held = {column.name: column for column in catalog.columns_of(self._db, self._generation.id)}
        for column in self.columns:
            twin = held.get(column.name)
            if twin is not None and (twin.hash, twin.width) != (column.hash, column.width):
                raise ContractMismatchError(f"column {column.name}", _column_diff(column, twin))
            if twin is None:
                self._db.execute(
                    "INSERT INTO columns (generation_id, name, hash, spec, width) VALUES (?, ?, ?, ?, ?)",
                    (
                        self._generation.id,
                        column.name,
                        column.hash,
                        json.dumps(column.to_json()),
                        column.width,
                    ),
                )
        return catalog.columns_of(self._db, self._generation.id)


def _column_diff(ours: Column, theirs: Column) -> list[Difference]:
    pairs = {**ours.to_json(), "width": ours.width}, {**theirs.to_json(), "width": theirs.width}
    return [Difference(key, pairs[0][key], pairs[1][key]) for key in pairs[0] if pairs[0][key] != pairs[1][key]]


def _ensure_set(db: sqlite3.Connection, name: str) -> int:
    db.execute("INSERT OR IGNORE INTO sets (name) VALUES (?)", (name,))
    set_id = catalog.set_id_of(db, name)
    assert set_id is not None
    return set_id


def _sweep(folder: Path, db: sqlite3.Connection) -> None:
    """Delete what a killed writer left: segments that it announced and did not commit. Nothing else."""
    for name, relative in db.execute("SELECT uuid, path FROM intents").fetchall():
        final = folder / relative
        for leftover in (final, final.with_suffix(".h5.tmp")):
            if leftover.exists():
                log.warning("swept %s, left by a run that was cut off", leftover)
                leftover.unlink()
        with catalog.transaction(db):
            db.execute("DELETE FROM intents WHERE uuid = ?", (name,))
