"""Will this disk and this store serve? Each answer as a check: well, to be known, or about to break, with the cure."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import catalog
from .errors import StoreError, StoreNotFoundError
from .lock import is_locked, read_holder
from .verify import verify_store

__all__ = ["Check", "Health", "check_disk", "check_store", "file_system_of"]

Health = Literal["ok", "warn", "bad"]
"""well; good to know, or slower than it could be; something will break"""

LEAST_BYTES, FEW_BYTES = 256 << 20, 4 << 30
"""Free bytes below which a run breaks (a segment, its merge and the log of the catalog), and below which to look."""
SAMPLE_BYTES = 32 << 20
"""Bytes that are written and read to measure a disk."""
SLOW_FSYNC = 0.2
"""Seconds of an fsync above which commits are felt."""
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|gpfs|beegfs|glusterfs|ncpfs|fuse\.(sshfs|.*gluster.*|s3\w*)"
)
_MB = 1e6


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """what, in words"""
    health: Health
    """how it is"""
    found: str
    """what was found, one line"""
    cure: str = ""
    """what to do, where something is to be done"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """numbers behind it, plain JSON values"""


def check_disk(path: Path | str) -> tuple[Check, ...]:
    """Look at the disk where a store is, or would be made; writes and removes 32 MiB there.

    Parameters
    ----------
    path
        Folder; where there is none yet, the nearest one above it counts.

    Returns
    -------
    tuple of Check
        File system, free space, and speed where something can be written.
    """
    folder = _nearest(Path(path).absolute())
    usage = shutil.disk_usage(folder)
    checks = [_check_file_system(folder), _check_space(folder, usage.free)]
    if not os.access(folder, os.W_OK):
        cure = "let this user write there; without it a store can be read only"
        return (*checks, Check("disk speed", "warn", f"{folder} may not be written", cure))
    try:
        return (*checks, _check_speed(folder, min(SAMPLE_BYTES, usage.free // 4)))
    except OSError as exc:
        cure = "see what is wrong with the disk: a run would fail likewise"
        return (*checks, Check("disk speed", "bad", f"{folder}: {exc.strerror or exc}", cure))


def check_store(path: Path | str) -> tuple[Check, ...]:
    """Look at a store without reading its features: format, who writes, sizes and headers of all segments.

    Returns
    -------
    tuple of Check
        One that says so where there is no store yet.
    """
    folder = Path(path)
    try:
        with closing(catalog.connect(folder)) as db:
            found = catalog.format_of(db)
            (journal,) = db.execute("PRAGMA journal_mode").fetchone()
        report = verify_store(folder, quick=True)
    except StoreNotFoundError:
        return (Check("store", "ok", f"none in {folder} yet; icecore extract makes one"),)
    except (StoreError, sqlite3.DatabaseError) as exc:
        return (Check("store", "bad", str(exc), f"icecore store repair {folder} --dry-run tells what can be saved"),)
    facts = {"catalog_format": found, "journal": journal, "segments": report.segments}
    told = f"catalog format {found} of {catalog.CATALOG_VERSION}, {report.segments:,} segments, journal {journal}"
    checks = [Check("store", "ok", told, facts=facts), _check_writer(folder)]
    if not report.ok:
        n, first = len(report.problems), report.problems[0]
        cure = f"icecore store repair {folder} --dry-run tells what can be saved"
        told = f"{n:,} problem{'s' if n > 1 else ''}, the first: {first.path}: {first.what}"
        checks.append(Check("store is whole", "bad", told, cure))
    else:
        checks.append(Check("store is whole", "ok", "sizes and headers are right; icecore store verify reads all"))
    return tuple(checks)


def file_system_of(folder: Path) -> str:
    """Give the type of the file system of a folder, such as ``ext4`` or ``nfs4``; ``unknown`` beside Linux."""
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return "unknown"
    best, kind = -1, "unknown"
    whole = folder.resolve()
    for line in lines:
        before, _, after = line.partition(" - ")
        place = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4]))
        if (whole == place or place in whole.parents) and len(place.parts) >= best:  # of equal ones the last covers
            best, kind = len(place.parts), after.split()[0]
    return kind


def _check_file_system(folder: Path) -> Check:
    kind = file_system_of(folder)
    if _NETWORK.fullmatch(kind):
        cure = "write from one machine only, and read from others while nobody writes; a local disk is faster"
        return Check("file system", "warn", f"{kind}, over a network: SQLite's log cannot be shared", cure)
    return Check("file system", "ok", kind)


def _check_space(folder: Path, free: int) -> Check:
    health: Health = "bad" if free < LEAST_BYTES else "warn" if free < FEW_BYTES else "ok"
    cure = "" if health == "ok" else "free some space, or name a store on another disk"
    return Check("free space", health, f"{free / 1e9:.1f} GB in {folder}", cure, {"bytes": free})


def _check_speed(folder: Path, size: int) -> Check:
    block = os.urandom(max(4096, min(1 << 20, size)))  # a disk that compresses must not look faster than it is
    with tempfile.TemporaryFile(dir=folder, prefix=".icecore-doctor-") as file:
        syncs = [_timed_sync(file) for _ in range(5)]
        began = time.perf_counter()
        for _ in range(max(1, size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        write = file.tell() / (time.perf_counter() - began) / _MB
        cached = _forget(file.fileno())
        file.seek(0)
        began = time.perf_counter()
        read = sum(len(part) for part in iter(lambda: file.read(1 << 20), b"")) / (time.perf_counter() - began) / _MB
    sync = statistics.median(syncs)
    told = f"write and fsync {write:,.0f} MB/s, read {read:,.0f} MB/s{cached}, fsync {sync * 1000:.1f} ms"
    facts = {"write_mb_s": round(write, 1), "read_mb_s": round(read, 1), "fsync_ms": round(sync * 1000, 2)}
    if sync > SLOW_FSYNC:
        return Check("disk speed", "warn", told, "every commit waits for several of these; use a local disk", facts)
    return Check("disk speed", "ok", told, facts=facts)


def _timed_sync(file: Any) -> float:
    began = time.perf_counter()
    file.write(b"\0" * 4096)
    file.flush()
    os.fsync(file.fileno())
    return time.perf_counter() - began


def _forget(descriptor: int) -> str:
    """Let go of the cached pages of a file; say so where that cannot be asked for."""
    if not hasattr(os, "posix_fadvise"):
        return " (from memory)"
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return ""


def _check_writer(folder: Path) -> Check:
    if not is_locked(folder):
        return Check("writer", "ok", "nobody writes")
    holder = read_holder(folder)
    if holder is None:
        return Check("writer", "ok", "somebody writes, and has not said who")
    return Check("writer", "ok", f"pid {holder.pid} on {holder.host} since {holder.since}: {holder.command}")


def _nearest(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
