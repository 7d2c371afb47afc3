"""``icecore store verify | repair | backup``: find damage, put it right, and keep a copy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
from icecore.store import RepairReport, backup_store, repair_store, verify_store

from .app import command as make_command
from .app import progress_bar
from .exits import Exit, Outcome
from .options import OutputFile
from .table import counted, csv_line, human_bytes, one_line

if TYPE_CHECKING:
    from icecore.store import VerifyReport

__all__ = ["COMMANDS"]

STORE = click.argument("store", type=click.Path(path_type=Path))
SHOWN = 20
"""Image ids that a terminal is shown."""


@make_command(example="icecore store verify features --quick", reads_only=True)
@STORE
@click.option("--quick", is_flag=True, help="Read no row: only the catalog, and the size and header of each segment.")
def verify(store: Path, quick: bool) -> Outcome:
    """Check STORE: every byte against its checksum, every row against the catalog. Changes nothing."""
    with progress_bar("verify", unit="B") as progress:
        report = verify_store(store, quick=quick, progress=progress)
    data = {
        "ok": report.ok,
        "quick": quick,
        "segments": report.segments,
        "rows": report.rows,
        "bytes": report.bytes,
        "problems": [asdict(problem) for problem in report.problems],
        "leftovers": list(report.leftovers),
    }
    if report.ok:
        return Outcome(Exit.DONE, data, "\n".join([_soundness(store, report), *_leftovers(report)]))
    found = [f"  {problem.path}: {problem.what}" for problem in report.problems]
    cure = f"`icecore store repair {quote(str(store))}` keeps what is sound and tells what is to be extracted again; "
    head = f"{store}: {counted(len(report.problems), 'problem')}"
    lines = [head, *found, *_leftovers(report), f"{cure}with --dry-run it only tells"]
    return Outcome(Exit.STORE_INVALID, data, error="\n".join(map(one_line, lines)))


def _soundness(store: Path, report: VerifyReport) -> str:
    counts = f"{store}: {counted(report.segments, 'segment')}, {counted(report.rows, 'row')}"
    if report.quick:
        return f"{counts}: sizes and headers are right; no row was read"
    return f"{counts}, {report.bytes:,} bytes: all sound"


def _leftovers(report: VerifyReport) -> list[str]:
    if not report.leftovers:
        return []
    files = counted(len(report.leftovers), "unfinished file")
    return [f"{files} of runs that were cut off or are at work: no damage"]


@make_command(example="icecore store repair features --dry-run")
@STORE
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option("--accept-loss", is_flag=True, help="Go on where no segment file of a set is there at all.")
@click.option(
    "--ids", "ids_file", type=OutputFile(), help="Write set, id and columns of all images that lack some, as CSV."
)
def repair(store: Path, dry_run: bool, accept_loss: bool, ids_file: Path | None) -> Outcome:
    """Put STORE right: keep what is proven, move what is not to quarantine/, say what to extract again.

    A missing or damaged catalog is made anew from the segments. What only it knew is lost then: tags, the log, old
    versions, deletions, new names, failures.
    """
    with progress_bar("repair", unit="B") as progress:
        report = repair_store(
            store, dry_run=dry_run, accept_loss=accept_loss, progress=progress, command="icecore store repair"
        )
    if ids_file is not None:
        from icecore.store.durable import write_bytes

        write_bytes(ids_file, _csv(report))
    data = {**asdict(report), "needed": report.is_needed}
    if not report.is_needed:
        return Outcome(Exit.DONE, data, f"{store}: nothing to repair", nothing_to_do=True)
    lines = [*_catalog_lines(report), *_file_lines(report), *_lost_lines(report)]
    if ids_file is not None:
        lines.append(f"{ids_file}: {counted(sum(len(lost.ids) for lost in report.lost), 'row')}")
    if dry_run:
        lines.append("nothing was changed: this was a dry run")
    return Outcome(Exit.DONE, data, "\n".join(map(one_line, lines)))


def _catalog_lines(report: RepairReport) -> list[str]:
    if not report.rebuilt:
        be = "is" if report.damaged == 1 else "are"
        return [f"{counted(report.damaged, 'segment')} {be} not what the catalog says"] if report.damaged else []
    made = "would be made" if report.dry_run else "made"
    lines = [
        f"catalog.sqlite: {report.rebuilt}",
        f"{made} anew from the segments: {counted(report.images, 'image')} in {counted(len(report.versions), 'set')}",
        "lost with it: the log, tags, old versions, deletions, names given since images were written, failures",
        "run `icecore extract` next: it reads every image file again, and computes only what is in no segment",
    ]
    if report.ambiguous:
        images = counted(report.ambiguous, "image")
        lines.append(f"until then {images} with several contents may have the features of an earlier one")
    if report.odd_cards:
        cards = ", ".join(report.odd_cards)
        lines.append(f"cannot be read: {cards}; a version that these bundles were trained on may be numbered again")
    if report.odd_ledgers:
        ledgers = ", ".join(report.odd_ledgers)
        lines.append(f"not whole: {ledgers}; see with `icecore models show` whether the right bundle is in use")
    return lines


def _file_lines(report: RepairReport) -> list[str]:
    would = "would move" if report.dry_run else "moved"
    lines = [f"  {moved.path}: {moved.what}; {would} to {moved.to}" for moved in report.moved]
    if report.dry_run:
        saved = counted(len(report.written), "new segment")
        return [*lines, f"{saved} would hold what is sound of them"] if report.written else lines
    return [*lines, *(f"  {path}: new, holds what was sound" for path in report.written)]


def _lost_lines(report: RepairReport) -> list[str]:
    lines = []
    for lost in report.lost:
        images, have = counted(len(lost.ids), "image"), "has" if len(lost.ids) == 1 else "have"
        seen = "" if lost.is_read else f" in generation {lost.generation}, which readers do not see"
        lines.append(f"{images} of {lost.set_name} {have} lost {', '.join(lost.columns)}{seen}:")
        lines += [f"  {image_id}" for image_id in lost.ids[:SHOWN]]
        if len(lost.ids) > SHOWN:
            lines.append(f"  and {len(lost.ids) - SHOWN:,} more; --ids FILE writes all")
    if report.lost:
        return [*lines, "the next `icecore extract` computes these again"]
    return ["no live image has lost features"] if report.damaged else []


def _csv(report: RepairReport) -> bytes:
    rows = [[lost.set_name, image_id, " ".join(lost.columns)] for lost in report.lost for image_id in lost.ids]
    return b"".join(csv_line(row) for row in [["set", "id", "columns"], *rows])


@make_command(example="icecore store backup features /backup/features")
@STORE
@click.argument("to", type=click.Path(path_type=Path))
def backup(store: Path, to: Path) -> Outcome:
    """Copy STORE to the folder TO, or bring an earlier copy there up to date; a writer may be at work.

    TO is a store like any other, whole at every moment: the way back is a backup of it to a new folder. Segments that
    it has are not copied again. Bundles that STORE has no more stay.
    """
    with progress_bar("backup", unit="B") as progress:
        done = backup_store(store, to, progress=progress)
    told = f"{counted(done.segments, 'segment')}, {done.copied:,} of them new, {counted(done.files, 'other file')} new"
    removed = f", {done.removed:,} removed" if done.removed else ""
    text = f"{to}: {told}{removed}; {human_bytes(done.bytes)} copied"
    return Outcome(Exit.DONE, asdict(done), text, nothing_to_do=not (done.copied or done.files or done.removed))


COMMANDS = (verify, repair, backup)
