"""What a training run gives: one cell for each model on each set of layers, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration_curves import CurveMethod
from .data import Provenance
from .evidence import Evidence
from .metrics import Metric, sign_of
from .models import ClassWeight
from .nested import Nested
from .resampling import Comparison, Interval
from .rows import LabelledRows
from .search import GridPoint
from .steps import STANDARD, Steps
from .tasks import Task

__all__ = ["Cell", "Predictions", "RunnerUp", "SearchedCell", "TrainResult", "intervals_to_json", "rows_to_json"]

LEVEL = 0.05
"""Level at which two models are told apart."""


@dataclass(frozen=True, kw_only=True)
class SearchedCell:
    """One model on one set of layers, as cross-validation on training rows scored it."""

    columns: tuple[str, ...]
    """column names, joined in this order"""
    n_features: int
    """numbers an image"""
    model: str
    """name of the model"""
    steps: Steps
    """what is done to the features before"""
    setting: str
    """name of its main setting"""
    best: GridPoint
    """the chosen value, with the mean and deviation of its cross-validated score"""
    grid: tuple[GridPoint, ...]
    """every value tried"""
    seconds: float
    """wall time of all that is told here"""
    notes: tuple[str, ...]
    """what a reader should know: no convergence, a choice at the grid's edge"""

    @property
    def layers(self) -> str:
        """The columns as one text: ``layer3:avg + layer4:avg``."""
        return " + ".join(self.columns)

    @property
    def inputs(self) -> str:
        """The layers, with the steps where they are not the standard scaler alone: ``layer4:avg (L2, standard)``."""
        return self.layers if self.steps == STANDARD else f"{self.layers} ({self.steps})"

    @property
    def params(self) -> dict[str, float]:
        """The chosen settings by name."""
        return {self.setting: self.best.value, **self.best.others}

    def to_json(self) -> dict[str, Any]:
        """Give the cell as plain JSON values."""
        return {
            "columns": list(self.columns),
            "n_features": self.n_features,
            "model": self.model,
            "steps": self.steps.to_json(),
            "params": self.params,
            "cv": {"mean": self.best.mean, "std": self.best.std, "grid": [point.to_json() for point in self.grid]},
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Cell(SearchedCell):
    """A cell that was fitted on all training rows and scored on the held-out ones."""

    evaluation: Any
    """``tasks.Scores`` on the held-out rows, which had no part in any choice"""

    def to_json(self) -> dict[str, Any]:
        """Give the cell as plain JSON values."""
        return {**super().to_json(), "held_out": self.evaluation.to_json()}


@dataclass(frozen=True)
class Predictions:
    """The winner's outputs for the held-out rows."""

    ids: tuple[str, ...]
    """n image ids"""
    y: NDArray[Any]
    """(n,), true classes; of other tasks see ``tasks.Targets``"""
    outputs: NDArray[np.floating[Any]]
    """(n, k), probability of each class; (n, L), of each label; or (n,), predicted numbers"""

    @property
    def proba(self) -> NDArray[np.floating[Any]]:
        """The outputs of a task that has probabilities."""
        return self.outputs


@dataclass(frozen=True)
class RunnerUp:
    """The next best cell, and how it compares with the winner on the held-out rows."""

    cell: Cell
    """its scores"""
    comparison: Comparison
    """the winner first, this one second"""
    headline: str = "accuracy"
    """score that the verdict is about"""

    def verdict(self) -> str:
        """Say in words what the held-out scores tell."""
        gap, p_value = self.comparison.gaps[self.headline], self.comparison.p_value
        is_chance = p_value is not None and p_value > LEVEL  # few rows differ: the bootstrap alone is too sure of them
        if gap is None or is_chance or gap.interval[0] <= 0 <= gap.interval[1]:
            return "these rows cannot tell them apart"
        return f"the winner is {'better' if gap.difference * sign_of(self.headline) > 0 else 'worse'} beyond chance"

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {"columns": list(self.cell.columns), "model": self.cell.model, **self.comparison.to_json()}


@dataclass(frozen=True)
class TrainResult:
    """Outcome of ``train_models``."""

    cells: tuple[Cell, ...]
    """the leaderboard: best cross-validated score first; ties by fewer features, then by the simpler model"""
    baseline: Any
    """``tasks.Scores`` of what is known without features: the training rows' class shares, or their mean"""
    metric: Metric
    """what the cells are ordered and chosen by"""
    folds: int
    """folds of the cross-validation"""
    repeats: int
    """divisions into folds that each cross-validated score is the mean of"""
    seed: int
    """seed of folds and models"""
    class_weight: ClassWeight
    """how classes were weighed"""
    calibration: CurveMethod | None
    """curves that give the probabilities; None: each model's own, or one temperature"""
    rows: LabelledRows
    """task, classes, split, and what was left out"""
    provenance: Provenance
    """where the features came from"""
    predictions: Predictions
    """the winner's, on the held-out rows"""
    intervals: tuple[Mapping[str, Interval | None], ...]
    """95 % bootstrap intervals of the held-out scores of each saved cell, in the order of ``bundles``"""
    runner_up: RunnerUp | None
    """how the next best cell compares with the winner; None where there is one cell"""
    evidence: Evidence
    """the state of the data, the learning curve, and a map of the winner's features"""
    nested: Nested | None
    """the whole search judged on rows that it never saw; None where it was not asked for"""
    notes: tuple[str, ...]
    """what a reader should know of the data"""
    bundles: tuple[Path, ...]
    """folders of the saved bundles, in the order of the cells; the first is the winner's"""
    report: Path | None
    """the report, inside the winner's bundle; None when none was asked for"""
    chosen_among: int
    """number of cells that the winner was chosen from"""

    @property
    def task(self) -> Task:
        """What was learned."""
        return self.rows.task

    @property
    def winner(self) -> Cell:
        """The cell with the best cross-validated score on the training rows."""
        return self.cells[0]

    def to_json(self) -> dict[str, Any]:
        """Give what a caller prints or keeps, as plain JSON values."""
        return {
            "task": self.task.name,
            "winner": self.winner.to_json(),
            "winner_intervals": intervals_to_json(self.intervals[0]),
            "runner_up": None if self.runner_up is None else self.runner_up.to_json(),
            "cells": [cell.to_json() for cell in self.cells],
            "baseline": self.baseline.to_json(),
            "metric": self.metric,
            "folds": self.folds,
            "repeats": self.repeats,
            "seed": self.seed,
            "class_weight": self.class_weight,
            "calibration": self.calibration,
            "nested": None if self.nested is None else self.nested.to_json(),
            "classes": list(self.rows.classes),
            "rows": rows_to_json(self.rows),
            "set": self.provenance.set_name,
            "generation": self.provenance.generation,
            "version": self.provenance.version,
            **self.evidence.to_json(),
            "notes": list(self.notes),
            "bundles": [str(path) for path in self.bundles],
            "report": None if self.report is None else str(self.report),
        }


def intervals_to_json(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    """Give intervals as plain JSON values."""
    return {name: None if interval is None else list(interval) for name, interval in intervals.items()}


def rows_to_json(rows: LabelledRows) -> dict[str, Any]:
    """Give the counts of rows, the split, and what was left out."""
    n_train = int(rows.train.sum())
    return {
        "training": n_train,
        "held_out": len(rows.ids) - n_train,
        "split": rows.split.description,
        "split_sha256": rows.split.digest,
        "training_ids_sha256": rows.train_digest,
        "labels": rows.label_source,
        "skipped_unknown": len(rows.match.unknown),
        "skipped_unlabelled": len(rows.match.missing),
        "failed_images": list(rows.match.failed),
    }
