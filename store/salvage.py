"""Put segments right that are not what a whole catalog says: save good columns, forget the rest, tell what is lost.

No version keeps what is lost: a version that needed it reads as lacking it, never as something else.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import catalog
from .adopt import Adopter, Stranger, look_at, settle
from .aside import Movements
from .catalog import Generation
from .commit import Target, WrittenSegment, add_segment, add_version, enter_contents, next_version, set_head
from .contents import Contents, load_contents
from .errors import StoreDamagedError
from .examine import Finding, Recorded, examine, header_trouble, recorded
from .layout import Layout, layout_of, read_digests
from .losses import Losses, Lost
from .measure import OnBytes
from .registry import ensure_columns
from .rewrite import write_rows
from .segment import SegmentHeader

__all__ = ["Salvaged", "salvage"]


@dataclass(frozen=True)
class Salvaged:
    """What was done."""

    damaged: int
    """segments that were not as the catalog says"""
    written: tuple[str, ...]
    """new segments with what was saved, relative to the store"""
    lost: tuple[Lost, ...]
    """images to be extracted again"""
    versions: Mapping[str, int]
    """version of each set that was touched"""


@dataclass(frozen=True)
class _Entry:
    """What takes the place of a segment in the catalog."""

    finding: Finding
    """the segment, and what is wrong with it"""
    segment: WrittenSegment | None = None
    """None where nothing of it is left"""
    contents: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """``(n,)`` int64: content of each row"""

    @property
    def keeps_file(self) -> bool:
        return self.segment is not None and self.segment.path == self.finding.segment.path


def salvage(
    folder: Path,
    db: sqlite3.Connection,
    odd: Sequence[str],
    moves: Movements,
    *,
    accept_loss: bool,
    dry_run: bool,
    command: str,
    on_bytes: OnBytes,
) -> Salvaged:
    """Examine all segments, and put right those that need it.

    Parameters
    ----------
    folder, db
        The store, and its catalog open for writing; on a dry run, a private copy of it.
    odd
        Segment files that the catalog does not know, relative to the store.
    moves
        Moves files.
    accept_loss, dry_run, command
        See ``repair_store``.
    on_bytes
        Told what is read.

    Raises
    ------
    StoreDamagedError
        When a file cannot be read now, or a set has no segment file at all; nothing was changed.
    """
    contents, segments = load_contents(db), recorded(db)
    findings = [f for s in segments if (f := examine(folder, s, contents, on_bytes=on_bytes)).state != "sound"]
    looked = dict(look_at(folder, odd, on_bytes))
    _require_readable(folder, findings)
    findings, aliens = _put_back(findings, [s for s in looked.values() if isinstance(s, Stranger)], moves)
    if not accept_loss:
        _require_some(folder, segments, findings)
    homes = [(alien, _generation_of(db, alien)) for alien in sorted(aliens, key=lambda s: s.order, reverse=True)]
    entries = list(_entries(folder, db, findings, contents, dry_run=dry_run))
    generations = [e.finding.segment.generation for e in entries] + [home for _, home in homes if home is not None]
    with catalog.transaction(db):
        for entry in entries:
            _replace(db, entry)
        versions = dict(_tell(db, generations, command))
    for entry in entries:
        if not entry.keeps_file:
            moves.aside(entry.finding.segment.path, "; ".join(entry.finding.what))
    written = [entry.segment.path for entry in entries if entry.segment is not None and not entry.keeps_file]
    written += _adopt(db, Adopter(folder, db, dry_run=dry_run), homes, moves)
    for name, what in looked.items():
        if isinstance(what, str):
            moves.aside(name, what)
    return Salvaged(len(findings), tuple(written), tuple(_losses(entries).find(db)), versions)


def _require_readable(folder: Path, findings: Sequence[Finding]) -> None:
    """Stop where the system refuses a file: that may pass, and must not cost its rows."""
    for finding in findings:
        if finding.state == "unreadable":
            raise StoreDamagedError(
                f"{folder / finding.segment.path}: {finding.what[0]}; nothing was changed. Make it readable, or, where "
                f"the disk has lost it, move it out of the store, and repair again"
            )


def _require_some(folder: Path, segments: Sequence[Recorded], findings: Sequence[Finding]) -> None:
    """Stop where all files of a set are away: then it is rather a disk that is away than the files."""
    missing = {finding.segment.id for finding in findings if finding.state == "missing"}
    for name in sorted({segment.set_name for segment in segments}):
        of_set = [segment for segment in segments if segment.set_name == name]
        if all(segment.id in missing for segment in of_set):
            raise StoreDamagedError(
                f"{folder}: none of the {len(of_set):,} segments of set {name} is there: is a disk not mounted? "
                f"Nothing was changed; `--accept-loss` lets them go"
            )


def _put_back(
    findings: list[Finding], aliens: list[Stranger], moves: Movements
) -> tuple[list[Finding], list[Stranger]]:
    """Move files back to the place from which they are missing; give what is left of both lists."""
    missing = {finding.segment.path: finding.segment for finding in findings if finding.state == "missing"}
    back = {a.home: a for a in aliens if a.home in missing and a.measured.checksum == missing[a.home].checksum}
    for home, alien in back.items():
        moves.back(alien.path, home)
    kept = [alien for alien in aliens if back.get(alien.home) is not alien]
    return [finding for finding in findings if finding.segment.path not in back], kept


def _generation_of(db: sqlite3.Connection, alien: Stranger) -> Generation | None:
    """Give the generation of the catalog that a file belongs to; None where there is none, or not under this name."""
    row = db.execute(
        "SELECT g.id FROM generations g JOIN sets s ON s.id = g.set_id WHERE g.uuid = ? AND s.name = ?",
        (alien.header.generation, alien.header.set_name),
    ).fetchone()
    generation = catalog.generation_by_id(db, row[0]) if row else None
    return generation if generation is not None and generation.contract == alien.header.contract else None


def _entries(
    folder: Path, db: sqlite3.Connection, findings: Sequence[Finding], contents: Contents, *, dry_run: bool
) -> Iterator[_Entry]:
    """Save what can be saved of each segment: its file as it is, or its good columns in a new one."""
    names = _names(db, findings)
    for finding in findings:
        segment = finding.segment
        if finding.state == "misrecorded":
            layout = layout_of(folder / segment.path)
            yield _entered_anew(folder, db, finding, layout)
            continue
        known = segment.contents.size == segment.rows
        rows = np.array([i for i, c in enumerate(segment.contents.tolist()) if c in names], dtype=np.int64)
        if not (known and rows.size and finding.good):
            yield _Entry(finding)
            continue
        kept = segment.contents[rows]
        written = write_rows(
            folder,
            db,
            _header(db, segment),
            segment.generation,
            segment.path,
            {column: offset for column, offset in segment.columns.items() if column in finding.good},
            rows,
            [names[content] for content in kept.tolist()],
            [row.tobytes() for row in contents.digests[kept]],
            dry_run=dry_run,
        )
        yield _Entry(finding, written, kept)


def _names(db: sqlite3.Connection, findings: Sequence[Finding]) -> dict[int, bytes]:
    """Give an image for each content of segments that can be saved in part, a live one where there is one.

    A content that no image of any version has is not needed.
    """
    saved = [f.segment for f in findings if f.good and f.state == "damaged"]
    wanted = {content for segment in saved for content in segment.contents.tolist()}
    names: dict[int, bytes] = {}
    for set_id in {segment.set_id for segment in saved}:
        query = "SELECT content_id, id FROM images WHERE set_id = ? ORDER BY removed_in IS NULL"
        names.update((content, key) for content, key in db.execute(query, (set_id,)) if content in wanted)
    return names


def _header(db: sqlite3.Connection, segment: Recorded) -> SegmentHeader:
    """Give what a new segment says of itself: it is as old as the one whose rows it takes over."""
    row = db.execute("SELECT created FROM versions WHERE id = ?", (segment.added_in,)).fetchone()
    generation = segment.generation
    return SegmentHeader(
        uuid=segment.uuid,
        set_name=segment.set_name,
        generation=generation.uuid,
        contract=generation.contract,
        columns=tuple(segment.columns),
        rows=segment.rows,
        created=row[0] if row else generation.created,
        versions=generation.versions,
        source=generation.source,
    )


def _entered_anew(folder: Path, db: sqlite3.Connection, finding: Finding, layout: Layout) -> _Entry:
    """Enter a file as it says, where it is as it was written and only the catalog's word on it was wrong."""
    segment = finding.segment
    offsets = {column: stored.offset for column, stored in layout.columns.items()}
    said = Recorded(**{**vars(segment), "columns": offsets})
    if header_trouble(said, layout):
        return _Entry(finding)
    digests = read_digests(folder / segment.path, layout)
    with catalog.transaction(db):
        ensure_columns(db, segment.generation.id, list(offsets))
        numbers = enter_contents(db, digests)
    written = WrittenSegment(segment.uuid, segment.path, segment.size, segment.checksum, offsets, digests)
    return _Entry(finding, written, np.array([numbers[digest] for digest in digests], dtype=np.int64))


def _replace(db: sqlite3.Connection, entry: _Entry) -> None:
    """Put in the catalog, in place of a segment, what is left of it: alive in the same versions."""
    old = entry.finding.segment
    db.execute("DELETE FROM segment_columns WHERE segment_id = ?", (old.id,))
    db.execute("DELETE FROM segments WHERE id = ?", (old.id,))
    if entry.segment is not None:
        column_ids = catalog.columns_of(db, old.generation.id)
        target = Target(old.set_id, old.generation.id, column_ids, "", "", 0, moves_head=False)
        add_segment(db, target, entry.segment, entry.contents, old.added_in)
        db.execute("UPDATE segments SET removed_in = ? WHERE uuid = ?", (old.removed_in, entry.segment.uuid))


def _tell(db: sqlite3.Connection, generations: Sequence[Generation], command: str) -> Iterator[tuple[str, int]]:
    """Enter a version for each set that is touched: what readers see stays as of the version that it was."""
    run = uuid.uuid4().hex
    for generation in generations:
        set_id, name = db.execute(
            "SELECT s.id, s.name FROM generations g JOIN sets s ON s.id = g.set_id WHERE g.id = ?", (generation.id,)
        ).fetchone()
        if db.execute("SELECT 1 FROM versions WHERE run = ? AND set_id = ?", (run, set_id)).fetchone():
            continue
        head, version = catalog.head_of(db, set_id), next_version(db)
        generation_id = generation.id if head is None else head.generation_id
        target = Target(set_id, generation_id, {}, command, run, 0, moves_head=False)
        add_version(db, target, version, "repair")
        if head is not None:
            set_head(db, target, version, head.as_of)
        yield name, version


def _adopt(
    db: sqlite3.Connection, adopter: Adopter, homes: Sequence[tuple[Stranger, Generation | None]], moves: Movements
) -> list[str]:
    """Enter what strangers have and their generations lack; move aside those that are not in use then."""
    written: list[str] = []
    for alien, generation in homes:
        if generation is None:
            moves.aside(alien.path, "is of a generation that the catalog does not know")
        elif (settled := settle(alien, moves)) is not None:
            (set_id,) = db.execute("SELECT set_id FROM generations WHERE id = ?", (generation.id,)).fetchone()
            head = catalog.head_of(db, set_id)
            done = adopter.adopt(set_id, generation, settled, next_version(db) - 1 if head is None else head.as_of)
            written += done.written
            if not done.in_use:
                moves.aside(settled.path, done.what)
    return written


def _losses(entries: Sequence[_Entry]) -> Losses:
    losses = Losses()
    for entry in entries:
        old = entry.finding.segment
        kept = frozenset() if entry.segment is None else frozenset(entry.segment.offsets)
        if old.removed_in is None and (gone := frozenset(old.columns) - kept):
            losses.add(old.set_id, old.set_name, old.generation, gone, old.contents)
    return losses
