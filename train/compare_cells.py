"""The parts of a comparison: cells beside each other, what each class gains or loses, what each side took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from icecore.store import FeatureStore
from icecore.store.tunings import Tuning, tuned_weights_path
from numpy.typing import NDArray

from .compare_sides import Source
from .comparison import ClassChange, Costs, PairedCell, Side, TuningCost
from .data import Provenance
from .errors import first_few
from .plan import CellPlan
from .progress import Progress
from .resampling import Comparison, gaps_between, intervals_of
from .result import Cell, Predictions
from .rows import LabelledRows
from .run import Run, train_rows
from .shared import each_layer

__all__ = ["Scored", "SideRun", "describe_side", "find_changes", "notes_on", "pair_cells", "pair_runs", "train_side"]

Layers = Sequence[str | Sequence[str]]

FALL = 0.05
"""Recall that a class may lose before it is named in a note."""


@dataclass(frozen=True)
class Scored:
    """A finished cell, its model let go of."""

    cell: Cell
    """its scores"""
    predictions: Predictions
    """its outputs for the held-out rows"""


@dataclass(frozen=True)
class SideRun:
    """What the training of one side gave."""

    scored: tuple[Scored, ...]
    """every cell, best first"""
    provenance: Provenance
    """the version that was read"""
    notes: tuple[str, ...]
    """what a reader should know of its rows"""

    @property
    def winner(self) -> Scored:
        """The cell with the best cross-validated score."""
        return self.scored[0]


def train_side(
    side: Source,
    rows: LabelledRows,
    layers: Layers,
    *,
    plan: CellPlan,
    progress: Callable[[str, Progress], None] | None,
) -> SideRun:
    """Train all cells of one side; models are let go of when it is done."""

    def tell(at: Progress) -> None:
        if progress is not None:
            progress(side.name, at)

    run = train_rows(side.features, rows, layers, plan=plan, keep_all=True, with_plots=False, progress=tell)
    scored = tuple(Scored(item.cell, item.predictions) for item in run.kept)
    return SideRun(scored, run.provenance, tuple(_of_the_rows(run)))


def describe_side(
    store: FeatureStore, side: Source, run: SideRun, layers: Layers, rows: LabelledRows, plan: CellPlan
) -> Side:
    """Gather what is told of one side."""
    winner = run.winner
    coverage = side.features.coverage()
    columns = dict.fromkeys(side.features.resolve(name) for name in each_layer(layers))
    size = sum(coverage[column] * column.width * np.dtype(column.dtype).itemsize for column in columns)
    resampled = rows.task.resampled(winner.predictions.y, winner.predictions.outputs)
    return Side(
        name=side.name,
        provenance=run.provenance,
        tunings=side.tunings,
        winner=winner.cell,
        predictions=winner.predictions,
        intervals=intervals_of(
            resampled, len(winner.predictions.y), groups=rows.held_out_groups, seed=plan.options.seed
        ),
        costs=Costs(
            images=len(side.features.ids()),
            bytes=size,
            training_seconds=sum(item.cell.seconds for item in run.scored),
            tunings=tuple(_cost(store, tuning) for tuning in side.tunings),
        ),
    )


def _cost(store: FeatureStore, tuning: Tuning) -> TuningCost:
    path = tuned_weights_path(store.path, tuning.weights)
    return TuningCost(
        weights=tuning.weights,
        seconds=tuning.seconds,
        epochs=sum(epoch["epoch"] > 0 for epoch in tuning.epochs),
        best_epoch=tuning.best_epoch,
        images=len(tuning.seen_ids),
        trained_parameters=tuning.trained_parameters,
        bytes=path.stat().st_size if path.exists() else 0,
        device=tuning.device,
    )


def pair_runs(
    runs: Sequence[SideRun],
    selections: Sequence[Layers],
    sides: Sequence[Source],
    rows: LabelledRows,
    plan: CellPlan,
) -> list[PairedCell]:
    """Lay the cells of both sides beside each other, in the order of layers, steps and models."""
    known = [{(item.cell.columns, item.cell.steps, item.cell.model): item for item in run.scored} for run in runs]
    found = []
    for both in zip(*selections, strict=True):
        columns = [
            tuple(side.features.resolve(name).name for name in each_layer([layer]))
            for side, layer in zip(sides, both, strict=True)
        ]
        for steps in plan.steps:
            for spec in plan.specs:
                first, second = (cells[own, steps, spec.name] for cells, own in zip(known, columns, strict=True))
                found.append(pair_cells(first, second, rows, plan))
    return found


def pair_cells(first: Scored, second: Scored, rows: LabelledRows, plan: CellPlan) -> PairedCell:
    """Compare two cells on the held-out rows: the second one's scores minus the first one's."""
    task, y = rows.task, first.predictions.y
    ours, other = (task.resampled(y, each.predictions.outputs) for each in (second, first))
    gaps = gaps_between(ours, other, len(y), groups=rows.held_out_groups, seed=plan.options.seed)
    outputs = second.predictions.outputs, first.predictions.outputs
    only_b, only_a, p_value = task.disagreement(y, *outputs) or (None, None, None)
    return PairedCell(first.cell, second.cell, Comparison(len(y), only_b, only_a, p_value, gaps))


def find_changes(first: Scored, second: Scored, rows: LabelledRows) -> tuple[ClassChange, ...]:
    """Count by class, or label, the held-out rows that each side's winner finds."""
    if rows.task.name == "regression":
        return ()
    y = rows.y_held_out
    is_it = y.astype(bool) if y.ndim == 2 else y[:, None] == np.arange(len(rows.classes))  # (n, k)
    found_a, found_b = (is_it & _called(each.predictions.outputs, several=y.ndim == 2) for each in (first, second))
    changes = [
        ClassChange(
            label=label,
            support=(n := int(is_it[:, i].sum())),
            recall_a=float(found_a[:, i].sum() / max(n, 1)),
            recall_b=float(found_b[:, i].sum() / max(n, 1)),
            only_a=int((found_a & ~found_b)[:, i].sum()),
            only_b=int((found_b & ~found_a)[:, i].sum()),
        )
        for i, label in enumerate(rows.classes)
    ]
    return tuple(sorted((change for change in changes if change.support), key=lambda c: (c.change, -c.support)))


def _called(outputs: NDArray[np.floating[Any]], *, several: bool) -> NDArray[np.bool_]:
    """Say which class each row is called, or which labels it is given: (n, k) bool."""
    if several:
        return np.asarray(outputs > 0.5)
    return np.asarray(outputs.argmax(axis=1)[:, None] == np.arange(outputs.shape[1]))


def notes_on(
    sides: Sequence[Source],
    runs: Sequence[SideRun],
    rows: LabelledRows,
    left_out: Sequence[str],
    classes: Sequence[ClassChange],
    notes: Sequence[str],
) -> list[str]:
    """Give what a reader should know of rows, classes and sides; what is said of both sides is said once."""
    told = list(notes)
    if left_out:
        told.append(
            f"training images left out, because they are not on both sides alike: {len(left_out):,} "
            f"({first_few(left_out)})"
        )
    for side in sides:
        learned = {image for tuning in side.tunings for image in tuning.seen_ids}.intersection(rows.train_ids)
        if learned:
            told.append(
                f"cross-validated scores of {side.name} flatter it: its fine-tuning saw {len(learned):,} of the "
                "training images; held-out scores alone compare the sides"
            )
    fallen = [f"{c.label} {100 * c.change:+.1f} points" for c in classes if c.change <= -FALL]
    if fallen:
        told.append(f"classes that {sides[1].name} finds less often: {len(fallen):,} ({first_few(fallen)})")
    found = [run.notes for run in runs]
    told += [note for note in found[0] if note in found[1]]
    for side, ours, other in zip(sides, found, reversed(found), strict=True):
        told += [f"{side.name}: {note}" for note in ours if note not in other]
    return told


def _of_the_rows(run: Run) -> list[str]:
    """Give the notes of a run without doubtful labels, which are no matter of a comparison."""
    checks = run.evidence.checks
    doubts = set(checks.notes()).difference(replace(checks, suspects=()).notes())
    return [note for note in run.notes if note not in doubts]
