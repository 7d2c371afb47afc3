"""Put a damaged store right without guessing: what is proven stays, what is not is moved aside, and all of it is told.

Where the catalog is whole, see ``salvage``; where it is missing or damaged, ``rebuild``. Files are moved to
``quarantine/``, never deleted. Killed at any moment, a repair can be run again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .aside import Moved, Movements
from .catalog import CATALOG
from .consistency import catalog_trouble, doubled
from .errors import StoreDamagedError, StoreNotFoundError
from .examine import recorded
from .lock import writer_lock
from .losses import Lost
from .rebuild import rebuild
from .registry import sweep
from .salvage import salvage
from .summary import refresh_summaries
from .verify import Progress, Told, segment_files, strangers

__all__ = ["RepairReport", "repair_store"]


@dataclass(frozen=True)
class RepairReport:
    """What ``repair_store`` did, or would do."""

    dry_run: bool
    """whether nothing was changed"""
    damaged: int
    """segments that were not what a whole catalog says"""
    rebuilt: str
    """what was wrong with the catalog, where it was made anew; empty where it was whole"""
    moved: tuple[Moved, ...]
    """files moved aside, or back to their place"""
    written: tuple[str, ...]
    """new segments, relative to the store, with what was saved of damaged ones; of a dry run, names are made up"""
    lost: tuple[Lost, ...]
    """images that lack features now; the next ``icecore extract`` computes them"""
    versions: Mapping[str, int]
    """version of each set that was touched"""
    images: int = 0
    """images in a catalog that was made anew"""
    ambiguous: int = 0
    """times that its segments give an image several contents; the newest segment is believed until the next run"""
    odd_cards: tuple[str, ...] = ()
    """cards of bundles that cannot be read, so that versions may have been counted from too low"""
    odd_ledgers: tuple[str, ...] = ()
    """ledgers of promotions with a line that cannot be read, so that a champion may be an earlier one"""

    @property
    def is_needed(self) -> bool:
        """False when the store was sound."""
        return bool(self.damaged or self.rebuilt or self.moved)


def repair_store(
    path: Path | str,
    *,
    dry_run: bool = False,
    accept_loss: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> RepairReport:
    """Verify a store in full, and put right what is damaged.

    **The catalog is whole**: a segment that is missing or changed is taken out of it, so that every version, old ones
    too, lacks its rows. Columns of it that are proven good by their checksums are kept in a new segment. A segment
    that the catalog does not know is taken in where it has something that is lacking.

    **The catalog is missing or damaged**: it is made anew from the segments. The log, tags, old versions, deletions,
    names given since images were written, and recorded failures are lost. The next ``icecore extract`` reads every
    image file, and computes only what is in no segment.

    Damaged and unused files are moved to ``quarantine/`` in the store. Bundles are left alone, and the champions stay.

    Parameters
    ----------
    path
        The store's folder.
    dry_run
        Say what would be done, and change nothing; takes no lock.
    accept_loss
        Go on where no segment file of a set is there at all, which is more often a disk that is not mounted.
    progress
        Called with the number of bytes read and of all.
    command
        Recorded in the log.

    Raises
    ------
    StoreNotFoundError
        When there is neither a catalog nor a segment.
    LockedError
        When another run writes to the store.
    FormatError
        When the catalog is of a format that this release does not read.
    StoreDamagedError
        When a file is there and cannot be read now, or no file of a set is there; nothing was changed.
    """
    folder = Path(path)
    if not (folder / CATALOG).exists() and not segment_files(folder)[0]:
        raise StoreNotFoundError(folder)
    with nullcontext() if dry_run else writer_lock(folder, command=command):
        why = _why_rebuild(folder)
        moves = Movements(folder, dry_run=dry_run)
        if why:
            names, leftovers = segment_files(folder)
            told = Told(progress, _size(folder, names))
            made = rebuild(folder, names, why, moves, dry_run=dry_run, command=command, on_bytes=told)
            _clear(leftovers, moves)
            return RepairReport(
                dry_run, 0, why, tuple(moves.done), made.written, made.lost, made.versions, made.images,
                made.ambiguous, made.odd_cards, made.odd_ledgers,
            )  # fmt: skip
        with _opened(folder, dry_run=dry_run) as db:
            names, leftovers = segment_files(folder)
            odd = strangers(names, db)
            known = [row[0] for row in db.execute("SELECT path FROM segments")]
            told = Told(progress, _size(folder, [*odd, *known]))
            done = salvage(
                folder, db, odd, moves, accept_loss=accept_loss, dry_run=dry_run, command=command, on_bytes=told
            )
            _clear(leftovers, moves)
    return RepairReport(dry_run, done.damaged, "", tuple(moves.done), done.written, done.lost, done.versions)


def _why_rebuild(folder: Path) -> str:
    """Say what is wrong with the catalog; an empty string when it can be trusted."""
    if not (folder / CATALOG).is_file():
        return "is missing"
    try:
        with closing(catalog.connect(folder)) as db:
            return "; ".join((catalog_trouble(db) or list(doubled(recorded(db))))[:3])
    except StoreDamagedError as exc:
        return str(exc.__cause__ or exc)


@contextmanager
def _opened(folder: Path, *, dry_run: bool) -> Iterator[sqlite3.Connection]:
    """Open the catalog for writing, swept; on a dry run a private copy of it."""
    if dry_run:
        with closing(sqlite3.connect("", isolation_level=None)) as copy:
            with closing(catalog.connect(folder)) as db:
                db.backup(copy)
            yield copy
        return
    with closing(catalog.connect(folder, write=True)) as db:
        sweep(folder, db)
        try:
            yield db
            refresh_summaries(db)
        finally:
            catalog.empty_log(db)


def _clear(leftovers: Sequence[str], moves: Movements) -> None:
    for name in leftovers:
        moves.aside(name, "is an unfinished file of a run that was cut off")


def _size(folder: Path, names: Sequence[str]) -> int:
    return sum((folder / name).stat().st_size for name in names if (folder / name).is_file())
