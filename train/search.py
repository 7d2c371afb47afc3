"""Choose a model's main setting by cross-validation, then fit it on all training rows.

Only training rows ever come here. The scaler is fitted inside each fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import FoldError
from .metrics import Metric, metric_score, sign_of
from .models import BuildOptions, ModelSpec
from .solving import convergence_notes, folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["Fitted", "GridPoint", "Search", "fit_model", "make_folds", "search_setting"]

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


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

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """Give the probability of each class, (n, k), for raw features (n, D)."""
        return np.asarray(self.model.predict_proba(self.steps.transform(X)))


def make_folds(
    y: NDArray[np.int64],
    *,
    classes: Sequence[str],
    folds: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Divide training rows into stratified folds, the same for every model and layer.

    Parameters
    ----------
    y : (n,) int
        Classes of the training rows.
    classes
        Their names.
    folds
        How many, at least 2.
    seed
        Seed of the shuffle.
    groups
        Group of each row: none is ever in both parts of a fold.

    Returns
    -------
    tuple of (training rows, validation rows)
        Positions in ``y``.

    Raises
    ------
    FoldError
        When a class has fewer rows or groups than folds: it would be missing from some part.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    for i, label in enumerate(classes):
        rows = np.flatnonzero(y == i)
        _check_count(label, len(rows), folds, "training rows")
        if groups is not None:
            _check_count(label, len({groups[row] for row in rows.tolist()}), folds, "groups of training rows")
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = tuple(splitter.split(np.zeros(len(y)), y, groups))
    _check_parts(parts, y, classes, folds)
    return parts


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
    from sklearn.model_selection import GridSearchCV

    values = tuple(spec.kind(value) for value in grid or spec.grid)
    inner = metric == "log_loss" and not spec.has_probabilities
    estimator = _calibrated(spec.build(options), len(folds), options) if inner else spec.build(options)
    name = f"model__estimator__{spec.setting}" if inner else f"model__{spec.setting}"
    search = GridSearchCV(
        _pipeline(estimator),
        {name: values},
        scoring=_Scorer(metric),
        cv=list(folds),
        refit=False,
        error_score="raise",
    )
    with convergence_notes() as notes, folds_in_threads():
        search.fit(X, y, **_fit_params(spec, y, options, prefix="model__"))
    found = search.cv_results_
    points = tuple(
        GridPoint(value, float(sign_of(metric) * mean), float(std))
        for value, mean, std in zip(values, found["mean_test_score"], found["std_test_score"], strict=True)
    )
    best = max(points, key=lambda point: sign_of(metric) * point.mean)  # the first, so the simplest, on ties
    return Search(best, points, (*notes, *_edge_note(spec, best, values)))


def fit_model(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    value: float,
    folds: int,
    options: BuildOptions,
) -> Fitted:
    """Fit scaler and model on all training rows, with probabilities.

    Models that give scores only are calibrated by one temperature, fitted on out-of-fold scores: it keeps the
    order of the scores, so that the called class is the one with the largest probability.

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
        Folds of the calibration.
    options
        Seed and class weight.
    """
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    steps = Pipeline([("scale", StandardScaler())])
    model = spec.build(options).set_params(**{spec.setting: spec.kind(value)})
    if not spec.has_probabilities:
        model = _calibrated(model, folds, options)
    with convergence_notes() as notes, folds_in_threads():
        model.fit(steps.fit_transform(X), y, **_fit_params(spec, y, options))
    return Fitted(steps, model, tuple(notes))


@dataclass(frozen=True)
class _Scorer:
    """A metric as GridSearchCV calls it."""

    metric: Metric

    def __call__(self, estimator: Any, X: Any, y: Any) -> float:
        if self.metric == "log_loss":
            return metric_score(self.metric, y, None, estimator.predict_proba(X))
        return metric_score(self.metric, y, estimator.predict(X), None)


def _pipeline(estimator: Any) -> Pipeline:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    return Pipeline([("scale", StandardScaler()), ("model", estimator)])


def _calibrated(estimator: Any, folds: int, options: BuildOptions) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(folds, shuffle=True, random_state=options.seed)
    return CalibratedClassifierCV(estimator, method="temperature", ensemble=False, cv=splitter)


def _fit_params(spec: ModelSpec, y: NDArray[np.int64], options: BuildOptions, *, prefix: str = "") -> dict[str, Any]:
    """Weigh rows where the estimator has no class weights of its own."""
    if spec.takes_class_weight or options.class_weight is None:
        return {}
    from sklearn.utils.class_weight import compute_sample_weight

    return {f"{prefix}sample_weight": compute_sample_weight(options.class_weight, y)}


def _edge_note(spec: ModelSpec, best: GridPoint, values: Sequence[float]) -> tuple[str, ...]:
    if len(values) < 3 or best.value not in (values[0], values[-1]):
        return ()
    return (f"{spec.setting}={best.value:g} is at the edge of the grid: a wider one may do better",)


def _check_count(label: str, count: int, folds: int, what: str) -> None:
    if count < folds:
        cure = f"lower it (--set train.folds={max(count, 2)})" if count >= 2 else "add some"
        raise FoldError(
            f"class {label!r} has {count} {what}, fewer than the {folds} folds: {cure}, or remove the class",
            label=label,
            count=count,
            folds=folds,
        )


def _check_parts(parts: Sequence[Fold], y: NDArray[np.int64], classes: Sequence[str], folds: int) -> None:
    """Refuse folds whose training part lacks a class, which lopsided groups can cause."""
    for train, _ in parts:
        for i in sorted(set(range(len(classes))) - set(y[train].tolist())):
            raise FoldError(
                f"class {classes[i]!r}: its groups are so uneven that a fold would train without it; "
                f"use fewer folds than {folds} (--set train.folds=N), or remove the class",
                label=classes[i],
                count=int((y == i).sum()),
                folds=folds,
            )
