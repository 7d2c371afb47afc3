"""Losses of linear classifiers as functions of their scores, all classes at once.

Each is a convex function of the scores (m, k) of one set of rows. The row weights are in it; the penalty is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Logistic", "Loss", "Softmax", "SquaredHinge"]

Floats = NDArray[np.float32]


class Loss(Protocol):
    """A convex loss, summed over rows."""

    @property
    def columns(self) -> int:
        """Columns of scores: the classes, or 1 for two."""

    @property
    def coupled(self) -> bool:
        """Whether the columns depend on each other; else each is a problem of its own."""

    def slopes(self, scores: Floats) -> Floats:
        """Give the derivative by each score, (m, columns)."""

    def curvature(self, scores: Floats) -> Floats:
        """Give the mean second derivative over the rows of each column, (columns,)."""


@dataclass(frozen=True)
class Softmax:
    """Multinomial log loss."""

    y: NDArray[np.int64]
    """(m,) classes"""
    weights: Floats
    """(m,) row weights"""
    columns: int
    """classes"""
    coupled: bool = True
    """each score counts in every class's probability"""

    def slopes(self, scores: Floats) -> Floats:
        """Give probability minus truth, weighted."""
        slopes = _softmax(scores)
        slopes[np.arange(len(self.y)), self.y] -= 1
        slopes *= self.weights[:, None]
        return slopes

    def curvature(self, scores: Floats) -> Floats:
        """Give the mean of p (1 - p)."""
        p = _softmax(scores)
        return _mean(p * (1 - p), self.weights)


@dataclass(frozen=True)
class Logistic:
    """Binary log loss of one score, positive for the second class."""

    y: NDArray[np.int64]
    """(m,) classes, 0 or 1"""
    weights: Floats
    """(m,) row weights"""
    columns: int = 1
    """one score"""
    coupled: bool = True
    """there is one only"""

    def slopes(self, scores: Floats) -> Floats:
        """Give probability minus truth, weighted."""
        return (_sigmoid(scores) - self.y[:, None].astype(np.float32)) * self.weights[:, None]

    def curvature(self, scores: Floats) -> Floats:
        """Give the mean of p (1 - p)."""
        p = _sigmoid(scores)
        return _mean(p * (1 - p), self.weights)


@dataclass(frozen=True)
class SquaredHinge:
    """Squared hinge loss of each class against the rest: weight * max(0, 1 - t * score) ** 2."""

    targets: Floats
    """(m, columns) 1 for the rows of the class, -1 for others"""
    weights: Floats
    """(m, columns) row weights"""
    coupled: bool = False
    """each class is a problem of its own"""

    @property
    def columns(self) -> int:
        """Columns of scores."""
        return int(self.targets.shape[1])

    def slopes(self, scores: Floats) -> Floats:
        """Give -2 * weight * t * max(0, 1 - t * score)."""
        short = scores * self.targets
        np.subtract(1, short, out=short)
        np.maximum(short, 0, out=short)
        short *= self.targets
        short *= self.weights
        short *= -2
        return short

    def curvature(self, scores: Floats) -> Floats:
        """Give twice the mean weight of the rows within the margin."""
        inside = scores * self.targets < 1
        return np.asarray(2 * (inside * self.weights).mean(axis=0), dtype=np.float32)


def _softmax(scores: Floats) -> Floats:
    p = scores - scores.max(axis=1, keepdims=True)
    np.exp(p, out=p)
    p /= (p @ np.ones(p.shape[1], dtype=np.float32))[:, None]  # much faster than sum where columns are few
    return np.asarray(p)


def _sigmoid(scores: Floats) -> Floats:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * scores))


def _mean(values: Floats, weights: Floats) -> Floats:
    return np.asarray(weights @ values / len(weights), dtype=np.float32)
