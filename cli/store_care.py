"""``icecore store verify`` and ``icecore store repair``: find damage, and put it right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from icecore.store import RepairReport, repair_store, verify_store

from .app import command as make_command
from .app import progress_bar
from .exits import Exit, Outcome
from .options import OutputFile
from .table import csv_line, one_line

if TYPE_CHECKING:
    from icecore.store import VerifyReport

__all__ = ["COMMANDS"]

STORE = click.argument("store", type=click.Path(path_type=Path))
SHOWN = 20
"""Image ids that a terminal is shown."""


@make_command(example="icecore store verify features --quick")
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
    cure = "`icecore store repair` saves what is sound and says what to extract again; try it with --dry-run first"
    lines = [f"{store}: {len(report.problems)} problems", *found, *_leftovers(report), cure]
    return Outcome(Exit.STORE_INVALID, data, error="\n".join(map(one_line, lines)))


def _soundness(store: Path, report: VerifyReport) -> str:
    counts = f"{store}: {report.segments:,} segments, {report.rows:,} rows"
    return (
        f"{counts}: sizes and headers are right; no row was read"
        if report.quick
        else (f"{counts}, {report.bytes:,} bytes: all sound")
    )


def _leftovers(report: VerifyReport) -> list[str]:
    if not report.leftovers:
        return []
    return [f"{len(report.leftovers):,} unfinished files of runs that were cut off or are at work; no damage"]


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
        return Outcome(Exit.DONE, data, f"{store}: nothing to repair")
    lines = [*_catalog_lines(report), *_file_lines(report), *_lost_lines(report)]
    return Outcome(Exit.DONE, data, "\n".join(map(one_line, lines)))


def _catalog_lines(report: RepairReport) -> list[str]:
    will = "would be" if report.dry_run else "is"
    if not report.rebuilt:
        return [f"{report.damaged:,} segments are not as they were written"] if report.damaged else []
    lines = [
        f"catalog.sqlite {report.rebuilt}",
        f"it {will} made anew from the segments: {report.images:,} images in {len(report.versions):,} sets",
        "lost with it: tags, the log, old versions, deletions, names given since images were written, failures;",
        "run `icecore extract`: it reads every image file again, and computes only what is in no segment",
    ]
    if report.ambiguous:
        lines.append(f"until then {report.ambiguous:,} images may have the features of earlier or later contents")
    if report.odd_cards:
        lines.append(f"versions may come to be used twice: cannot read {', '.join(report.odd_cards)}")
    return lines


def _file_lines(report: RepairReport) -> list[str]:
    would = "would move" if report.dry_run else "moved"
    lines = [f"  {moved.path}: {moved.what}; {would} to {moved.to}" for moved in report.moved]
    if report.written and not report.dry_run:
        lines += [f"  {path}: holds what was saved" for path in report.written]
    return lines


def _lost_lines(report: RepairReport) -> list[str]:
    lines = []
    for lost in report.lost:
        seen = "" if lost.is_read else f" of generation {lost.generation}, which readers do not see,"
        lines.append(f"{len(lost.ids):,} images of {lost.set_name} lack{seen} {', '.join(lost.columns)}:")
        lines += [f"  {image_id}" for image_id in lost.ids[:SHOWN]]
        if len(lost.ids) > SHOWN:
            lines.append(f"  and {len(lost.ids) - SHOWN:,} more: --ids FILE writes all, --json too")
    if report.lost:
        lines.append("`icecore extract` computes exactly these again")
    return lines


def _csv(report: RepairReport) -> bytes:
    rows = [[lost.set_name, image_id, " ".join(lost.columns)] for lost in report.lost for image_id in lost.ids]
    return b"".join(csv_line(row) for row in [["set", "id", "columns"], *rows])


COMMANDS = (verify, repair)
