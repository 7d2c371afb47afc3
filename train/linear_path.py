"""Logistic regression and the linear SVM for every value of C: one descent, from the strongest penalty to the weakest.

Each value starts where the last one ended. The descent is guided by the inverse of the loss's mean curvature times the
features' Gram matrix plus the penalty, which is close to the true Hessian while the penalty rules, so that a value
takes some ten steps where a descent from nothing takes fifty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .linear_descent import minimise
from .linear_losses import Floats, Logistic, Loss, Softmax, SquaredHinge

__all__ = ["Kind", "Rows", "Solution", "solve_path"]

Kind = Literal["logistic", "squared_hinge"]
HINGE_SLACK = 30.0
"""How much larger a rare class's gradient may stay than LinearSVC's, which lets it be ``tol`` times the class's share
of its first value: the objective is then within 1e-5 of the least. Never above ``tol`` times that value."""
DAMPINGS = (1e-6, 1e-4, 1e-2)
"""Parts of the mean eigenvalue that are added to a Gram matrix until rounding leaves it positive definite."""


@dataclass(frozen=True)
class Rows:
    """Rows to learn from."""

    A: Floats
    """(m, D) standardised features"""
    y: NDArray[np.int64]
    """(m,) classes, 0 to k - 1"""
    weights: NDArray[np.float64]
    """(k,) weight of each class"""


@dataclass(frozen=True)
class Solution:
    """A linear model of standardised features."""

    coef: Floats
    """(D, columns): a column a class, or one for two classes, positive for the second"""
    intercept: Floats
    """(columns,)"""
    iterations: int
    """steps of the solver"""
    converged: bool
    """false where they were not enough"""

    def scores(self, A: Floats) -> Floats:
        """Give (m, columns) scores of standardised features (m, D)."""
        return np.asarray(A @ self.coef + self.intercept)


def solve_path(
    rows: Rows, kind: Kind, values: Sequence[float], *, tol: float, max_iter: int, start: Solution | None = None
) -> Iterator[tuple[int, Solution]]:
    """Solve for each value of C, the strongest penalty first.

    Logistic regression minimises C * sum of weight * log loss + |coef|^2 / 2 and is done, as ``LogisticRegression``
    is, where no derivative of the mean loss is above ``tol``. The SVM minimises C * sum of weight * squared hinge +
    |coef|^2 / 2 + intercept^2 / 2 for each class and is done where the norm of each gradient has fallen as far as
    ``LinearSVC`` wants, but for ``HINGE_SLACK``. Its weights are LinearSVC's too: of several classes, those of the
    rest count 1.

    Parameters
    ----------
    rows
        The rows; with fewer rows than features the descent goes on in their own space, which holds every solution.
    kind
        Loss and penalty.
    values
        Values of C.
    tol
        Tolerance, as scikit-learn's estimator has it.
    max_iter
        Most steps for a value.
    start
        Where to begin.

    Yields
    ------
    (position in ``values``, Solution)
    """
    m, D = rows.A.shape
    if m < D:
        basis, triangle = np.linalg.qr(rows.A.T)  # A.T = basis (D, m) @ triangle (m, m)
        A = _with_ones(triangle.T)
    else:
        basis, A = None, _with_ones(rows.A)
    loss = _loss(kind, rows)
    theta = np.zeros((A.shape[1], loss.columns), dtype=np.float32)
    if start is not None:
        theta[:-1] = start.coef if basis is None else basis.T @ start.coef
        theta[-1] = start.intercept
    gram = A.T @ A
    finished = _finish(kind, rows, loss, A, basis, tol)
    for i in np.argsort(values, kind="stable").tolist():
        penalty = np.full((len(theta), 1), 1 / values[i], dtype=np.float32)
        if kind == "logistic":
            penalty[-1] = 0
        guide = _Preconditioner(gram, penalty, loss, partial(np.matmul, A, theta))
        found = minimise(loss, A, penalty, theta, precondition=guide, finished=finished, max_iter=max_iter)
        theta = found.theta
        coef = theta[:-1] if basis is None else basis @ theta[:-1]
        yield i, Solution(coef, theta[-1], found.iterations, found.converged)


@dataclass
class _Preconditioner:
    """The inverse of curvature * Gram + penalty, made when it is first asked for: many values need no step."""

    gram: Floats
    penalty: Floats
    loss: Loss
    scores: Callable[[], Floats]
    inverse: Floats | None = None

    def __call__(self, gradient: Floats) -> Floats:
        if self.inverse is None:
            curvature = self.loss.curvature(self.scores()).mean()
            self.inverse = _inverse(self.gram * curvature, self.penalty[:, 0])
        return np.asarray(self.inverse @ gradient)


def _inverse(gram: Floats, penalty: Floats) -> Floats:
    """Invert gram + diag(penalty) by Cholesky's factors; the Gram matrix, (D, D), is overwritten."""
    from scipy.linalg import lapack  # type: ignore[import-untyped]  # it ships no types

    diagonal = gram.diagonal() + penalty
    for damping in DAMPINGS:
        np.fill_diagonal(gram, diagonal + damping * diagonal.mean())
        factor, info = lapack.spotrf(gram, lower=1, clean=0)
        if info == 0:
            break
    assert info == 0, "a Gram matrix with a hundredth of its mean eigenvalue added is positive definite"
    inverse, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    inverse = np.tril(inverse)
    return np.asarray(inverse + np.tril(inverse, -1).T)


def _finish(
    kind: Kind, rows: Rows, loss: Loss, A: Floats, basis: Floats | None, tol: float
) -> Callable[[Floats], bool]:
    if kind == "logistic":
        limit = tol * float(rows.weights[rows.y].sum())

        def largest(gradient: Floats) -> float:
            inner = gradient[:-1] if basis is None else basis @ gradient[:-1]
            return float(max(np.abs(inner).max(), np.abs(gradient[-1]).max()))

        return lambda gradient: largest(gradient) <= limit
    first = A.T @ loss.slopes(np.zeros((len(A), loss.columns), dtype=np.float32))
    positive = np.bincount(rows.y, minlength=len(rows.weights))[-loss.columns :]
    rare = np.minimum(positive, len(A) - positive) / len(A)
    limits = tol * np.minimum(HINGE_SLACK * rare, 1) * np.linalg.norm(first, axis=0)
    return lambda gradient: bool((np.linalg.norm(gradient, axis=0) <= limits).all())


def _loss(kind: Kind, rows: Rows) -> Loss:
    y, k = rows.y, len(rows.weights)
    by_row = rows.weights[y].astype(np.float32)
    if kind == "logistic":
        return Logistic(y, by_row) if k == 2 else Softmax(y, by_row, k)
    if k == 2:
        return SquaredHinge((2 * y - 1).astype(np.float32)[:, None], by_row[:, None])
    is_class = y[:, None] == np.arange(k)
    weights = np.where(is_class, rows.weights, 1).astype(np.float32)
    return SquaredHinge(np.where(is_class, 1, -1).astype(np.float32), weights)


def _with_ones(A: Floats) -> Floats:
    """Add the intercept's column."""
    return np.hstack((A, np.ones((len(A), 1), dtype=np.float32)))
