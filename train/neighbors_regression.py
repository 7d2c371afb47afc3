"""Search and fit nearest neighbours for numbers: a fold's distances serve every number of neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import fit_steps, inputs_of
from .models import BuildOptions, ModelSpec
from .nearest_search import nearest_blocks
from .out_of_fold import OutOfFold
from .settings import params_of
from .solving import folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "score_folds"]

Floats = NDArray[np.float32]


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.float64],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does: predictions, (values, n, 1), in the unit of the targets."""
    from joblib import Parallel, delayed

    inputs, numbers = inputs_of(X, options), [int(params_of(spec, value)["n_neighbors"]) for value in values]
    scores = np.empty((len(values), len(y), 1))

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        A, held_out = inputs.fold(train, test)
        most = min(max(numbers), len(A))
        for block, apart, near in nearest_blocks(A, held_out, most):
            means = _running_means(apart, y[train][near])
            for i, number in enumerate(numbers):
                scores[i, test[block], 0] = means[:, min(number, most) - 1]

    with folds_in_threads():
        Parallel()(delayed(search_fold)(*fold) for fold in folds)
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.float64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does: the rows are kept, all of them neighbours where they are few."""
    from sklearn.pipeline import Pipeline

    number = min(int(params_of(spec, value)["n_neighbors"]), len(y))
    with folds_in_threads():
        steps, A = fit_steps(X, options)
        model = spec.build(options).set_params(n_neighbors=number).fit(A, y)
    return Pipeline([*steps, ("model", model)]), ()


def _running_means(distances: Floats, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean of the nearest 1, 2, ... K targets, (m, K), each weighed by one over its distance.

    Where a row is at no distance, such alone count, as in scikit-learn.
    """
    with np.errstate(divide="ignore"):
        weights = 1 / distances.astype(np.float64)
    is_same = np.isinf(weights)
    weights = np.where(is_same.any(axis=1, keepdims=True), is_same, weights)
    return np.asarray(np.cumsum(weights * targets, axis=1) / np.cumsum(weights, axis=1))
