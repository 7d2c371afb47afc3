"""The writer: rows in, commits out. One at a time, and whatever happens the store is before or after a commit.

A commit is: note the segment's name in the catalog (``intents``), write ``<uuid>.h5.tmp``, close, fsync, rename,
fsync the folder, then one SQLite transaction. Killed before the transaction, the next writer sweeps what the
intents name; killed after it, everything is there.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from . import catalog
from .buffers import NONE, Block, Buffers, Row, cast_rows, require_shapes
from .catalog import printable
from .commit import Target, WrittenSegment, add_version, apply_commit, next_version, set_head
from .compact import choose_small, compact_generation
from .contract import Column, Contract
from .errors import DiskError, StoreError
from .heads import count_uncovered, is_read
from .known import Known
from .plan import Plan, plan_against
from .publishing import publish_segment
from .registry import ensure_columns, ensure_generation, ensure_set
from .scan import Scan, SourceImage, encode_id
from .session import writing
from .verify import require_segments

__all__ = ["Commit", "RefusedRow", "Writer"]

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
    """An image with a column that cannot hold its value; its other columns are stored."""

    image: SourceImage
    """the image"""
    reason: str
    """which column cannot hold which value; several are joined by ``; ``"""


@dataclass(frozen=True)
class Commit:
    """What a writer has made durable at once."""

    version: int
    """the version that it made"""
    images: int
    """images with a row, a link or a failure in it"""
    segments: int
    """files written for it"""


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
        run: str | None = None,
    ) -> None:
        if not _SET_NAME.fullmatch(set_name):
            raise StoreError(f"set name {set_name!r}: use letters, digits, '.', '_' and '-', at most 128 of them")
        self.folder, self.set_name, self.contract, self.columns = folder, set_name, contract, tuple(columns)
        self.command = command
        self.run = run or uuid.uuid4().hex
        """names this run in the log"""
        self.on_commit: Callable[[Commit], None] | None = None
        """called after each commit, in the thread that caused it"""
        self.uncovered = 0
        """after closing: images that keep readers at another generation or an earlier version"""
        self._source, self._versions = dict(source or {}), dict(versions or {})
        self._lock = threading.Lock()
        self._closing = ExitStack()
        self._checked_ns = time.time_ns()
        self._retries = False
        self._segment_rows = FIRST_ROWS
        self._committed_at = time.monotonic()
        self._buffers = Buffers()
        self._cut_off = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._db = stack.enter_context(writing(self.folder, command=self.command))
            with catalog.transaction(self._db):
                self._set_id = ensure_set(self._db, self.set_name)
                require_segments(self.folder, self._db, self._set_id)
                self._generation = ensure_generation(
                    self._db, self._set_id, self.contract, self._source, self._versions
                )
                self._column_ids = ensure_columns(self._db, self._generation.id, self.columns)
                self._known = Known(self._db, self._generation.id, self._column_ids)
            self._moves_head = is_read(self._db, self._set_id, self._generation.id)
            self._closing = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            if kind is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
                self.commit()
            if kind is None and not self._moves_head:
                self._switch_readers()
            if kind is None:
                self._merge_small_segments()

    @property
    def generation(self) -> str:
        """Uuid of the generation written to."""
        return self._generation.uuid

    @property
    def retries(self) -> bool:
        """Whether contents that a column refused are tried again, as the last ``plan`` was asked."""
        return self._retries

    def plan(self, scan: Scan, *, rehash: bool = False, retry_failed: bool = False) -> Plan:
        """Compare a source with the set; see ``plan_sync``."""
        self._retries = retry_failed
        with self._lock:
            plan = plan_against(
                self._db, self.set_name, self.contract, self.columns, scan, rehash=rehash, retry_failed=retry_failed
            )
        self._checked_ns = scan.started_ns
        return plan

    def is_known(self, content: bytes, columns: Sequence[Column]) -> bool:
        """Say whether a content (sha256 digest, 32 bytes) has vectors, or refusals, in all these columns already.

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
            Images with a value that a column's dtype cannot hold (NaN, infinity, overflow). The column is recorded
            as refused for this content, under whatever name it comes; the other columns are stored.

        Raises
        ------
        ValueError
            When an array has not one row an image, or not the column's width, or the column was not announced.
        SourceError
            When an image's id is empty, longer than 4,096 bytes or holds NUL; nothing of the batch is taken.
        """
        require_shapes(len(images), contents, features)
        keys = [encode_id(image.id) for image in images]
        if strangers := [column.name for column in features if column not in self._column_ids]:
            raise ValueError(f"append: the writer was not opened for {', '.join(strangers)}")
        stored, refused = cast_rows(features)
        rows = list(map(Row, keys, images, contents))
        with self._lock:
            for columns, positions in self._lacking(rows, list(features), refused).items():
                X = {c: stored[c] if len(positions) == len(rows) else stored[c][positions] for c in columns}
                self._buffers.add(Block([rows[position] for position in positions], X))
            self._buffers.enter(rows)
            if self._full():
                self._commit()
        return [RefusedRow(images[position], "; ".join(why.values())) for position, why in refused.items()]

    def link(self, image: SourceImage, content: bytes) -> None:
        """Record an image whose content has its vectors already: moved, copied, or merely touched.

        Raises
        ------
        ValueError
            When the content has none in this generation.
        """
        with self._lock:
            if not self._known.of(content, refused=True) | self._buffers.columns_of(content):
                raise ValueError(f"link: the content of {image.id!r} has no features in this generation")
            self._buffers.enter([Row(image.key, image, content)])
            if self._full():
                self._commit()

    def fail(self, image: SourceImage, kind: str, reason: str) -> None:
        """Record an image that gave no features; features of its earlier content stop being alive if its file is there.

        ``kind`` says what to do next: ``decode``, ``too-large`` and ``unsupported`` are facts about the bytes,
        ``read`` about the file, and ``transient`` ones are tried again by every run.
        """
        with self._lock:
            self._buffers.fail(image, kind, printable(reason))
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
            The new version; None when nothing has changed.
        """
        with self._lock:
            return self._commit()

    def _full(self) -> bool:
        return (
            self._buffers.entries >= self._segment_rows
            or self._buffers.bytes >= MOST_BYTES
            or time.monotonic() - self._committed_at > MOST_SECONDS
        )

    def _lacking(
        self, rows: Sequence[Row], columns: Sequence[Column], refused: Mapping[int, Mapping[Column, str]]
    ) -> dict[tuple[Column, ...], list[int]]:
        """Group rows by the columns that their contents lack; what cannot be stored is noted as refused."""
        known = self._known.of_all([row.content for row in rows], refused=not self._retries)
        whole: list[int] = []
        groups: dict[tuple[Column, ...], list[int]] = {tuple(columns): whole}
        seen: set[bytes] = set()
        for position, (_, _, content) in enumerate(rows):
            if content in seen:
                continue
            seen.add(content)
            held = known.get(content, NONE) | self._buffers.columns_of(content)
            if not held and position not in refused:
                whole.append(position)  # the one path that a million rows take
                continue
            reasons = {column: why for column, why in refused.get(position, {}).items() if column not in held}
            if reasons:
                self._buffers.refuse(content, reasons)
            lacking = tuple(column for column in columns if column not in held and column not in reasons)
            if lacking:
                groups.setdefault(lacking, []).append(position)
        return {lacking: positions for lacking, positions in groups.items() if lacking and positions}

    def _missing(self, content: bytes, columns: Sequence[Column]) -> list[Column]:
        """Give the columns that a content lacks, committed or buffered."""
        held = self._known.of(content, refused=not self._retries) | self._buffers.columns_of(content)
        return [column for column in columns if column not in held]

    def _commit(self) -> int | None:
        """Write segments, then the transaction; the buffers are kept until both are done, and tried again."""
        self._committed_at = time.monotonic()
        if not self._buffers.entries and not self._buffers.gone:
            return None
        if self._cut_off:
            catalog.roll_back(self._db)  # a second Ctrl-C may have come before it
            self._known = Known(self._db, self._generation.id, self._column_ids)
            self._buffers.prune(self._known.of)
        self._cut_off = True
        segments = [self._publish(*parts) for parts in self._buffers.segments()]
        with catalog.transaction(self._db):
            entered = apply_commit(self._db, self._target(), self._buffers, segments, self._known.asked)
        self._known.note(entered)
        if segments:
            self._segment_rows = min(self._segment_rows * 2, MOST_ROWS)
        n = self._buffers.entries
        self._buffers, self._cut_off = Buffers(), False
        if entered.version is not None:
            log.info("committed version %d: %d images, %d segments", entered.version, n, len(segments))
            if self.on_commit is not None:
                self.on_commit(Commit(entered.version, n, len(segments)))
        return entered.version

    def _target(self) -> Target:
        return Target(
            set_id=self._set_id,
            generation_id=self._generation.id,
            column_ids=self._column_ids,
            command=printable(self.command),
            run=self.run,
            checked_ns=self._checked_ns,
            moves_head=self._moves_head,
        )

    def _publish(
        self, columns: tuple[Column, ...], rows: Sequence[Row], features: Mapping[Column, Sequence[np.ndarray]]
    ) -> WrittenSegment:
        return publish_segment(
            self.folder,
            self._db,
            self.set_name,
            self._generation,
            [row.key for row in rows],
            [row.content for row in rows],
            features,
            source=self._source,
            versions=self._versions,
        )

    def _merge_small_segments(self) -> None:
        chosen = choose_small(self._db, self._generation.id)
        if not chosen:
            return
        try:
            done = compact_generation(
                self.folder, self._db, self.set_name, self._generation, chosen, command=self.command, run=self.run
            )
        except DiskError as exc:  # what was asked of the run is done
            log.warning("small segments were not merged, a later run will (%s)", exc)
            return
        if done is not None:
            log.info("merged %d small segments into %d", done.segments_before, done.segments_after)

    def _switch_readers(self) -> None:
        """Let readers see this generation as it is now, once it covers every image of the set."""
        columns = [self._column_ids[column] for column in self.columns]
        self.uncovered = count_uncovered(self._db, self._set_id, self._generation.id, columns)
        if self.uncovered:
            log.warning("readers of %s stay where they are: %d images lack features", self.set_name, self.uncovered)
            return
        with catalog.transaction(self._db):
            version = next_version(self._db)
            add_version(self._db, self._target(), version, "sync")
            set_head(self._db, self._target(), version)
        log.info("readers of %s moved to generation %s at version %d", self.set_name, self.generation, version)
