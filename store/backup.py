"""A copy of a store that is whole at every moment, made beside a writer at work, and brought up to date at low cost.

Segments never change, so those that the copy has are not read again. The catalog of the copy is replaced last: a backup
that is cut off leaves what the one before it made.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from . import catalog
from .disk_errors import disk_errors
from .durable import make_folder, publish
from .errors import RefusedError, StoreDamagedError, StoreNotFoundError
from .lock import HOLDER, LOCK, writer_lock
from .registry import sweep
from .runs import RUNS
from .sqlite_file import CATALOG

__all__ = ["Backup", "backup_store"]

ATTEMPTS = 5
"""Times that a backup begins again because a collection took away what it was to copy."""
BLOCK = 8 << 20
"""Bytes that are copied at a time."""
_NOT_COPIED = frozenset({CATALOG, f"{CATALOG}-wal", f"{CATALOG}-shm", LOCK, HOLDER, "segments", "quarantine", RUNS})


@dataclass(frozen=True)
class Backup:
    """What a backup did."""

    path: Path
    """the copy"""
    segments: int
    """segments that it holds"""
    copied: int
    """those that were copied now"""
    removed: int
    """those that it held and that the store has no more"""
    files: int
    """other files that were copied now: bundles, weights, canaries"""
    bytes: int
    """bytes that were copied now"""


def backup_store(
    store_path: Path | str, to: Path | str, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Backup:
    """Copy a store, or bring an earlier copy up to date.

    The copy is a store: it can be read, verified and moved like any other. It holds the commits that were there when it
    began. Nothing is locked in the store, so that a writer at work goes on. Records of runs and what repair has moved
    aside are not copied.

    Parameters
    ----------
    store_path
        The store.
    to
        Folder of the copy; made where there is none.
    progress
        Called with the bytes of segments that are copied, and those that are to be.

    Raises
    ------
    RefusedError
        When the folder holds something else than a store, or is the store itself or lies in it.
    LockedError
        When another backup writes to the copy.
    StoreDamagedError
        When a segment of the store does not match its checksum; the copy stays what it was.
    StoreNotFoundError, FormatError
        When the store's catalog cannot be opened.
    DiskError
        When the copy cannot be written.
    """
    folder, copy = Path(store_path), Path(to)
    with closing(catalog.connect(folder)):
        _require_place(folder, copy)
    with disk_errors(copy):
        make_folder(copy)
        with writer_lock(copy, command=f"a backup of {folder.absolute()}"):
            for attempt in range(ATTEMPTS):
                try:
                    return _backup(folder, copy, progress)
                except _CollectedError as exc:
                    if attempt == ATTEMPTS - 1:
                        told = (
                            f"{folder / exc.path}: missing; `icecore store verify {folder}` tells whether it is damage"
                        )
                        raise StoreDamagedError(told) from exc
    raise AssertionError("the last attempt returns or raises")


class _CollectedError(Exception):
    """A segment that the snapshot names is gone."""

    def __init__(self, path: str) -> None:
        self.path = path


def _require_place(folder: Path, copy: Path) -> None:
    whole, place = folder.resolve(), copy.resolve()
    if place == whole or whole in place.parents or place in whole.parents:
        raise RefusedError(f"{copy}: is {folder} itself, or one lies in the other; name a folder beside it")
    if copy.exists() and not copy.is_dir():
        raise RefusedError(f"{copy}: is no folder")
    names = {path.name for path in copy.iterdir()} if copy.exists() else set()
    begun = all(name in (LOCK, HOLDER, "segments") or name.startswith(f"{CATALOG}.tmp") for name in names)
    if not begun and not _same_store(folder, copy):
        raise RefusedError(f"{copy}: holds something else than a copy of {folder}; name an empty folder")


def _same_store(folder: Path, copy: Path) -> bool:
    """Say whether both catalogs were made as one."""
    made = []
    for place in (folder, copy):
        try:
            with closing(catalog.connect(place)) as db:
                made.append(db.execute("SELECT value FROM meta WHERE key = 'store'").fetchone())
        except StoreNotFoundError:
            return False
    return bool(made[0] == made[1])


def _backup(folder: Path, copy: Path, progress: Callable[[int, int], None]) -> Backup:
    """Take a snapshot of the catalog, then what it names, and put it in place last."""
    fresh = copy / f"{CATALOG}.tmp"
    for name in ("", "-wal", "-shm"):
        fresh.with_name(f"{fresh.name}{name}").unlink(missing_ok=True)
    with closing(catalog.connect(folder)) as db, closing(sqlite3.connect(fresh)) as snapshot:
        db.backup(snapshot)
        segments = snapshot.execute("SELECT path, size, checksum FROM segments").fetchall()
        old = _held(copy) - {path for path, _, _ in segments}
        with snapshot:
            snapshot.execute("DELETE FROM intents")
            _announce(snapshot, old)
    lacking = [(path, size, checksum) for path, size, checksum in segments if not _is_there(copy / path, size)]
    if (copy / CATALOG).exists():
        with closing(catalog.connect(copy, write=True)) as db, catalog.transaction(db):
            _announce(db, {path for path, _, _ in lacking})
    total, done = sum(size for _, size, _ in lacking), 0
    progress(0, total)
    for path, size, checksum in lacking:
        _copy_segment(folder, copy, path, checksum)
        done += size
        progress(done, total)
    files, size = _copy_others(folder, copy)
    for stale in (f"{CATALOG}-wal", f"{CATALOG}-shm"):  # they belong to the catalog that is replaced
        (copy / stale).unlink(missing_ok=True)
    publish(fresh, copy / CATALOG)
    with closing(catalog.connect(copy, write=True)) as db:
        sweep(copy, db)
    return Backup(copy, len(segments), len(lacking), len(old), files, done + size)


def _announce(db: sqlite3.Connection, paths: set[str]) -> None:
    """Note segments that are about to come or to go, so that one of them is never taken for damage."""
    db.executemany("INSERT OR REPLACE INTO intents VALUES (?, ?)", [(Path(path).stem, path) for path in sorted(paths)])


def _held(copy: Path) -> set[str]:
    """Give the segments that a copy has files of, unfinished ones too."""
    found = (copy / "segments").glob("*/*/*.h5*")
    return {path.relative_to(copy).as_posix().removesuffix(".tmp") for path in found}


def _is_there(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except FileNotFoundError:
        return False


def _copy_segment(folder: Path, copy: Path, path: str, checksum: str) -> None:
    target, hashed = copy / path, xxhash.xxh3_128()
    make_folder(target.parent)
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        source = (folder / path).open("rb")
    except FileNotFoundError as exc:
        raise _CollectedError(path) from exc
    with source, temporary.open("wb") as file:
        while block := source.read(BLOCK):
            hashed.update(block)
            file.write(block)
    if hashed.hexdigest() != checksum:
        temporary.unlink()
        cure = f"`icecore store repair {folder}` keeps what is sound of it"
        raise StoreDamagedError(f"{folder / path}: does not match its checksum, and was not copied; {cure}")
    publish(temporary, target)


def _copy_others(folder: Path, copy: Path) -> tuple[int, int]:
    """Copy files beside catalog and segments whose size or time differs; give their number and bytes."""
    files = size = 0
    for path in _others(folder):
        target = copy / path.relative_to(folder)
        with suppress(FileNotFoundError):  # a bundle or a record that was deleted meanwhile
            found = path.stat()
            if _is_there(target, found.st_size) and target.stat().st_mtime_ns == found.st_mtime_ns:
                continue
            make_folder(target.parent)
            temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
            shutil.copyfile(path, temporary)
            os.utime(temporary, ns=(found.st_atime_ns, found.st_mtime_ns))
            publish(temporary, target)
            files, size = files + 1, size + found.st_size
    return files, size


def _others(folder: Path) -> Iterator[Path]:
    for above, folders, names in os.walk(folder):
        top = Path(above) == folder
        folders[:] = [name for name in folders if not (top and name in _NOT_COPIED)]
        names = [name for name in names if not (top and name in _NOT_COPIED)]
        yield from (Path(above, name) for name in sorted(names) if not name.endswith(".tmp"))
