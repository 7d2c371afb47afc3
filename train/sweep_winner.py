"""The winner of a sweep: fitted on all training rows and scored, or read from the bundle that this very sweep has made.

A bundle says in its card, under ``sweep``, by which key it was made: the sha256 of all that decides what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icecore.store import FeatureSet

from .bundle import load_bundle, read_card
from .bundle_format import seal
from .card import library_versions
from .data import Dataset, Provenance
from .plan import CellPlan
from .resampling import Interval
from .result import Cell, Predictions, TrainResult, rows_to_json
from .rows import LabelledRows
from .run import Run, train_rows
from .shared import notes_on_rows
from .sweep_kept import digest_of

if TYPE_CHECKING:
    from .sweep_result import SweepCell

__all__ = ["FORMAT_VERSION", "SweepWinner", "card_entry", "read_winner", "train_winner", "winner_key"]

FORMAT_VERSION = 1
"""Part of the key: counted up where the same inputs no longer give the same bundle."""


@dataclass(frozen=True)
class SweepWinner:
    """The best cell of a sweep, fitted on all training rows, with its bundle."""

    winner: Cell
    """its scores on the held-out rows"""
    baseline: Any
    """``tasks.Scores`` of what is known without features"""
    rows: LabelledRows
    """task, classes, split, and what was left out"""
    provenance: Provenance
    """where the features came from"""
    predictions: Predictions
    """its outputs for the held-out rows"""
    intervals: Mapping[str, Interval | None]
    """95 % bootstrap intervals of its held-out scores"""
    chosen_among: int
    """number of cells that it was chosen from"""
    notes: tuple[str, ...]
    """what a reader should know of the data"""
    bundles: tuple[Path, ...]
    """folder of its bundle"""
    report: Path | None
    """the report in the bundle; None where there is none"""
    reused: bool
    """whether an earlier run of the same sweep had made it, so that nothing was fitted"""

    @classmethod
    def of(cls, result: TrainResult) -> SweepWinner:
        """Take what was just trained."""
        return cls(
            *(result.winner, result.baseline, result.rows, result.provenance, result.predictions, result.intervals[0]),
            chosen_among=result.chosen_among,
            notes=result.notes,
            bundles=result.bundles,
            report=result.report,
            reused=False,
        )

    def interval(self, score: str) -> Interval | None:
        """Give the 95 % interval of a held-out score: in closed form where the task has one, else by bootstrap."""
        found: Interval | None = getattr(self.winner.evaluation, f"{score}_interval", self.intervals.get(score))
        return found


def winner_key(data: Dataset, cell: SweepCell, inputs: Mapping[str, Any], *, chosen_among: int) -> str:
    """Give the sha256, in hex, of all that decides the winner's bundle.

    Parameters
    ----------
    data
        All rows with the winner's features.
    cell
        The winner.
    inputs
        All that decided it; see ``SweepSearch.inputs_of``.
    chosen_among
        Number of cells that it was chosen from.
    """
    rows = data.rows
    groups = None if rows.groups is None else list(rows.groups)
    return seal(
        {
            "format_version": FORMAT_VERSION,
            "task": cell.task,
            "cell": dict(inputs),
            "params": cell.params,
            "chosen_among": chosen_among,
            "version": data.provenance.version,
            "names": list(rows.classes),
            "rows": rows_to_json(rows),
            "groups_sha256": seal({"groups": groups}),
            "notes": list(notes_on_rows(rows)),
            "features_sha256": digest_of(data.X),
            "targets_sha256": digest_of(rows.y),
            "libraries": library_versions(),
        }
    )


def card_entry(key: str, run: Run, *, with_images: bool) -> dict[str, Any]:
    """Give what a winner's card says of its sweep.

    Parameters
    ----------
    key
        See ``winner_key``.
    run
        The winner, trained.
    with_images
        Whether its report, if any, has pictures.
    """
    return {"sweep": {"key": key, "winner_notes": list(run.cells[0].notes), "with_images": with_images}}


def read_winner(
    folder: Path, key: str, data: Dataset, cell: SweepCell, *, report: str | None, with_images: bool
) -> SweepWinner | None:
    """Give the winner of the newest bundle in a folder; None where another run made it, or there is none.

    Parameters
    ----------
    folder
        Bundles of one name.
    key
        That the bundle must have been made by; see ``winner_key``.
    data
        All rows with the winner's features: the bundle scores the held-out rows again.
    cell
        The winner.
    report
        Name of the report that must be beside it; None where none is asked for.
    with_images
        Whether that report must have pictures.

    Raises
    ------
    BundleError
        When the newest bundle is damaged.
    """
    path = _newest(folder)
    if path is None:
        return None
    card = read_card(path)
    made = card.get("sweep")
    if not isinstance(made, dict) or made.get("key") != key:
        return None
    if report is not None and (report not in card["files"] or (with_images and not made["with_images"])):
        return None
    bundle, rows = load_bundle(path), data.rows
    X, y = data.held_out()
    outputs, cell_notes = bundle.outputs(X), tuple(made["winner_notes"])
    winner = Cell(
        columns=cell.columns,
        n_features=cell.n_features,
        model=cell.model,
        steps=cell.steps,
        setting=cell.setting,
        best=cell.best,
        grid=cell.grid,
        evaluation=rows.task.evaluate(y, outputs, rows.classes),
        seconds=card["seconds"],
        notes=cell_notes,
    )
    intervals = card["held_out"]["intervals"]
    return SweepWinner(
        winner=winner,
        baseline=rows.task.baseline(rows.y_train, y, rows.classes),
        rows=rows,
        provenance=data.provenance,
        predictions=Predictions(rows.held_out_ids, y, outputs),
        intervals={name: None if pair is None else (pair[0], pair[1]) for name, pair in intervals.items()},
        chosen_among=card["chosen_among"],
        notes=tuple(card["notes"][: len(card["notes"]) - len(cell_notes)]),
        bundles=(path,),
        report=path / report if report is not None else None,
        reused=True,
    )


def train_winner(
    feature_set: FeatureSet, rows: LabelledRows, plan: CellPlan, cell: SweepCell, *, with_plots: bool
) -> Run:
    """Fit the winner with the setting that was chosen, score it, and give it the scores it was chosen by."""
    settings = {name: [value] for name, value in cell.params.items()}
    specs = tuple(spec for spec in plan.specs if spec.name == cell.model)
    run = train_rows(
        feature_set,
        rows,
        [cell.columns],
        plan=replace(plan, specs=specs, steps=(cell.steps,), grids={cell.model: settings}),
        with_plots=with_plots,
    )
    (trained,) = run.kept
    told = replace(
        trained.cell,
        best=cell.best,
        grid=cell.grid,
        seconds=cell.seconds + trained.cell.seconds,
        notes=tuple(dict.fromkeys((*cell.notes, *trained.cell.notes))),
    )
    return replace(run, cells=(told,), kept=(replace(trained, cell=told),))


def _newest(folder: Path) -> Path | None:
    """Give the bundle of the latest second in its name; of several the one that was written last."""
    bundles = [path for path in folder.glob("[0-9]*T*Z-*") if path.is_dir()]
    return max(bundles, key=lambda path: (path.name.partition("-")[0], path.stat().st_mtime_ns), default=None)
