"""Compare an image source with the catalog: what is to be read, what is gone, what stays.

Size, mtime and ctime decide; a file whose times are too fresh to be trusted when it was last looked at is read
again (git's rule for racy timestamps), because it may have changed within one tick of the clock. Source and catalog
are both walked in the order of the ids and merged, and the work is spooled to disk, so memory does not grow with
the number of images.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from .catalog import CATALOG, columns_of, connect, find_generation, generation_by_id, head_of, set_id_of
from .contract import Column, Contract, Difference
from .errors import SourceError
from .holdings import Holdings, load_held, load_refused
from .scan import Found, Scan, SourceImage, decode_id
from .spool import PlannedImages, Spool
from .verify import require_segments

__all__ = ["Plan", "WorkGroup", "plan_against", "plan_sync"]

TRANSIENT = "transient"
"""Kind of the failures that say nothing of the image (a disk that did not answer): tried again by every run."""

_Stat = tuple[int, int, int]
_Known = tuple[bytes, int, int, int, int, int]
"""id, size, mtime_ns, ctime_ns, 1 when its times prove nothing, content"""
_LAST: _Known = (b"\xff" * 5000, 0, 0, 0, 0, 0)
"""Sorts behind every id, because no path is that long."""


@dataclass(frozen=True)
class WorkGroup:
    """Images to read for the same columns."""

    columns: tuple[Column, ...]
    """what they lack"""
    images: PlannedImages
    """in the order of their ids"""


@dataclass(frozen=True)
class Plan:
    """What a run has to do. Counts are images."""

    groups: tuple[WorkGroup, ...]
    """files to read; a file whose content turns out to be known is not forwarded"""
    broken: tuple[tuple[SourceImage, str], ...]
    """names that lead nowhere, not yet recorded as failures"""
    gone: tuple[str, ...]
    """ids that the set or its failures hold and the source has no more"""
    added: int
    """ids never seen, or seen again after a removal"""
    changed: int
    """ids whose size or times differ"""
    racy: int
    """ids whose times were too fresh to be trusted, those that a repair entered, and those read on request"""
    backfill: int
    """unchanged ids that lack a column"""
    retried: int
    """failures tried again because the file changed or on request"""
    failed: int
    """failures left alone: the file is as it was, or the content does not fit the column"""
    unchanged: int
    """ids with nothing to do"""
    total: int
    """images of the set before the run"""
    vanished: int
    """those of them that are gone"""
    differences: tuple[Difference, ...] = ()
    """where the contract differs from the one that readers of the set see: not empty, every image is read again"""

    @property
    def to_read(self) -> int:
        """Number of files that the run reads."""
        return sum(len(group.images) for group in self.groups)


def plan_sync(
    path: Path | str,
    set_name: str,
    contract: Contract,
    columns: Sequence[Column],
    scan: Scan,
    *,
    rehash: bool = False,
    retry_failed: bool = False,
) -> Plan:
    """Plan a run without taking the lock or writing anything; the store need not exist yet.

    Parameters
    ----------
    path
        The store's folder.
    set_name
        Feature set.
    contract, columns
        What is to be extracted.
    scan
        The source; it is walked once.
    rehash
        Read every file, whatever its size and times say.
    retry_failed
        Try recorded failures again although their files are as they were.

    Raises
    ------
    SourceError
        When a folder of the source cannot be listed, or it holds no images.
    StoreDamagedError
        When a segment of the set is missing or cut short.
    """
    options = {"rehash": rehash, "retry_failed": retry_failed}
    if not (Path(path) / CATALOG).is_file():
        return _Merge(tuple(columns), scan, **options).plan(iter(()), {})
    with closing(connect(Path(path))) as db:
        db.execute("BEGIN")  # every query sees the same commit
        set_id = set_id_of(db, set_name)
        if set_id is not None:
            require_segments(Path(path), db, set_id)
        return plan_against(db, set_name, contract, columns, scan, **options)


def plan_against(
    db: sqlite3.Connection,
    set_name: str,
    contract: Contract,
    columns: Sequence[Column],
    scan: Scan,
    *,
    rehash: bool,
    retry_failed: bool,
) -> Plan:
    """Plan a run against an open catalog; see ``plan_sync``."""
    merge = _Merge(tuple(columns), scan, rehash=rehash, retry_failed=retry_failed)
    set_id = set_id_of(db, set_name)
    if set_id is None:
        return merge.plan(iter(()), {})
    head = head_of(db, set_id)
    if head is not None:
        merge.differences = contract.diff(generation_by_id(db, head.generation_id).contract)
    generation = find_generation(db, set_id, contract)
    failures: dict[bytes, _Stat] = {}
    if generation is not None:
        ids = columns_of(db, generation.id)
        wanted = [ids.get(column, -1) for column in columns]
        merge.held, merge.refused = load_held(db, generation.id, wanted), load_refused(db, wanted)
        failures = _failures(db, generation.id)
    with closing(_known_images(db, set_id)) as known:  # a source that fails half-way must not leave it open
        return merge.plan(known, failures)


def _known_images(db: sqlite3.Connection, set_id: int) -> sqlite3.Cursor:
    """Read the live images, each as ``_Known``, in the order of their ids."""
    return db.execute(
        "SELECT id, size, mtime_ns, ctime_ns, racy, content_id FROM images "
        "WHERE set_id = ? AND removed_in IS NULL ORDER BY id",
        (set_id,),
    )


def _failures(db: sqlite3.Connection, generation_id: int) -> dict[bytes, _Stat]:
    """Read the failures with the file status that each was met with; an impossible one where that proves nothing."""
    rows = db.execute(
        "SELECT id, kind, racy, size, mtime_ns, ctime_ns FROM failures WHERE generation_id = ? AND removed_in IS NULL",
        (generation_id,),
    )
    return {key: (-1, -1, -1) if kind == TRANSIENT or racy else tuple(stat) for key, kind, racy, *stat in rows}


class _Merge:
    """One walk through source and catalog, side by side."""

    def __init__(self, columns: tuple[Column, ...], scan: Scan, *, rehash: bool, retry_failed: bool) -> None:
        self.columns, self.scan, self.rehash, self.retry_failed = columns, scan, rehash, retry_failed
        self.everything = (1 << len(columns)) - 1
        self.held, self.refused = Holdings(), Holdings()
        self.differences: tuple[Difference, ...] = ()
        self.counts: Counter[str] = Counter()
        self.spool = Spool()
        self.broken: list[tuple[SourceImage, str]] = []
        self.nowhere: list[bytes] = []
        self.gone: list[bytes] = []

    def plan(self, known_images: Iterator[_Known], failures: dict[bytes, _Stat]) -> Plan:
        total = unchanged = 0
        complete = self.held.flags(self.everything)
        last = len(complete)
        known = next(known_images, _LAST)
        for found in self.scan:
            key, size, mtime, ctime, trouble = found
            if known[0] != key:
                while known[0] < key:
                    self.gone.append(known[0])
                    total += 1
                    known = next(known_images, _LAST)
                if known[0] != key:
                    self._decide(found, None, failures)
                    continue
            total += 1
            if (
                known[1:5] == (size, mtime, ctime, 0)
                and known[5] < last
                and complete[known[5]]
                and not trouble
                and not self.rehash
                and key not in failures
            ):
                unchanged += 1  # the one path that a million files take
            else:
                self._decide(found, known, failures)
            known = next(known_images, _LAST)
        while known is not _LAST:
            self.gone.append(known[0])
            total += 1
            known = next(known_images, _LAST)
        self.counts["unchanged"] += unchanged
        return self._finish(total, failures)

    def _refuse_unmounted(self) -> None:
        """Refuse to take images for deleted whose folder is a link that leads nowhere: its disk may be away."""
        for prefix in self.nowhere:
            below = bisect_left(self.gone, prefix[:-1] + b"0") - bisect_left(self.gone, prefix)  # "0" follows "/"
            if below:
                link = self.scan.root / decode_id(prefix[:-1])
                raise SourceError(
                    f"{link}: this link leads nowhere, and the set holds {below:,} images below it; "
                    f"mount what it points to, or remove the link; nothing was changed"
                )

    def _decide(self, found: Found, known: _Known | None, failures: dict[bytes, _Stat]) -> None:
        key, size, mtime, ctime, trouble = found
        failure = failures.pop(key, None)
        if failure is not None and not self.retry_failed and failure == (size, mtime, ctime):
            self.counts["failed"] += 1
        elif trouble:
            self.broken.append((self.scan.image(key, size, mtime, ctime), trouble))
            if self.scan.ids_are_paths:
                self.nowhere.append(key + b"/")
        else:
            verdict, missing = self._judge(found, known, tried=failure is not None)
            self.counts[verdict] += 1
            if missing:
                self.spool.add(missing, key, size, mtime, ctime)

    def _judge(self, found: Found, known: _Known | None, *, tried: bool) -> tuple[str, int]:
        """Say what an image is to this run, and a mask of the columns that it is read for."""
        if tried:
            return "retried", self.everything
        if known is None:
            return "added", self.everything
        if known[1:4] != found[1:4]:
            # Of an image that a repair entered nobody knows what its file was like; no file has the size -1.
            return "changed" if known[1] >= 0 else "racy", self.everything
        if self.rehash or known[4]:
            return "racy", self.everything
        held = self.held.mask(known[5])
        refused = self.refused.mask(known[5]) & ~held
        if refused and self.retry_failed:
            return "retried", self.everything & ~held
        missing = self.everything & ~held & ~refused
        return ("backfill", missing) if missing else ("failed" if refused else "unchanged", 0)

    def _finish(self, total: int, failures: dict[bytes, _Stat]) -> Plan:
        vanished = len(self.gone)
        self._refuse_unmounted()
        self.gone.extend(set(failures).difference(self.gone))  # what is left was not met in the source
        masks = sorted(self.spool.counts, key=lambda mask: (mask != self.everything, mask))
        return Plan(
            groups=tuple(
                WorkGroup(tuple(_chosen(self.columns, mask)), PlannedImages(self.spool, self.scan, mask))
                for mask in masks
            ),
            broken=tuple(self.broken),
            gone=tuple(decode_id(key) for key in sorted(self.gone)),
            total=total,
            vanished=vanished,
            differences=self.differences,
            added=self.counts["added"],
            changed=self.counts["changed"],
            racy=self.counts["racy"],
            backfill=self.counts["backfill"],
            retried=self.counts["retried"],
            failed=self.counts["failed"],
            unchanged=self.counts["unchanged"],
        )


def _chosen(columns: tuple[Column, ...], mask: int) -> Iterator[Column]:
    return (column for position, column in enumerate(columns) if mask >> position & 1)
