"""Search and fit ridge regression of numbers: one pass of sums serves every fold and penalty.

A fold's sums are those of all rows less its validation rows, its means and scales are folded into them, and a penalty
then costs one Cholesky factorisation; see ``linear_ridge``. It ends in scikit-learn's ``Ridge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import Inputs, fit_steps, inputs_of
from .linear_ridge import BLOCK, CANCELLED, System
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .settings import params_of
from .solving import folds_in_threads
from .standardise import Standard, training_standard
from .target_unit import target_unit

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
    """Score as ``out_of_fold.score_folds`` does: predictions, (values, n, 1), in the unit of the targets.

    Memory: for each fold a (D, D) matrix in float64 and one in float32, and its standardised validation rows.
    """
    from joblib import Parallel, delayed

    inputs, unit = inputs_of(X, options), target_unit(y)  # the same for all folds: ridge is linear in the targets
    t, alphas = unit.standardise(y), [params_of(spec, value)["alpha"] for value in values]
    scores = np.empty((len(values), len(y), 1))
    with folds_in_threads():
        parallel = Parallel()
        systems = _systems(inputs, t, folds, parallel)

        def solve(i: int, test: NDArray[np.intp], system: System, held_out: Floats) -> None:
            scores[i, test] = unit.restore(system.solve(alphas[i]).scores(held_out))

        parallel(
            delayed(solve)(i, test, *ready)
            for i in range(len(values))
            for (_, test), ready in zip(folds, systems, strict=True)
        )
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.float64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does; the search leaves nothing to start from."""
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    unit, alpha = target_unit(y), params_of(spec, value)["alpha"]
    with threadpool_limits(1):
        steps, A = fit_steps(X, options)
        found = _row_system(A, unit.standardise(y)).solve(alpha)
    model = spec.build(options).set_params(alpha=alpha)
    model.coef_ = found.coef[:, 0].astype(np.float64) * unit.scale
    model.intercept_ = float(unit.restore(found.intercept)[0])
    model.n_features_in_, model.n_iter_, model.solver_ = A.shape[1], None, "cholesky"
    return Pipeline([*steps, ("model", model)]), ()


@dataclass(frozen=True)
class _Sums:
    """Sums over some centred rows and their targets."""

    rows: int
    gram: NDArray[np.float64]
    """(D, D) X.T @ X"""
    sums: NDArray[np.float64]
    """(2, D) sum of the rows, and of the rows times their targets"""
    targets: float

    def less(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows - other.rows, self.gram - other.gram, self.sums - other.sums, self.targets - other.targets
        )

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.rows + other.rows, self.gram + other.gram, self.sums + other.sums, self.targets + other.targets
        )


def _systems(inputs: Inputs, t: NDArray[np.float64], folds: Sequence[Fold], parallel: Any) -> list[tuple[System, Any]]:
    """Give the equations of each fold, and its standardised validation rows."""
    from joblib import delayed

    X = inputs.centred.X
    few = min(len(train) for train, _ in folds) < X.shape[1]
    if few or inputs.steps.scale != "standard" or inputs.steps.pca:
        return list(parallel(delayed(_by_rows)(inputs, t, *fold) for fold in folds))
    rest = np.setdiff1d(np.arange(len(t)), np.concatenate([test for _, test in folds]))
    parts = parallel(delayed(_sums_of)(X[rows], t[rows]) for rows in (*(test for _, test in folds), rest))
    total = reduce(_Sums.plus, parts)
    whole = all(len(train) + len(test) == len(t) for train, test in folds)  # a learning curve trains on fewer rows
    known = [total.less(part) for part in parts[:-1]] if whole else [None] * len(folds)
    return list(parallel(delayed(_by_sums)(inputs, t, total, *pair) for pair in zip(known, folds, strict=True)))


def _by_rows(inputs: Inputs, t: NDArray[np.float64], train: Any, test: Any) -> tuple[System, Floats]:
    A, held_out = inputs.fold(train, test)
    return _row_system(A, t[train]), held_out


def _by_sums(
    inputs: Inputs, t: NDArray[np.float64], total: _Sums, known: _Sums | None, fold: Fold
) -> tuple[System, Floats]:
    train, test = fold
    centred = inputs.centred
    training = _sums_of(centred.X[train], t[train]) if known is None else known
    m = training.rows
    mean, target = training.sums[0] / m, training.targets / m
    gram = training.gram - m * np.outer(mean, mean)
    right = training.sums[1] - m * mean * target
    scale = np.sqrt(np.maximum(gram.diagonal() / m, 0))
    lost = np.flatnonzero(scale**2 <= CANCELLED * total.gram.diagonal() / total.rows)
    if len(lost):  # little is left of them after the difference: summed anew
        rows = centred.X[train]
        own = training_standard(rows[:, lost], centred.shift[lost])
        mean[lost], scale[lost] = own.mean, own.scale
        apart = (rows[:, lost] - own.mean).astype(np.float32)
        gram[:, lost] = (rows - mean.astype(np.float32)).T @ apart
        gram[lost] = gram[:, lost].T
        right[lost] = apart.T @ (t[train] - target)
    gram /= scale
    gram /= scale[:, None]
    system = System(
        gram.astype(np.float32),
        (right / scale)[:, None].astype(np.float32),
        None,
        np.zeros(len(scale)),
        np.array([target]),
    )
    return system, Standard(mean, scale).apply(centred.X[test])


def _row_system(A: Floats, t: NDArray[np.float64]) -> System:
    """Give the equations of rows; of fewer rows than features, those between the rows."""
    mean, target = A.mean(axis=0, dtype=np.float64), np.array([t.mean()])
    A = A - mean.astype(np.float32)
    right = (t - target)[:, None].astype(np.float32)
    if len(A) < A.shape[1]:
        return System(A @ A.T, right, A.T, mean, target)
    return System(A.T @ A, A.T @ right, None, mean, target)


def _sums_of(X: Floats, t: NDArray[np.float64]) -> _Sums:
    D = X.shape[1]
    gram, sums = np.zeros((D, D)), np.zeros((2, D))
    for start in range(0, len(X), BLOCK):
        block = X[start : start + BLOCK]
        gram += block.T @ block
        sums += np.stack((np.ones(len(block)), t[start : start + BLOCK])).astype(np.float32) @ block
    return _Sums(len(X), gram, sums, float(t.sum()))
