"""Choose a model's main setting by cross-validation, then fit it on all training rows.

Only training rows ever come here. The scaler is fitted inside each fold, and the folds (with their groups) that
choose a setting are also those that calibrate its probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibrated, fit_temperature, out_of_fold_scores, scaled_softmax
from .folds import Fold
from .metrics import Metric, as_probabilities, metric_score, rank_of, sign_of
from .models import BuildOptions, ModelSpec
from .solving import convergence_notes, folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["Fitted", "GridPoint", "Search", "fit_model", "search_setting"]


@dataclass(frozen=True)
class GridPoint:
    """One setting and its cross-validated score."""

    value: float
    """value of the model's main setting"""
    mean: float
    """mean score over the folds"""
    std: float
    """standard deviation over the folds"""


@dataclass(frozen=True)
class Search:
    """Outcome of the cross-validation of one model."""

    best: GridPoint
    """the chosen setting: best mean, the simplest on ties"""
    grid: tuple[GridPoint, ...]
    """every setting tried, in the order of the grid"""
    notes: tuple[str, ...]
    """what a reader should know: solvers that did not converge, a choice at the grid's edge"""


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
    grid: Sequence[float] | None = None,
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
        Values to try instead of the model's own, the simplest first.
    """
    values = tuple(spec.kind(value) for value in grid or spec.grid)
    uncalibrated = metric == "log_loss" and not spec.has_probabilities
    with convergence_notes() as notes, folds_in_threads():
        if uncalibrated:
            scores = _calibrated_scores(spec, X, y, folds, options, values)
        else:
            scores = _grid_scores(spec, X, y, folds, metric, options, values)
    points = tuple(
        GridPoint(value, float(sign_of(metric) * row.mean()), float(row.std()))
        for value, row in zip(values, scores, strict=True)
    )
    best = max(points, key=lambda point: rank_of(metric, point.mean))  # the first, so the simplest, on ties
    return Search(best, points, (*notes, *_edge_note(spec, best, values)))


def fit_model(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    value: float,
    folds: Sequence[Fold],
    options: BuildOptions,
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
        Value of the model's main setting.
    folds
        Positions of the parts, for the calibration; see ``make_folds``.
    options
        Seed and class weight.
    """
    pipeline = _pipeline(spec, options).set_params(**{f"model__{spec.setting}": spec.kind(value)})
    with convergence_notes() as notes, folds_in_threads():
        beta = None if spec.has_probabilities else fit_temperature(out_of_fold_scores(pipeline, X, y, folds), y)
        pipeline.fit(X, y, **_fit_params(spec, y, options))
    model = pipeline["model"]
    return Fitted(pipeline[:-1], model if beta is None else Calibrated(model, beta), tuple(notes))


@dataclass(frozen=True)
class _Scorer:
    """A metric as GridSearchCV calls it."""

    metric: Metric

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        if self.metric == "log_loss":
            return metric_score(self.metric, y, None, estimator.predict_proba(X))
        return metric_score(self.metric, y, estimator.predict(X), None)


def _grid_scores(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    values: Sequence[float],
) -> NDArray[np.float64]:
    """Score each value on each fold, (values, folds), larger is better."""
    from sklearn.model_selection import GridSearchCV

    search = GridSearchCV(
        _pipeline(spec, options),
        {f"model__{spec.setting}": values},
        scoring=_Scorer(metric),
        cv=list(folds),
        refit=False,
        error_score="raise",
    )
    search.fit(X, y, **_fit_params(spec, y, options))
    return np.column_stack([search.cv_results_[f"split{i}_test_score"] for i in range(len(folds))])


def _calibrated_scores(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    folds: Sequence[Fold],
    options: BuildOptions,
    values: Sequence[float],
) -> NDArray[np.float64]:
    """Score each value on each fold by log loss, (values, folds), larger is better.

    The temperature that a fold is scored with comes from the out-of-fold scores of the other folds.
    """
    table = []
    for value in values:
        pipeline = _pipeline(spec, options).set_params(**{f"model__{spec.setting}": value})
        scores = out_of_fold_scores(pipeline, X, y, folds)
        betas = [fit_temperature(scores[train], y[train]) for train, _ in folds]
        probas = [scaled_softmax(scores[test], beta) for (_, test), beta in zip(folds, betas, strict=True)]
        table.append([metric_score("log_loss", y[test], None, p) for (_, test), p in zip(folds, probas, strict=True)])
    return np.array(table)


def _pipeline(spec: ModelSpec, options: BuildOptions) -> Pipeline:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scale", StandardScaler()), ("model", spec.build(options))])


def _fit_params(spec: ModelSpec, y: NDArray[np.int64], options: BuildOptions) -> dict[str, Any]:
    """Weigh rows where the estimator has no class weights of its own."""
    if spec.takes_class_weight or options.class_weight is None:
        return {}
    from sklearn.utils.class_weight import compute_sample_weight

    return {"model__sample_weight": compute_sample_weight(options.class_weight, y)}


def _edge_note(spec: ModelSpec, best: GridPoint, values: Sequence[float]) -> tuple[str, ...]:
    if len(values) < 3 or best.value not in (values[0], values[-1]):
        return ()
    return (f"{spec.setting}={best.value:g} is at the edge of the grid: a wider one may do better",)
