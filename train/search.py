"""Choose a model's main setting by cross-validation, then fit it on all training rows.

Only training rows ever come here. The scaler is fitted inside each fold, and the folds (with their groups) that
choose a setting are also those that calibrate its probabilities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibrated, fit_temperature, scaled_softmax
from .folds import Fold
from .metrics import Metric, as_probabilities, metric_score, rank_of, sign_of
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold, fit_pipeline, score_folds
from .settings import Grid, Point, grid_points, params_of

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["Fitted", "GridPoint", "Search", "fit_model", "score_by_fold", "search_setting"]


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

    @property
    def point(self) -> Point:
        """What ``fit_model`` takes as its value."""
        return (self.value, *self.others.values()) if self.others else self.value

    def to_json(self) -> dict[str, float]:
        """Give the point as plain JSON values, the other settings by name."""
        return {"value": self.value, **self.others, "mean": self.mean, "std": self.std}


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

    def proba(self, spec: ModelSpec, fitted: Fitted) -> NDArray[np.float64]:
        """Give the probabilities, (n, k), that training rows get from models that never saw their fold."""
        scores = self.found.scores[0]
        if not spec.has_probabilities:
            return scaled_softmax(_as_calibrated(scores), fitted.model.inverse_temperature)
        return scaled_softmax(_logits(scores), 1.0)


@dataclass(frozen=True)
class Fitted:
    """A model fitted on all training rows."""

    steps: Pipeline
    """fitted preprocessing: float32 (n, D) in and out"""
    model: Any
    """fitted classifier over the integers 0 to k - 1, with ``predict_proba``"""
    notes: tuple[str, ...]
    """solvers that did not converge"""

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the probability of each class, (n, k), for raw features (n, D)."""
        return as_probabilities(self.model.predict_proba(self.steps.transform(X)))


def search_setting(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    grid: Grid | None = None,
) -> Search:
    """Choose the main setting of a model by cross-validation.

    Parameters
    ----------
    spec
        The model.
    X : (n, D) float32
        Raw features of the training rows.
    y : (n,) int
        Their classes.
    folds
        Positions of the parts; see ``make_folds``.
    metric
        What to choose by.
    options
        Seed and class weight.
    grid
        Values of the main setting to try instead of the model's own, or of several settings by name; the simplest
        first.
    """
    values = grid_points(spec, grid)
    found = score_folds(spec, X, y, values=values, folds=folds, options=options)
    table = [score_by_fold(spec, scores, y, folds, metric) for scores in found.scores]
    points = tuple(
        _grid_point(spec, value, float(sign_of(metric) * row.mean()), float(row.std()))
        for value, row in zip(values, table, strict=True)
    )
    ranks = [rank_of(metric, point.mean) for point in points]
    best = ranks.index(max(ranks))  # the first, so the simplest, on ties
    notes = (*found.notes, *_edge_notes(spec, points[best], points))
    return Search(points[best], points, notes, found.only(best))


def fit_model(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    value: Point,
    folds: Sequence[Fold],
    options: BuildOptions,
    found: OutOfFold | None = None,
) -> Fitted:
    """Fit scaler and model on all training rows, with probabilities.

    Models that give scores only are calibrated by one temperature, fitted on the scores that each row gets from
    a scaler and model that saw neither it nor its group; see ``calibration``.

    Parameters
    ----------
    spec
        The model.
    X : (n, D) float32
        Raw features of the training rows.
    y : (n,) int
        Their classes.
    value
        Value of the model's main setting, or one of each setting as ``GridPoint.point`` has them.
    folds
        Positions of the parts, for the calibration; see ``make_folds``.
    options
        Seed and class weight.
    found
        Out-of-fold scores of the same value and folds, as ``Search`` keeps them; by default they are found anew.
    """
    if found is None and not spec.has_probabilities:
        found = score_folds(spec, X, y, values=(value,), folds=folds, options=options)
    start = found.starts[0] if found and found.starts else None
    pipeline, notes = fit_pipeline(spec, X, y, value=value, options=options, start=start)
    model = pipeline["model"]
    if found and not spec.has_probabilities:
        model = Calibrated(model, fit_temperature(_as_calibrated(found.scores[0]), y))
        notes = (*found.notes, *notes)
    return Fitted(pipeline[:-1], model, tuple(dict.fromkeys(notes)))


def score_by_fold(
    spec: ModelSpec, scores: NDArray[np.float32], y: NDArray[np.int64], folds: Sequence[Fold], metric: Metric
) -> NDArray[np.float64]:
    """Score one value on each fold, (folds,), larger is better.

    The temperature that a fold is scored with comes from the out-of-fold scores of the other folds.
    """
    if metric != "log_loss":
        called = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
        return np.array([metric_score(metric, y[test], called[test], None) for _, test in folds])
    if spec.has_probabilities:
        logits = _logits(scores)
        probas = [scaled_softmax(logits[test], 1.0) for _, test in folds]
    else:
        margins = _as_calibrated(scores)
        betas = [fit_temperature(margins[train], y[train]) for train, _ in folds]
        probas = [scaled_softmax(margins[test], beta) for (_, test), beta in zip(folds, betas, strict=True)]
    return np.array([metric_score(metric, y[test], None, p) for (_, test), p in zip(folds, probas, strict=True)])


def _logits(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give one logit a class, (n, k), of the scores of a model with probabilities."""
    return (np.column_stack((np.zeros_like(scores), scores)) if scores.shape[1] == 1 else scores).astype(np.float64)


def _as_calibrated(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the scores as scikit-learn's ``decision_function`` does: (n,) for two classes."""
    return (scores[:, 0] if scores.shape[1] == 1 else scores).astype(np.float64)


def _grid_point(spec: ModelSpec, value: Point, mean: float, std: float) -> GridPoint:
    main, *others = params_of(spec, value).items()
    return GridPoint(main[1], mean, std, dict(others))


def _edge_notes(spec: ModelSpec, best: GridPoint, points: Sequence[GridPoint]) -> Iterator[str]:
    tried = [{spec.setting: point.value, **point.others} for point in points]
    for name, value in {spec.setting: best.value, **best.others}.items():
        values = list(dict.fromkeys(point[name] for point in tried))
        if len(values) >= 3 and value in (values[0], values[-1]):
            yield f"{name}={value:g} is at the edge of the grid: a wider one may do better"
