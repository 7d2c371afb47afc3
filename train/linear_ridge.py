"""Ridge regression on targets of -1 and 1, each class against the rest, as linear systems that serve every penalty.

With no class weights the systems of all folds come from one pass over the rows: a fold's Gram matrix is that of all
rows less its validation rows, and its means and scales are folded into it. A penalty then costs one Cholesky
factorisation, which at some 1,000 features and ten penalties is cheaper than one eigendecomposition for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .linear_losses import Floats
from .linear_path import Rows, Solution
from .standardise import Centred, Standard, training_standard

__all__ = ["Moments", "System", "direct_system", "fold_system", "moments"]

BLOCK = 4096
"""Rows whose products are summed in float32; sums of blocks are in float64."""
CANCELLED = 1e-4
"""Features whose training variance is less than this part of their mean square are summed anew from their rows."""


@dataclass(frozen=True)
class Moments:
    """Sums over some rows."""

    rows: int
    """how many"""
    gram: NDArray[np.float64]
    """(D, D) X.T @ X"""
    sums: NDArray[np.float64]
    """(k, D) sum of the rows of each class"""
    counts: NDArray[np.int64]
    """(k,) rows of each class"""

    def less(self, other: Moments) -> Moments:
        """Give the sums without some of the rows."""
        return Moments(
            self.rows - other.rows, self.gram - other.gram, self.sums - other.sums, self.counts - other.counts
        )

    def plus(self, other: Moments) -> Moments:
        """Give the sums over both."""
        return Moments(
            self.rows + other.rows, self.gram + other.gram, self.sums + other.sums, self.counts + other.counts
        )


@dataclass(frozen=True)
class System:
    """Linear equations whose solution, for any penalty, is a ridge model of standardised features."""

    matrix: Floats
    """(r, r) Gram matrix of the features, or of the rows where these are fewer"""
    right: Floats
    """(r, columns)"""
    back: Floats | None
    """(D, r) from solutions to coefficients; None where they are these"""
    mean: NDArray[np.float64]
    """(D,) weighted mean of the standardised features"""
    targets: NDArray[np.float64]
    """(columns,) weighted mean of the targets"""

    def solve(self, alpha: float) -> Solution:
        """Give the coefficients with the least squared error + alpha * |coef|^2; the intercept is free."""
        solved = _solve(self.matrix, self.right, alpha)
        coef = solved if self.back is None else self.back @ solved
        intercept = self.targets - self.mean @ coef
        return Solution(coef, intercept.astype(np.float32), 1, converged=True)


def moments(X: Floats, y: NDArray[np.int64], k: int) -> Moments:
    """Sum over rows, (m, D), of classes y, (m,), that are centred by the mean of all rows."""
    D = X.shape[1]
    gram, sums = np.zeros((D, D)), np.zeros((k, D))
    for start in range(0, len(X), BLOCK):
        block, classes = X[start : start + BLOCK], y[start : start + BLOCK]
        gram += block.T @ block
        sums += (classes == np.arange(k)[:, None]).astype(np.float32) @ block
    return Moments(len(X), gram, sums, np.bincount(y, minlength=k))


def fold_system(
    training: Moments, spread: NDArray[np.float64], centred: Centred, train: NDArray[np.intp], y: NDArray[np.int64]
) -> tuple[System, Standard]:
    """Give the system of a fold's standardised training rows, without class weights.

    Parameters
    ----------
    training
        Sums over the training rows, taken as a difference.
    spread : (D,) float64
        Mean square of each centred feature over all rows. Where little of it is left after the difference, the
        feature is summed anew from its rows.
    centred
        All rows.
    train
        Positions of the training rows.
    y : (n,) int
        Classes of all rows.

    Returns
    -------
    (System, Standard)
        The equations, and how rows are standardised for their solutions.
    """
    m, k = training.rows, len(training.counts)
    mean = training.sums.sum(axis=0) / m
    gram = training.gram - m * np.outer(mean, mean)
    right = 2 * (training.sums - training.counts[:, None] * mean)  # (k, D); centred rows need no mean of the targets
    scale = np.sqrt(np.maximum(gram.diagonal() / m, 0))
    lost = np.flatnonzero(scale**2 <= CANCELLED * spread)
    if len(lost):
        rows = centred.X[train]
        standard = training_standard(rows[:, lost], centred.shift[lost])
        mean[lost], scale[lost] = standard.mean, standard.scale
        apart = (rows[:, lost] - standard.mean).astype(np.float32)
        gram[:, lost] = rows.T @ apart
        gram[np.ix_(lost, lost)] = apart.T @ apart
        gram[lost] = gram[:, lost].T
        right[:, lost] = 2 * (y[train] == np.arange(k)[:, None]).astype(np.float32) @ apart
    gram /= scale
    gram /= scale[:, None]
    right /= scale
    kept = slice(k == 2, None)  # of two classes, the second
    targets = 2 * training.counts / m - 1
    system = System(
        gram.astype(np.float32), right[kept].T.astype(np.float32), None, np.zeros(len(scale)), targets[kept]
    )
    return system, Standard(mean, scale)


def direct_system(rows: Rows) -> System:
    """Give the system of standardised rows with class weights."""
    k = len(rows.weights)
    targets = np.where(rows.y[:, None] == np.arange(k), 1.0, -1.0)[:, k == 2 :]
    weights = rows.weights[rows.y]
    mean, target = weights @ rows.A / weights.sum(), weights @ targets / weights.sum()
    root = np.sqrt(weights)[:, None].astype(np.float32)
    A = (rows.A - mean.astype(np.float32)) * root
    right = ((targets - target) * root).astype(np.float32)
    if len(A) < A.shape[1]:
        return System(A @ A.T, right, A.T, mean, target)
    return System(A.T @ A, A.T @ right, None, mean, target)


def _solve(matrix: Floats, right: Floats, alpha: float) -> Floats:
    """Solve (matrix + alpha) x = right by Cholesky's factors, or eigenvalues where rounding made one negative."""
    from scipy.linalg import lapack  # type: ignore[import-untyped]  # it ships no types

    shifted = matrix.copy()
    np.fill_diagonal(shifted, matrix.diagonal() + alpha)
    factor, info = lapack.spotrf(shifted.T, lower=1, overwrite_a=1, clean=0)
    if info == 0:
        return np.asarray(lapack.spotrs(factor, right, lower=1)[0])
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    shares = (vectors.T @ right) / (np.maximum(values, 0) + alpha)[:, None]
    return np.asarray(vectors @ shares, dtype=np.float32)
