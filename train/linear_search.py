"""Search and fit linear models, all classes and values at once, and end in scikit-learn's own estimators.

Logistic regression, the linear SVM and ridge minimise what ``LogisticRegression``, ``LinearSVC`` and
``RidgeClassifier`` do. A fold's model knows nothing of the rows that it is validated on: no mean, no scale and no
start of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .linear_losses import Floats
from .linear_path import Kind, Rows, Solution, solve_path
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .solving import folds_in_threads
from .standardise import centre, training_standard

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "score_folds"]

KINDS: dict[str, Kind] = {"LogisticRegression": "logistic", "LinearSVC": "squared_hinge"}
"""What each of scikit-learn's estimators minimises."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.int64],
    *,
    values: Sequence[float],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, in one descent a fold, as many side by side as there are cores."""
    from joblib import Parallel, delayed

    k = int(y.max()) + 1
    scores = np.empty((len(values), len(y), 1 if k == 2 else k), dtype=np.float32)
    centred, model = centre(X), spec.build(options)

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> list[Solution]:
        rows = centred.X[train]
        standard = training_standard(rows, centred.shift)
        training = Rows(standard.apply(rows), y[train], _class_weights(y[train], k, options))
        held_out = standard.apply(centred.X[test])
        found = {}
        for i, solution in solve_path(training, KINDS[type(model).__name__], values, **_limits(model)):
            scores[i, test] = solution.scores(held_out)
            found[i] = solution
        return [found[i] for i in range(len(values))]

    with folds_in_threads():
        by_fold = Parallel()(delayed(search_fold)(*fold) for fold in folds)
    by_value = list(zip(*by_fold, strict=True))
    notes = dict.fromkeys(note for found in by_value for note in _notes(found, model))
    return OutOfFold(scores, tuple(notes), tuple(map(_mean, by_value)))


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: float, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does, from the mean of the folds' models where there is one."""
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    k = int(y.max()) + 1
    scale, model = StandardScaler(), spec.build(options).set_params(**{spec.setting: value})
    rows = Rows(scale.fit_transform(X), y, _class_weights(y, k, options))
    with threadpool_limits(1):
        [(_, found)] = solve_path(rows, KINDS[type(model).__name__], [value], start=start, **_limits(model))
    _fill(model, found, k)
    return Pipeline([("scale", scale), ("model", model)]), _notes([found], model)


def _limits(model: Any) -> dict[str, Any]:
    return {"tol": model.tol, "max_iter": model.max_iter}


def _class_weights(y: NDArray[np.int64], k: int, options: BuildOptions) -> NDArray[np.float64]:
    """Weigh classes as scikit-learn's ``compute_class_weight`` does, (k,)."""
    if options.class_weight is None:
        return np.ones(k)
    return np.asarray(len(y) / (k * np.bincount(y, minlength=k)))


def _mean(found: Sequence[Solution]) -> Solution:
    """Give the mean of the folds' models: each is of features standardised by nearly the same means and scales."""
    coef = np.mean([solution.coef for solution in found], axis=0)
    return Solution(coef, np.mean([solution.intercept for solution in found], axis=0), 0, converged=True)


def _notes(found: Sequence[Solution], model: Any) -> tuple[str, ...]:
    if all(solution.converged for solution in found):
        return ()
    return (f"did not converge: {type(model).__name__} was stopped after {model.max_iter} iterations",)


def _fill(model: Any, found: Solution, k: int) -> None:
    """Give an unfitted estimator of scikit-learn what its ``fit`` would have given it."""
    model.classes_ = np.arange(k)
    model.coef_ = np.ascontiguousarray(found.coef.T)
    model.intercept_ = found.intercept.copy()
    model.n_features_in_ = found.coef.shape[0]
    is_svm = KINDS[type(model).__name__] == "squared_hinge"
    model.n_iter_ = found.iterations if is_svm else np.array([found.iterations], dtype=np.int32)
