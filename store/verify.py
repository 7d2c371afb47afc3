"""Hold a store against its catalog: every byte of it, or, quickly, what can be seen without reading a row."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .apart import layouts_of
from .consistency import catalog_trouble, doubled
from .contents import load_contents
from .errors import StoreDamagedError
from .examine import Recorded, examine, file_trouble, header_trouble, recorded
from .sqlite_file import readable

__all__ = [
    "Problem",
    "Progress",
    "Told",
    "VerifyReport",
    "require_segments",
    "segment_files",
    "strangers",
    "verify_store",
]

Progress = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""


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
    """segments looked at"""
    rows: int
    """rows of them"""
    bytes: int
    """bytes read; 0 when quick"""
    problems: tuple[Problem, ...]
    """what is wrong, by file"""
    leftovers: tuple[str, ...] = ()
    """unfinished files of runs that were cut off, relative to the store: no damage, the next writer sweeps its own"""
    quick: bool = False
    """whether no row was read"""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify_store(path: Path | str, *, quick: bool = False, progress: Progress | None = None) -> VerifyReport:
    """Check the catalog and every segment: checksums of file and columns, contract, each row, each value finite.

    Takes no lock: a run may commit meanwhile. All bytes are read once, some MiB at a time; what is held is 33 bytes a
    content and 8 a row.

    Parameters
    ----------
    path
        The store's folder.
    quick
        Read no row: only the catalog, and the size and header of each file. A changed byte in a feature stays unseen.
    progress
        Called with the number of bytes done and of all, as work goes on.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog itself cannot be opened.
    """
    folder = Path(path)
    files, leftovers = segment_files(folder)  # before the catalog is asked: what is committed meanwhile is known
    with closing(catalog.connect(folder)) as db, readable(folder / catalog.CATALOG):
        db.execute("BEGIN")
        trouble = catalog_trouble(db)
        if trouble:
            return VerifyReport(0, 0, 0, tuple(Problem(catalog.CATALOG, what) for what in trouble), leftovers, quick)
        segments, contents = recorded(db), load_contents(db)
        odd = strangers(files, db)
        db.execute("ROLLBACK")
        told = Told(progress, sum(segment.size for segment in segments))
        problems = [Problem(catalog.CATALOG, what) for what in doubled(segments)]
        if quick:
            problems += _look(folder, segments, told)
        else:
            for segment in segments:
                finding = examine(folder, segment, contents, on_bytes=told)
                problems += [Problem(segment.path, what) for what in finding.what]
        # What a collection took away while this went on was rightly not found.
        gone = {s.path for s in segments} - {row[0] for row in db.execute("SELECT path FROM segments")}
    problems = [problem for problem in problems if problem.path not in gone]
    problems += [Problem(name, "is not in the catalog") for name in odd if (folder / name).exists()]
    return VerifyReport(
        segments=len(segments),
        rows=sum(segment.rows for segment in segments),
        bytes=0 if quick else told.done,
        problems=tuple(problems),
        leftovers=leftovers,
        quick=quick,
    )


def require_segments(folder: Path, db: sqlite3.Connection, set_id: int) -> None:
    """Look at the size of every live segment of a set, so that no run counts on rows that are not there.

    Raises
    ------
    StoreDamagedError
        When a file is missing, or not as long as it was written.
    """
    rows = db.execute(
        "SELECT s.path, s.size FROM segments s JOIN generations g ON g.id = s.generation_id "
        "WHERE g.set_id = ? AND s.removed_in IS NULL",
        (set_id,),
    )
    trouble = [f"{path} {what}" for path, size in rows if (what := file_trouble(folder / path, size))]
    if trouble:
        raise StoreDamagedError(
            f"{folder}: {len(trouble)} segments are damaged: {', '.join(trouble[:3])}; `icecore store repair` saves "
            f"what is left of them, and the next `icecore extract` computes the rest again"
        )


def strangers(files: Sequence[str], db: sqlite3.Connection) -> list[str]:
    """Give those segment files that the catalog does not know; the next writer's sweep takes announced ones away."""
    known = {row[0] for row in db.execute("SELECT path FROM segments UNION SELECT path FROM intents")}
    return [path for path in files if path not in known]


class Told:
    """Counts bytes, and tells the caller of ``verify_store`` or ``repair_store``."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.done, self._total, self._progress = 0, total, progress

    def __call__(self, n: int) -> None:
        """Take the number of bytes done since the last call."""
        self.done += n
        if self._progress is not None:
            self._progress(self.done, self._total)


def segment_files(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Give the segment files that are there, and the unfinished ones, relative to the store."""
    found = sorted(path.relative_to(folder).as_posix() for path in (folder / "segments").rglob("*.h5*"))
    return [name for name in found if name.endswith(".h5")], tuple(name for name in found if name.endswith(".h5.tmp"))


def _look(folder: Path, segments: Sequence[Recorded], told: Told) -> Iterator[Problem]:
    """Compare the size and the header of each file with the catalog."""
    whole = []
    for segment in segments:
        if trouble := file_trouble(folder / segment.path, segment.size):
            yield Problem(segment.path, trouble)
            told(segment.size)
        else:
            whole.append(segment)
    layouts = layouts_of(folder / segment.path for segment in whole)
    for segment, layout in zip(whole, layouts, strict=True):
        odd = [str(layout)] if isinstance(layout, StoreDamagedError) else header_trouble(segment, layout)
        yield from (Problem(segment.path, what) for what in odd)
        told(segment.size)
