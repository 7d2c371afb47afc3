"""What stands beside the winner's scores: the state of its data, a map of them, and whether more images would help.

Nothing of it has a part in any choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import Checks, run_checks
from .curves import FeatureMap, feature_map
from .data import Dataset
from .folds import Fold
from .metrics import Metric, sign_of
from .models import BuildOptions, ModelSpec
from .out_of_fold import score_folds
from .scoring import score_by_fold
from .search import GridPoint
from .settings import Point
from .tasks import task_of

__all__ = ["Evidence", "LearningPoint", "gather_evidence", "learning_curve"]

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
"""Parts of each fold's training rows that the learning curve trains on."""
_LEAST = 2
"""Rows of each class that a part has at least."""


@dataclass(frozen=True)
class LearningPoint:
    """The cross-validated score with fewer training rows."""

    rows: int
    """training rows of a fold, the mean"""
    mean: float
    """mean score over the folds"""
    std: float
    """standard deviation over the folds"""


@dataclass(frozen=True)
class Evidence:
    """What was found about a winner and its data."""

    checks: Checks
    """copies across the split, doubtful labels, dead features, tiny classes"""
    learning: tuple[LearningPoint, ...]
    """fewest rows first, the last one with all; empty where no report is made"""
    map: FeatureMap | None
    """None where there is a single feature, or no report is made"""
    sample: int | None = None
    """rows looked at for copies, curve and map, where all would not fit the memory limit"""

    def notes(self) -> tuple[str, ...]:
        """Say in sentences what a reader should know."""
        if self.sample is None:
            return self.checks.notes()
        told = (
            "map, learning curve and the search for near copies look at a sample of the rows that fits the memory limit"
        )
        return (*self.checks.notes(), f"{told}: {self.sample:,}")

    def to_json(self) -> dict[str, Any]:
        """Give what a caller prints or keeps, as plain JSON values; the map is for the report alone."""
        return {"checks": self.checks.to_json(), "learning_curve": [vars(point) for point in self.learning]}


def gather_evidence(
    data: Dataset,
    spec: ModelSpec,
    *,
    value: Point,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    out_of_fold: NDArray[np.floating[Any]],
    best: GridPoint | None = None,
    with_plots: bool = True,
) -> Evidence:
    """Look at the winner's data.

    Parameters
    ----------
    data
        Its features and labels.
    spec, value
        The model and its chosen setting.
    folds, metric, options
        Of the run.
    out_of_fold : (m, k) float
        Its outputs, such as probabilities, for the training rows, each from a model that never saw its fold.
    best
        Its cross-validated score, the learning curve's last point; found anew where it is not given.
    with_plots
        Whether to find what is only drawn, the learning curve and the map, which cost more than many a search.
    """
    rows = data.rows
    return Evidence(
        checks=run_checks(
            *(data.X, rows.y, rows.train),
            ids=rows.ids,
            suspects=rows.task.doubts(out_of_fold, rows.y_train, rows.train_ids, rows.classes),
            small=rows.task.small(rows.y_train, rows.classes, len(folds)),
        ),
        learning=_learning(data, spec, value, folds, metric, options, best) if with_plots else (),
        map=feature_map(data.X, rows.train, seed=options.seed) if with_plots and data.X.shape[1] > 1 else None,
    )


def _learning(
    data: Dataset,
    spec: ModelSpec,
    value: Point,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    best: GridPoint | None,
) -> tuple[LearningPoint, ...]:
    X, y = data.training()
    return learning_curve(spec, X, y, value=value, folds=folds, metric=metric, options=options, best=best)


def learning_curve(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[Any],
    *,
    value: Point,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    best: GridPoint | None = None,
) -> tuple[LearningPoint, ...]:
    """Score a setting on the same folds, trained on growing parts of their training rows.

    Parts are drawn class by class, or by what else the task divides rows by, and each holds the one before it. A part
    that is too small to teach anything, such as one without a row of some label, is left out.

    Parameters
    ----------
    X : (n, D) float32
        Raw features of the training rows.
    y : (n,) int
        Their classes; of other tasks see ``tasks.Targets``.
    spec, value, folds, metric, options
        As ``search_setting`` takes them; one value.
    best
        Its score with all rows, where that is known.
    """
    task = task_of(spec.task)
    strata = task.strata(y)
    orders = [_by_class(train, strata, options.seed) for train, _ in folds]
    points = []
    for share in SHARES:
        parts = [(_part(order, share), test) for order, (_, test) in zip(orders, folds, strict=True)]
        if not all(task.is_learnable(y[train]) for train, _ in parts):
            continue
        rows = round(np.mean([len(train) for train, _ in parts]))
        if share == 1 and best is not None:
            points.append(LearningPoint(rows, best.mean, best.std))
            continue
        found = score_folds(spec, X, y, values=(value,), folds=parts, options=options)
        scores = sign_of(metric) * score_by_fold(spec, found.scores[0], y, parts, metric, options)
        points.append(LearningPoint(rows, float(scores.mean()), float(scores.std())))
    return tuple({point.rows: point for point in points}.values())


def _by_class(train: NDArray[np.intp], y: NDArray[np.int64], seed: int) -> list[NDArray[np.intp]]:
    """Give the rows of each class in a random order."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(train[y[train] == label]) for label in np.unique(y[train])]


def _part(order: Sequence[NDArray[np.intp]], share: float) -> NDArray[np.intp]:
    """Give so large a part of every class, in the order of the rows."""
    parts = [rows[: max(_LEAST, round(share * len(rows)))] for rows in order]
    return np.sort(np.concatenate(parts))
