"""Search and fit the RBF SVM on shared distances, and end in ``PairwiseSVC``.

The machines are scikit-learn's ``SVC`` but for rounding. A fold's scaler and gamma know nothing of the rows that it is
validated on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import fit_steps, inputs_of
from .kernel_svm import Floats, Machines, Margin, solve_machines, squared_distances
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .pairwise import PairwiseSVC
from .settings import params_of
from .solving import convergence_notes, folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "score_folds"]

BLOCK_ENTRIES = 2**22
"""Entries of the largest array while rows are scored: 16 MB."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.int64],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, with distances found once a fold, as many folds as there are cores.

    Memory: for each fold at work a copy of its rows, and what ``solve_machines`` takes.
    """
    from joblib import Parallel, delayed

    k = int(y.max()) + 1
    scores = np.empty((len(values), len(y), 1 if k == 2 else k), dtype=np.float32)
    inputs = inputs_of(X, options)

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        train = train[np.argsort(y[train], kind="stable")]
        A, held_out = inputs.fold(train, test)
        settings, classes = _margins(spec, values, A), _classes(y[train], k)
        machines = solve_machines(A, classes, settings, _class_weights(y[train], k, options))
        for block, i, found in _score_blocks(held_out, A, classes, settings, machines):
            scores[i, test[block]] = found

    with folds_in_threads():
        Parallel()(delayed(search_fold)(*fold) for fold in folds)
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does; the search leaves nothing to start from."""
    from joblib import Parallel
    from sklearn.pipeline import Pipeline

    k, order = int(y.max()) + 1, np.argsort(y, kind="stable")
    steps, A = fit_steps(X, options)
    A = A[order]
    classes, settings = _classes(y[order], k), _margins(spec, [value], A)
    weights = _class_weights(y, k, options)
    with folds_in_threads():
        [machines] = solve_machines(A, classes, settings, weights, parallel=Parallel(require="sharedmem"))
    model = spec.build(options).set_params(C=settings[0].C, gamma=settings[0].gamma)
    with convergence_notes():  # one row a class looks odd to scikit-learn
        model.fill(A, y[order], order, machines.coef, machines.intercept, machines.iterations, weights)
    return Pipeline([*steps, ("model", model)]), ()


def _margins(spec: ModelSpec, values: Sequence[Any], A: Floats) -> list[Margin]:
    """Turn multiples of one over the sum of the variances into gammas; scikit-learn's ``gamma="scale"`` is 1 of it.

    (Of features without a scaler scikit-learn counts their means in too, which no distance depends on.)
    """
    means = A.mean(axis=0, dtype=np.float64)
    total = float(np.einsum("ij,ij->", A, A, dtype=np.float64)) / len(A) - float(means @ means)
    points = [params_of(spec, value) for value in values]
    return [Margin(point["C"], point["gamma_scale"] / (total or 1.0)) for point in points]


def _classes(y: NDArray[np.int64], k: int) -> list[slice]:
    edges = np.searchsorted(y, np.arange(k + 1)).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _class_weights(y: NDArray[np.int64], k: int, options: BuildOptions) -> NDArray[np.float64]:
    """Weigh classes as scikit-learn's ``compute_class_weight`` does, (k,)."""
    if options.class_weight is None:
        return np.ones(k)
    return np.asarray(len(y) / (k * np.bincount(y, minlength=k)))


def _score_blocks(
    held_out: Floats, A: Floats, classes: Sequence[slice], settings: Sequence[Margin], machines: Sequence[Machines]
) -> Iterator[tuple[slice, int, Floats]]:
    """Give blocks of rows with the position of a setting and its scores, as ``PairwiseSVC`` decodes them."""
    rows = max(1, BLOCK_ENTRIES // max(len(A), len(classes) ** 2))
    order = sorted(range(len(settings)), key=lambda i: settings[i].gamma)
    for start in range(0, len(held_out), rows):
        block = slice(start, start + rows)
        distances = squared_distances(held_out[block], A)
        for gamma, same in groupby(order, key=lambda i: settings[i].gamma):
            kernel = np.exp(distances * np.float32(-gamma))
            for i in same:
                yield block, i, _decode(kernel, classes, machines[i])


def _decode(kernel: Floats, classes: Sequence[slice], machines: Machines) -> Floats:
    """Score rows by their kernel values, (b, m): (b, k), or the margin of the second of two classes, (b, 1)."""
    k = len(classes)
    parts = np.stack([kernel[:, rows] @ machines.coef[rows] for rows in classes])  # (k, b, k)
    margins = parts + parts.transpose(2, 1, 0)  # of the first of each pair
    margins += machines.intercept.T[:, None].astype(np.float32) + machines.intercept[:, None].astype(np.float32)
    if k == 2:
        return np.asarray(-margins[0, :, 1:])
    margins *= np.where(np.tri(k, k=-1, dtype=bool), -1, 1)[:, None].astype(np.float32)  # for the class itself
    margins *= -PairwiseSVC.SLOPE
    losses = np.log1p(np.exp(-np.abs(margins)))
    losses += np.maximum(margins, 0, out=margins)
    losses[np.arange(k), :, np.arange(k)] = 0
    return np.asarray(-losses.sum(axis=2).T)
