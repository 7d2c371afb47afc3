"""Choose a model's settings by cross-validation, then fit it on all training rows.

Only training rows ever come here. The folds (with their groups) that choose a setting also calibrate its
probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration_curves import Curves, scores_of
from .folds import Fold
from .grid_search import Halving, score_grid
from .metrics import Metric, rank_of, sign_of
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold, fit_pipeline, score_folds
from .scoring import curves_by
from .settings import Grid, Point, grid_points, params_of
from .tasks import TaskName, task_of

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = [
    "Fitted",
    "GridPoint",
    "Search",
    "choose_point",
    "fit_model",
    "search_setting",
    "with_probabilities",
]


@dataclass(frozen=True)
class GridPoint:
    """One setting and its cross-validated score."""

    value: float
    """value of the model's main setting"""
    mean: float
    """mean score over the folds"""
    std: float
    """standard deviation over the folds"""
    others: Mapping[str, float] = field(default_factory=dict)
    """values of the settings that are searched beside the main one, by name"""
    folds: int | None = None
    """folds that it was tried on where it was dropped before the last; None: all"""

    @property
    def point(self) -> Point:
        """What ``fit_model`` takes as its value."""
        return (self.value, *self.others.values()) if self.others else self.value

    def to_json(self) -> dict[str, float]:
        """Give the point as plain JSON values, the other settings by name."""
        dropped = {} if self.folds is None else {"folds": self.folds}
        return {"value": self.value, **self.others, "mean": self.mean, "std": self.std, **dropped}


@dataclass(frozen=True)
class Search:
    """Outcome of the cross-validation of one model."""

    best: GridPoint
    """the chosen setting: best mean, the simplest on ties"""
    grid: tuple[GridPoint, ...]
    """every setting tried, in the order of the grid"""
    notes: tuple[str, ...]
    """what a reader should know: solvers that did not converge, a choice at the grid's edge"""
    found: OutOfFold
    """out-of-fold scores of the chosen setting alone, (1, n, k)"""

    def outputs(self, spec: ModelSpec, y: NDArray[Any], options: BuildOptions) -> NDArray[np.float64]:
        """Give the outputs, such as probabilities (n, k), that training rows get from models that never saw them."""
        scores = self.found.scores[0]
        return task_of(spec.task).out_of_fold(spec, scores, y, options)


@dataclass(frozen=True)
class Fitted:
    """A model fitted on all training rows."""

    steps: Pipeline
    """fitted preprocessing: float32 (n, D) in and out"""
    model: Any
    """fitted classifier over the integers 0 to k - 1, with ``predict_proba`` unless there are curves; ``LabelModels``;
    or a fitted regressor"""
    notes: tuple[str, ...]
    """solvers that did not converge"""
    curves: Curves | None = None
    """what turns the model's scores into probabilities, where that was asked for"""
    task: TaskName = "classification"
    """what was learned"""

    def outputs(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the outputs of the task for raw features (n, D); see ``tasks.Task``."""
        A = self.steps.transform(X)
        if self.curves is not None:
            return self.curves.proba(scores_of(self.model, A))
        return task_of(self.task).outputs(self.model, A)

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the probability of each class, (n, k), or label, (n, L), for raw features (n, D)."""
        return self.outputs(X)


def search_setting(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[Any],
    *,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    grid: Grid | None = None,
    repeats: Sequence[Sequence[Fold]] = (),
    halving: Halving = "auto",
) -> Search:
    """Choose the settings of a model by cross-validation.

    Parameters
    ----------
    spec
        The model.
    X : (n, D) float32
        Raw features of the training rows.
    y : (n,) int
        Their classes; of other tasks see ``tasks.Targets``.
    folds
        Positions of the parts; see ``make_folds``.
    metric
        What to choose by.
    options
        Seed and class weight.
    grid
        Values of the main setting to try instead of the model's own, or of several settings by name; the simplest
        first.
    repeats
        Other divisions of the same rows into folds, for repeated cross-validation.
    halving
        Whether values that are behind are dropped before the last fold; see ``grid_search``.
    """
    values = grid_points(spec, grid)
    scored = score_grid(
        spec, X, y, values=values, divisions=(folds, *repeats), metric=metric, options=options, halving=halving
    )
    best, points, notes = choose_point(spec, values, scored.table, metric)
    return Search(points[best], points, (*scored.notes, *notes), scored.out_of_fold(best))


def choose_point(
    spec: ModelSpec, values: Sequence[Point], table: NDArray[np.float64], metric: Metric
) -> tuple[int, tuple[GridPoint, ...], tuple[str, ...]]:
    """Choose among the values that were tried on all folds.

    Parameters
    ----------
    spec, values, metric
        The model, the points of its grid, and what to choose by.
    table : (values, folds) float
        Scores, larger is better; NaN where a value was not tried.

    Returns
    -------
    (int, tuple of GridPoint, tuple of str)
        Position of the best value, all points with their scores, and what a reader should know of the choice.
    """
    points = tuple(_grid_point(spec, value, row, metric) for value, row in zip(values, table, strict=True))
    finished = np.flatnonzero(~np.isnan(table).any(axis=1)).tolist()
    ranks = [rank_of(metric, points[i].mean) for i in finished]
    best = finished[ranks.index(max(ranks))]  # the first, so the simplest, on ties
    return best, points, tuple(_edge_notes(spec, points[best], points))


def fit_model(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[Any],
    *,
    value: Point,
    folds: Sequence[Fold],
    options: BuildOptions,
    found: OutOfFold | None = None,
) -> Fitted:
    """Fit scaler and model on all training rows, with probabilities.

    Models that give scores only are calibrated by one temperature, fitted on the scores that each row gets from
    a scaler and model that saw neither it nor its group; see ``calibration``. With ``options.calibration`` all models
    are calibrated by curves instead; see ``calibration_curves``.

    Parameters
    ----------
    spec
        The model.
    X : (n, D) float32
        Raw features of the training rows.
    y : (n,) int
        Their classes; of other tasks see ``tasks.Targets``.
    value
        Value of the model's main setting, or one of each setting as ``GridPoint.point`` has them.
    folds
        Positions of the parts, for the calibration; see ``make_folds``.
    options
        Seed and class weight.
    found
        Out-of-fold scores of the same value and folds, as ``Search`` keeps them; by default they are found anew.
    """
    if found is None and (options.calibration is not None or not spec.has_probabilities):
        found = score_folds(spec, X, y, values=(value,), folds=folds, options=options)
    start = found.starts[0] if found and found.starts else None
    pipeline, notes = fit_pipeline(spec, X, y, value=value, options=options, start=start)
    if found is None:
        return Fitted(pipeline[:-1], pipeline["model"], tuple(dict.fromkeys(notes)), None, spec.task)
    return with_probabilities(spec, pipeline, (*found.notes, *notes), found.scores[0], y, options)


def with_probabilities(
    spec: ModelSpec,
    pipeline: Pipeline,
    notes: Sequence[str],
    scores: NDArray[np.float32],
    y: NDArray[np.int64],
    options: BuildOptions,
) -> Fitted:
    """Divide a fitted pipeline into steps and model, and calibrate it on out-of-fold scores where it needs that.

    Parameters
    ----------
    spec, pipeline, notes, options
        The model, fitted, and what to know of that.
    scores : (n, k) float32, or (n, 1) for two classes
        Out-of-fold scores of the training rows.
    y : (n,) int
        Their classes.
    """
    model, curves = pipeline["model"], None
    if options.calibration is not None:
        curves = curves_by(spec, scores, y, options.calibration, options)
    elif not spec.has_probabilities:
        model = task_of(spec.task).calibrate(model, scores, y)
    return Fitted(pipeline[:-1], model, tuple(dict.fromkeys(notes)), curves, spec.task)


def _grid_point(spec: ModelSpec, value: Point, scores: NDArray[np.float64], metric: Metric) -> GridPoint:
    main, *others = params_of(spec, value).items()
    tried = scores[~np.isnan(scores)]
    folds = None if len(tried) == len(scores) else len(tried)
    return GridPoint(main[1], float(sign_of(metric) * tried.mean()), float(tried.std()), dict(others), folds)


def _edge_notes(spec: ModelSpec, best: GridPoint, points: Sequence[GridPoint]) -> Iterator[str]:
    tried = [{spec.setting: point.value, **point.others} for point in points]
    for name, value in {spec.setting: best.value, **best.others}.items():
        values = list(dict.fromkeys(point[name] for point in tried))
        if len(values) >= 3 and value in (values[0], values[-1]):
            yield f"{name}={value:g} is at the edge of the grid: a wider one may do better"
