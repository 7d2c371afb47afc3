"""Compare an image source with the catalog: what is to be read, what is gone, what stays.

Size, mtime and ctime decide; a file whose times are too fresh to be trusted when it was last looked at is read
again (git's rule for racy timestamps), because it may have changed within one tick of the clock.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalog import CATALOG, columns_of, connect, find_generation, segments_of, set_id_of
from .contract import Column, Contract
from .scan import Scan, SourceImage, decode_id

__all__ = ["Plan", "WorkGroup", "plan_against", "plan_sync"]

RACY_NS = 2_000_000_000
"""File times this close to the moment of looking may hide a later change: the coarsest file system clock ticks
every two seconds."""


@dataclass(frozen=True)
class WorkGroup:
    """Images to read for the same columns."""

    columns: tuple[Column, ...]
    """what they lack"""
    images: tuple[SourceImage, ...]
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
    """ids whose times were too fresh to be trusted, and those read on request"""
    backfill: int
    """unchanged ids that lack a column"""
    retried: int
    """failures tried again because the file changed or on request"""
    failed: int
    """failures left alone: the file is as it was"""
    unchanged: int
    """ids with nothing to do"""
    total: int
    """images of the set before the run"""

    @property
    def to_read(self) -> int:
        """Number of files that the run reads."""
        return sum(len(group.images) for group in self.groups)


@dataclass(frozen=True)
class _Known:
    """What the catalog knows of one id."""

    stat: tuple[int, int, int]
    checked_ns: int
    mask: int


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
        What the source holds.
    rehash
        Read every file, whatever its size and times say.
    retry_failed
        Try recorded failures again although their files are as they were.
    """
    if not (Path(path) / CATALOG).is_file():
        return _plan({}, {}, tuple(columns), scan, rehash=rehash, retry_failed=retry_failed)
    db = connect(Path(path))
    try:
        return plan_against(db, set_name, contract, columns, scan, rehash=rehash, retry_failed=retry_failed)
    finally:
        db.close()


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
    set_id = set_id_of(db, set_name)
    known: dict[bytes, _Known] = {}
    failures: dict[bytes, tuple[int, int, int]] = {}
    if set_id is not None:
        generation = find_generation(db, set_id, contract)
        known = _known_images(db, set_id, generation.id if generation else None, columns)
        if generation:
            rows = db.execute(
                "SELECT id, size, mtime_ns, ctime_ns FROM failures WHERE generation_id = ?", (generation.id,)
            )
            failures = {row[0]: tuple(row[1:]) for row in rows}
    return _plan(known, failures, tuple(columns), scan, rehash=rehash, retry_failed=retry_failed)


def _known_images(
    db: sqlite3.Connection, set_id: int, generation_id: int | None, columns: Sequence[Column]
) -> dict[bytes, _Known]:
    """Read the live images, each with a bit mask of the wanted columns that its content has."""
    ids = columns_of(db, generation_id) if generation_id is not None else {}
    masks = segments_of(db, generation_id, [ids.get(c, -1) for c in columns]) if generation_id is not None else {}
    rows = db.execute(
        "SELECT i.id, i.size, i.mtime_ns, i.ctime_ns, i.checked_ns, v.segment_id FROM images i "
        "LEFT JOIN vectors v ON v.content_id = i.content_id WHERE i.set_id = ? AND i.removed_in IS NULL",
        (set_id,),
    )
    known: dict[bytes, _Known] = {}
    for image, size, mtime, ctime, checked, segment in rows:
        before = known[image].mask if image in known else 0
        known[image] = _Known((size, mtime, ctime), checked, before | masks.get(segment, 0))
    return known


def _plan(
    known: dict[bytes, _Known],
    failures: dict[bytes, tuple[int, int, int]],
    columns: tuple[Column, ...],
    scan: Scan,
    *,
    rehash: bool,
    retry_failed: bool,
) -> Plan:
    everything = (1 << len(columns)) - 1
    groups: dict[int, list[SourceImage]] = {}
    counts: Counter[str] = Counter()
    for image in scan.images:
        key, stat = image.key, (image.size, image.mtime_ns, image.ctime_ns)
        verdict, missing = _judge(known.get(key), failures.get(key), stat, everything, rehash, retry_failed)
        counts[verdict] += 1
        if missing:
            groups.setdefault(missing, []).append(image)
    broken = tuple(
        (image, reason)
        for image, reason in scan.broken
        if retry_failed or failures.get(image.key) != (image.size, image.mtime_ns, image.ctime_ns)
    )
    counts["failed"] += len(scan.broken) - len(broken)
    present = {image.key for image in scan.images} | {image.key for image, _ in scan.broken}
    gone = sorted(key for key in {*known, *failures} if key not in present)
    ordered = sorted(groups.items(), key=lambda item: (item[0] != everything, item[0]))
    return Plan(
        groups=tuple(WorkGroup(tuple(_chosen(columns, mask)), tuple(images)) for mask, images in ordered),
        broken=broken,
        gone=tuple(decode_id(key) for key in gone),
        total=len(known),
        **{name: counts[name] for name in ("added", "changed", "racy", "backfill", "retried", "failed", "unchanged")},
    )


def _judge(
    known: _Known | None,
    failure: tuple[int, int, int] | None,
    stat: tuple[int, int, int],
    everything: int,
    rehash: bool,
    retry_failed: bool,
) -> tuple[str, int]:
    """Say what an image is to this run, and a mask of the columns that it is read for."""
    if failure is not None:
        return ("retried", everything) if retry_failed or failure != stat else ("failed", 0)
    if known is None:
        return "added", everything
    if known.stat != stat:
        return "changed", everything
    if rehash or max(stat[1:]) > known.checked_ns - RACY_NS:
        return "racy", everything
    missing = everything & ~known.mask
    return ("backfill", missing) if missing else ("unchanged", 0)


def _chosen(columns: tuple[Column, ...], mask: int) -> Iterator[Column]:
    return (column for position, column in enumerate(columns) if mask >> position & 1)
