"""How well features suit a labelling, told without training a model: LogME.

LogME (You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021)
is the largest evidence of a Bayesian linear regression of each target on the features, a row and target: the log
likelihood with the weights integrated out, maximised over their precision and that of the noise. It grows with what the
features explain, and falls with the directions that they need for it. Targets are the indicators of the classes, or of
the labels, or the standardised numbers of a regression.

Features are standardised and targets centred, with a row less to learn from: that integrates out an intercept, which
the paper's regression lacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .tasks import Task

__all__ = ["logme"]

MOST_ROWS = 2_000
"""Rows that are looked at: the time grows with the cube of the smaller of rows and features."""
MOST_STEPS = 1_000
"""Steps of the fixed point."""
CLOSE = 1e-9
"""Relative change of the ratio of precisions below which it has converged."""
BLOCK = 1024
"""Rows that are turned into float64 at a time."""
_LEAST, _HUGE, _TINY = 1e-12, 1e100, 1e-200
"""Limits of the ratio, the lower one in units of the largest squared singular value: features that fit a class without
error send it to 0, and features that tell nothing of it to infinity."""


def logme(X: NDArray[np.float32], y: NDArray[Any], *, task: Task, seed: int = 0) -> float:
    """Give the log maximum evidence of features for a labelling, a row and target: larger is better.

    Time and memory are those of the eigenvectors of a matrix of min(n, D, 2,000) rows and columns, on one core: 2 s at
    most.

    Parameters
    ----------
    X : (n, D) float32
        Raw features of training rows.
    y : (n,) or (n, L)
        Their targets; see ``tasks.Targets``.
    task
        What is learned.
    seed
        Of the rows looked at, where there are more than 2,000: the same part of every class, or of what else the task
        divides rows by.

    Returns
    -------
    float
        Comparable between features of the same rows, and of those alone.
    """
    from threadpoolctl import threadpool_limits

    rows = _with_variety(_some_rows(task.strata(y), seed), y)
    targets = task.responses(y[rows])
    targets = targets - targets.mean(axis=0)  # (m, k)
    with threadpool_limits(1):  # several threads wait for each other by spinning: 3 s for 0.1 s beside a busy process
        spectrum = _project(_standardised(X[rows]), targets)
    return float(np.mean(_evidence(spectrum, len(rows) - 1)) / (len(rows) - 1))


class _Spectrum(NamedTuple):
    """Features and targets in the directions of the features' singular vectors."""

    squares: NDArray[np.float64]
    """(r, 1), the squared singular values above rounding"""
    inside: NDArray[np.float64]
    """(r, k), squared projection of each target on each left singular vector"""
    outside: NDArray[np.float64]
    """(k,), what of the squared length of each target no weights can reach"""


def _with_variety(rows: NDArray[np.intp], y: NDArray[Any]) -> NDArray[np.intp]:
    """Add a row for each column of the targets that is the same in all of these: its evidence would have no bound."""
    columns = y.reshape(len(y), -1)
    first = columns[rows[0]]
    same = np.flatnonzero((columns[rows] == first).all(axis=0))
    return np.union1d(rows, (columns[:, same] != first[same]).argmax(axis=0))


def _some_rows(y: NDArray[np.int64], seed: int) -> NDArray[np.intp]:
    """Give all rows, or the same part of every class or stratum, at least one of each, in their order."""
    if len(y) <= MOST_ROWS:
        return np.arange(len(y))
    rng = np.random.default_rng(seed)
    share = MOST_ROWS / len(y)
    parts = (np.flatnonzero(y == label) for label in np.unique(y))
    return np.sort(np.concatenate([rng.permutation(part)[: max(1, int(share * len(part)))] for part in parts]))


def _standardised(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre and scale a copy; a constant feature becomes 0."""
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X - mean.astype(np.float32)
    scale = np.sqrt(np.einsum("ij,ij->j", centred, centred, dtype=np.float64) / len(X))
    is_constant = scale <= np.finfo(np.float32).eps * np.abs(mean)
    return np.asarray(centred / np.where(is_constant, np.inf, scale).astype(np.float32))


def _project(X: NDArray[np.float32], targets: NDArray[np.float64]) -> _Spectrum:
    """Find the singular vectors once for all targets, through the smaller of the two Gram matrices."""
    n, width = X.shape
    tall = width < n
    gram = _gram(X) if tall else _gram(np.ascontiguousarray(X.T))
    squares, vectors = np.linalg.eigh(gram)
    real = squares > max(n, width) * np.finfo(np.float64).eps * max(float(squares[-1]), 0.0)
    squares, vectors = squares[real, None], vectors[:, real]
    if tall:
        products = sum(X[i : i + BLOCK].astype(np.float64).T @ targets[i : i + BLOCK] for i in range(0, n, BLOCK))
        inside = (vectors.T @ products) ** 2 / squares
    else:
        inside = (vectors.T @ targets) ** 2
    lengths = np.einsum("ij,ij->j", targets, targets)
    return _Spectrum(squares, inside, np.maximum(lengths - inside.sum(axis=0), 0.0))


def _gram(X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give X.T @ X in float64, (D, D), without all of X in float64."""
    gram = np.zeros((X.shape[1], X.shape[1]))
    for start in range(0, len(X), BLOCK):
        part = X[start : start + BLOCK].astype(np.float64)
        gram += part.T @ part
    return gram


def _evidence(spectrum: _Spectrum, n: int) -> NDArray[np.float64]:
    """Give the largest log evidence of each target, (k,), in n degrees of freedom.

    With weights of precision a and noise of precision b all that counts is their ratio: the weights are those of a
    ridge regression with it, g of them are well determined, and at the maximum a = g / |weights|^2 and
    b = (n - g) / |residuals|^2. The ratio is carried from there to the next until it stays.
    """
    largest = spectrum.squares.max(initial=0.0)
    ratio = np.ones(spectrum.inside.shape[1])
    for _ in range(MOST_STEPS):
        fit, before = _at(spectrum, ratio, n), ratio
        ratio = fit.determined * fit.residuals / (fit.free * np.maximum(fit.weights, _TINY))
        ratio = np.clip(ratio, _LEAST * largest, _HUGE)
        if (np.abs(ratio - before) <= CLOSE * before).all():
            break
    fit = _at(spectrum, ratio, n)
    noise = n / (fit.residuals + ratio * fit.weights)  # the best for the ratio; as above where that stays
    # D/2 log a - 1/2 log |a I + b X'X|, in one term that stays finite as a grows.
    volume = np.log1p(spectrum.squares / ratio).sum(axis=0)
    return np.asarray(n * np.log(noise / (2 * np.pi)) - n - volume) / 2


class _Fit(NamedTuple):
    """The ridge regressions of all targets, each with its ratio of precisions; (k,) each."""

    determined: NDArray[np.float64]
    """number of weights that the rows determine"""
    free: NDArray[np.float64]
    """degrees of freedom that are left to the noise"""
    weights: NDArray[np.float64]
    """squared length of the weights"""
    residuals: NDArray[np.float64]
    """squared length of the residuals"""


def _at(spectrum: _Spectrum, ratio: NDArray[np.float64], n: int) -> _Fit:
    squares, inside, outside = spectrum
    lost = ratio / (ratio + squares)  # (r, k), taken apart from what is kept: the difference to 1 would cancel
    kept = squares / (ratio + squares)
    return _Fit(
        determined=kept.sum(axis=0),
        free=lost.sum(axis=0) + (n - len(squares)),
        weights=(kept**2 * inside / squares).sum(axis=0),
        residuals=(lost**2 * inside).sum(axis=0) + outside,
    )
