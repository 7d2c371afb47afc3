"""Minimise a convex loss of linear scores plus a squared penalty, all classes at once, in float32.

Limited-memory BFGS (Nocedal and Wright, Numerical Optimization, 7.2) whose first guess of the inverse Hessian is an
inverse that the caller gives. An iteration is two products with the feature matrix: the scores of a
direction, along which the line search then costs nothing but elementwise work, and the gradient. Classes that do not
depend on each other take steps of their own within the same products.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from .linear_losses import Floats, Loss

__all__ = ["FLATTENED", "TRIALS", "Descent", "StepMemory", "next_length"]

MEMORY = 10
"""Pairs of steps that BFGS remembers."""
FLATTENED = 0.25
"""A step is taken where the slope along it is at most this part of the slope at its start."""
TRIALS = 12
"""Lengths that a line search tries at most."""


class Descent:
    """Coefficients on their way down, with the scores and the gradient that belong to them.

    Parameters
    ----------
    loss
        The loss of the scores A @ theta[:-1] + theta[-1].
    A : (m, D) float32
        Features.
    start : (D + 1, columns) float32 or None
        Coefficients, and intercepts in the last row, to begin with; zeros by default.
    """

    def __init__(self, loss: Loss, A: Floats, start: Floats | None = None) -> None:
        self._loss, self._A = loss, A
        self.theta = np.zeros((A.shape[1] + 1, loss.columns), dtype=np.float32) if start is None else start.copy()
        self._scores = np.zeros((len(A), loss.columns), dtype=np.float32) if start is None else self._forward(start)
        self._gradient = self._backward(loss.slopes(self._scores))  # of the loss alone: the penalty changes

    def curvature(self) -> Floats:
        """Give the loss's mean second derivative of each column, (columns,)."""
        return self._loss.curvature(self._scores)

    def minimise(
        self,
        penalty: Floats,
        *,
        precondition: Callable[[Floats], Floats],
        finished: Callable[[Floats], bool],
        max_iter: int,
    ) -> tuple[int, bool]:
        """Go on to the minimum of the loss + sum of penalty * theta ** 2 / 2.

        Parameters
        ----------
        penalty : (D + 1, 1) float32
            Penalty of each row of theta.
        precondition
            Multiplies a gradient, (D + 1, columns), by a guess of the inverse Hessian, which is positive definite.
        finished
            Says of a gradient, (D + 1, columns), whether it is small enough.
        max_iter
            Most steps.

        Returns
        -------
        (int, bool)
            Steps taken, and whether they were enough.
        """
        coupled = self._loss.coupled
        memory = StepMemory(coupled=coupled)
        gradient = self._gradient + penalty * self.theta
        for iteration in range(max_iter):
            if finished(gradient):
                return iteration, True
            step = -memory.apply(gradient, precondition)
            along = self._forward(step)
            first = _dot(gradient, step, coupled=coupled)
            length, slopes = _line_search(self._loss, self._scores, along, self.theta, step, penalty, first)
            step *= length
            along *= length
            self.theta += step
            self._scores += along
            self._gradient = self._backward(slopes)
            changed = self._gradient + penalty * self.theta
            memory.add(step, changed - gradient)
            gradient = changed
        return max_iter, finished(gradient)

    def _forward(self, theta: Floats) -> Floats:
        scores = self._A @ theta[:-1]  # (m, columns)
        scores += theta[-1]
        return np.asarray(scores)

    def _backward(self, slopes: Floats) -> Floats:
        gradient = np.empty_like(self.theta)
        gradient[:-1] = (slopes.T @ self._A).T  # a fifth faster than A.T @ slopes where columns are few
        gradient[-1] = slopes.sum(axis=0)
        return gradient


def _line_search(
    loss: Loss, scores: Floats, along: Floats, theta: Floats, step: Floats, penalty: Floats, first: Floats
) -> tuple[Floats, Floats]:
    """Give the length of the step, a scalar or (columns,), and the loss's slopes there.

    The function along the line is convex, so that its slope, which begins at ``first``, says on which side the lowest
    point lies: secants between a length on either side close in on it.
    """
    quadratic = _dot(step, penalty * step, coupled=loss.coupled)
    linear = _dot(theta, penalty * step, coupled=loss.coupled)
    low, low_slope = np.zeros_like(first), first
    high, high_slope = np.full_like(first, np.inf), np.ones_like(first)
    length, trial = np.ones_like(first), 0
    while True:
        slopes = loss.slopes(scores + length * along)
        slope = _dot(slopes, along, coupled=loss.coupled) + linear + length * quadratic
        flat = np.abs(slope) <= FLATTENED * np.abs(first)
        trial += 1
        if flat.all() or trial == TRIALS:
            return length, slopes
        is_below = slope < 0
        low, low_slope = np.where(is_below, length, low), np.where(is_below, slope, low_slope)
        high, high_slope = np.where(is_below, high, length), np.where(is_below, high_slope, slope)
        length = np.where(flat, length, next_length(low, low_slope, high, high_slope, first))


def next_length(low: Floats, low_slope: Floats, high: Floats, high_slope: Floats, first: Floats) -> Floats:
    """Give where a secant puts the zero of the slope: between low and high, or beyond low where there is no high."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        beyond = np.clip(low * first / (first - low_slope), 2 * low, 10 * low)
        share = np.clip(low_slope / (low_slope - high_slope), 0.1, 0.9)
        return np.asarray(np.where(np.isinf(high), beyond, low + share * (high - low)), dtype=np.float32)


class StepMemory:
    """The last steps and what they changed in the gradient, as an inverse Hessian."""

    def __init__(self, *, coupled: bool) -> None:
        self._coupled = coupled
        self._pairs: deque[tuple[Floats, Floats, Floats]] = deque(maxlen=MEMORY)

    def add(self, step: Floats, change: Floats) -> None:
        """Remember a step; of columns that did not move, or only by rounding, nothing."""
        product = _dot(step, change, coupled=self._coupled)
        sizes = _dot(step, step, coupled=self._coupled) * _dot(change, change, coupled=self._coupled)
        is_told = product > np.maximum(1e-6 * np.sqrt(sizes), 1e-30)
        self._pairs.append((step, change, np.where(is_told, 1 / np.where(is_told, product, 1), 0).astype(np.float32)))

    def apply(self, gradient: Floats, precondition: Callable[[Floats], Floats]) -> Floats:
        """Multiply the gradient by the inverse Hessian: the two loops of Nocedal and Wright's algorithm 7.4."""
        direction, shares = gradient.copy(), []
        for step, change, inverse in reversed(self._pairs):
            share = inverse * _dot(step, direction, coupled=self._coupled)
            direction -= share * change
            shares.append(share)
        direction = precondition(direction)
        for (step, change, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            direction += (share - inverse * _dot(change, direction, coupled=self._coupled)) * step
        return direction


def _dot(a: Floats, b: Floats, *, coupled: bool) -> Floats:
    """Give the inner product: a scalar, or one a column."""
    if coupled:
        return np.asarray(np.vdot(a, b), dtype=np.float32)
    return np.asarray(np.einsum("ij,ij->j", a, b), dtype=np.float32)
