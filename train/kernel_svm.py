"""One-vs-one machines with a Gaussian kernel for many settings at once: distances are found once, libsvm does the rest.

libsvm (Chang and Lin, ACM TIST 2011) spends nearly all its time on kernel values, one at a time and again for every
setting. Here they come from matrix products in float32, and libsvm solves what is left on the precomputed kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Machines", "Margin", "solve_machines", "squared_distances"]

Floats = NDArray[np.float32]
WHOLE_ROWS = 5_000
"""Up to so many rows all pairs are solved in one call: a kernel of 200 MB in float64, and no call a pair."""
WHOLE_PAIR = 400
"""Pairs of more rows than this are solved one by one, whose calls then cost nothing beside them."""


@dataclass(frozen=True)
class Margin:
    """A setting of the machines."""

    C: float
    """penalty of a row's slack"""
    gamma: float
    """exponent of the kernel: exp(-gamma * squared distance)"""


@dataclass(frozen=True)
class Machines:
    """The k * (k - 1) / 2 machines of one setting."""

    coef: Floats
    """(m, k): of a row of class c, what it adds to the margin of c against each class; 0 against its own. A pair's
    margin is positive for the first of the two"""
    intercept: NDArray[np.float64]
    """(k, k): at [i, j] with i < j that of the pair, 0 elsewhere"""
    iterations: NDArray[np.int32]
    """(k * (k - 1) / 2,) steps of the solver"""


def squared_distances(A: Floats, B: Floats) -> Floats:
    """Give the squared Euclidean distances of rows, (a, D) and (b, D), as (a, b) float32."""
    distances = A @ B.T  # (a, b)
    distances *= -2
    distances += np.einsum("ij,ij->i", A, A)[:, None]
    distances += np.einsum("ij,ij->i", B, B)
    np.maximum(distances, 0, out=distances)
    if A is B:
        np.fill_diagonal(distances, 0)
    return distances


def solve_machines(
    A: Floats,
    classes: Sequence[slice],
    settings: Sequence[Margin],
    weights: NDArray[np.float64],
    *,
    parallel: Any = None,
) -> list[Machines]:
    """Train the machines of every setting.

    Parameters
    ----------
    A : (m, D) float32
        Standardised rows, sorted by class.
    classes
        Where each of the k classes lies.
    settings
        What to train with.
    weights : (k,) float
        C is multiplied by the weight of a row's class.
    parallel
        A ``joblib.Parallel`` that solves pairs side by side, where they are solved one by one.

    Returns
    -------
    list of Machines
        In the order of the settings. Memory: m * k float32 a setting, and for the largest pair, or for all rows where
        those are few, the distances and one kernel: 16 bytes an entry, and what libsvm's cache takes of 200 MB.
    """
    from joblib import delayed

    m, k = len(A), len(classes)
    coef = np.zeros((len(settings), m, k), dtype=np.float32)
    intercept = np.zeros((len(settings), k, k))
    iterations = np.zeros((len(settings), k * (k - 1) // 2), dtype=np.int32)
    pairs = list(combinations(range(k), 2))

    def solve(number: int, first: int, second: int) -> None:
        rows = np.r_[classes[first], classes[second]]
        y = np.repeat([0, 1], [len(rows) - _length(classes[second]), _length(classes[second])])
        for i, machine in _solve(A[rows], y, settings, {0: weights[first], 1: weights[second]}):
            dual = np.zeros(len(rows), dtype=np.float32)
            dual[machine.support_] = -machine.dual_coef_[0]  # scikit-learn's two classes are positive for the second
            coef[i, classes[first], second] = dual[y == 0]
            coef[i, classes[second], first] = dual[y == 1]
            intercept[i, first, second] = -machine.intercept_[0]
            iterations[i, number] = machine.n_iter_[0]

    if k > 2 and m <= WHOLE_ROWS and m * 2 < WHOLE_PAIR * k:
        y = np.repeat(np.arange(k), [_length(rows) for rows in classes])
        others = np.array([[p for p in range(k) if p != c] for c in range(k)])  # (k, k - 1)
        for i, machine in _solve(A, y, settings, dict(enumerate(weights))):
            support = machine.support_
            coef[i][support[:, None], others[y[support]]] = machine.dual_coef_.T
            intercept[i][tuple(np.transpose(pairs))] = machine.intercept_
            iterations[i] = machine.n_iter_
    elif parallel is None:
        for number, pair in enumerate(pairs):
            solve(number, *pair)
    else:
        parallel(delayed(solve)(number, *pair) for number, pair in enumerate(pairs))
    return [Machines(*found) for found in zip(coef, intercept, iterations, strict=True)]


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _solve(
    A: Floats, y: NDArray[np.int64], settings: Sequence[Margin], weights: Mapping[int, float]
) -> Iterator[tuple[int, Any]]:
    """Fit libsvm for every setting and give each with its position.

    A machine none of whose rows is held back by C is the machine of every larger C.
    """
    from sklearn import config_context
    from sklearn.svm import SVC

    distances = squared_distances(A, A)
    kernel, order = np.empty_like(distances), sorted(range(len(settings)), key=lambda i: _rank(settings[i]))
    limits = np.array([weights[c] for c in range(len(weights))])[y]
    for gamma, same in groupby(order, key=lambda i: settings[i].gamma):
        np.exp(np.multiply(distances, np.float32(-gamma), out=kernel), out=kernel)
        wide, machine = kernel.astype(np.float64), None
        for i in same:
            if machine is None or not _is_free(machine, limits):
                machine = SVC(kernel="precomputed", C=settings[i].C, class_weight=dict(weights), cache_size=200)
                with config_context(assume_finite=True, skip_parameter_validation=True):
                    machine.fit(wide, y)
            yield i, machine


def _rank(setting: Margin) -> tuple[float, float]:
    return setting.gamma, setting.C


def _is_free(machine: Any, limits: NDArray[np.float64]) -> bool:
    held = machine.C * limits[machine.support_] * (1 - 1e-9)
    return bool((np.abs(machine.dual_coef_) < held).all())
