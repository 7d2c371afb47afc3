"""Probabilities from scores by one curve a class, sigmoid or isotonic, fitted on out-of-fold scores.

Each class's score against the rest becomes a probability of its own, and the row is then made to sum to 1 (Zadrozny
and Elkan, KDD 2002). Unlike a temperature this may change which class is the most probable one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .calibration import log_softmax

__all__ = ["CurveMethod", "Curves", "SigmoidCurve", "StepCurve", "fit_curves", "scores_of"]

CurveMethod = Literal["sigmoid", "isotonic"]
Floats = NDArray[np.float64]
STEPS = 100
"""Most Newton steps of a sigmoid's fit; ten are usual."""
FLAT = 1e-9
"""Derivative of the mean loss at which it ends."""


@dataclass(frozen=True)
class SigmoidCurve:
    """1 / (1 + exp(-(slope * score + offset)))."""

    slope: float
    """by how much a unit of the score moves the logit"""
    offset: float
    """logit at score 0"""

    def __call__(self, scores: Floats) -> Floats:
        """Give the probabilities of scores, (n,)."""
        return np.asarray(1 / (1 + np.exp(-np.clip(self.slope * scores + self.offset, -700, 700))))


@dataclass(frozen=True)
class StepCurve:
    """A rising curve through points, straight between them and level beyond."""

    scores: Floats
    """(m,) rising"""
    proba: Floats
    """(m,) never falling"""

    def __call__(self, scores: Floats) -> Floats:
        """Give the probabilities of scores, (n,)."""
        return np.asarray(np.interp(scores, self.scores, self.proba))


@dataclass(frozen=True)
class Curves:
    """A curve for each class; of two classes, one for the second."""

    curves: list[Any]
    """k of them, or one"""
    are_logits: bool
    """whether the scores are logits of k probabilities, which are told apart only up to a number a row"""

    def proba(self, scores: NDArray[np.floating[Any]]) -> Floats:
        """Give the probability of each class, (n, k), of scores (n, k), or (n, 1) for two classes."""
        scores = _absolute(scores, self.are_logits)
        if len(self.curves) == 1:
            second = self.curves[0](scores[:, 0])
            return np.column_stack((1 - second, second))
        found = np.column_stack([curve(scores[:, i]) for i, curve in enumerate(self.curves)])
        sums = found.sum(axis=1, keepdims=True)
        return np.where(sums > 0, found / np.where(sums > 0, sums, 1), 1 / found.shape[1])


def fit_curves(
    method: CurveMethod,
    scores: NDArray[np.floating[Any]],
    y: NDArray[np.int64],
    *,
    are_logits: bool,
    weights: Floats | None = None,
) -> Curves:
    """Fit a curve to each class.

    Parameters
    ----------
    method
        ``sigmoid`` (Platt's, with his targets away from 0 and 1) or ``isotonic``, which wants some hundred rows a
        class.
    scores : (n, k) or (n, 1) float
        Out-of-fold scores; with two classes, those of the second.
    y : (n,) int
        Classes, 0 to k - 1.
    are_logits
        Whether the scores are logits of the model's own probabilities.
    weights : (n,) float
        How much each row counts; all alike by default. A model of weighted classes needs them, else the curves would
        put its calls back to the shares of the rows.
    """
    counts = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    absolute = _absolute(scores, are_logits)
    classes = [1] if absolute.shape[1] == 1 else range(absolute.shape[1])
    fit = _fit_sigmoid if method == "sigmoid" else _fit_isotonic
    return Curves(
        [fit(column, y == label, counts) for column, label in zip(absolute.T, classes, strict=True)], are_logits
    )


def scores_of(model: Any, A: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Give a fitted classifier's scores, or the logits of its probabilities: (n, k), or (n, 1) for two classes."""
    if hasattr(model, "decision_function"):
        scores = np.asarray(model.decision_function(A))
        return scores[:, None] if scores.ndim == 1 else scores
    proba = np.asarray(model.predict_proba(A), dtype=np.float64)
    logits = np.log(np.maximum(proba, np.finfo(np.float32).tiny))
    return logits[:, 1:] - logits[:, :1] if logits.shape[1] == 2 else logits


def _absolute(scores: NDArray[np.floating[Any]], are_logits: bool) -> Floats:
    absolute = np.asarray(scores, dtype=np.float64)
    return log_softmax(absolute) if are_logits and absolute.shape[1] > 1 else absolute


def _fit_sigmoid(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> SigmoidCurve:
    """Minimise the log loss against Platt's targets, by Newton steps on standardised scores."""
    positive, n = float(weights[is_class].sum()), float(weights.sum())
    targets = np.where(is_class, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
    share = weights / n
    middle, spread = scores.mean(), scores.std() or 1.0
    design = np.column_stack(((scores - middle) / spread, np.ones(len(scores))))
    theta = np.array([0.0, np.log((positive + 1) / (n - positive + 1))])

    def loss(theta: Floats) -> float:
        logits = design @ theta
        return float(share @ (np.logaddexp(0, logits) - targets * logits))

    for _ in range(STEPS):
        p = SigmoidCurve(1.0, 0.0)(design @ theta)
        gradient = design.T @ (share * (p - targets))
        if np.abs(gradient).max() < FLAT:
            break
        hessian = (design * (share * p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-10 and loss(theta - size * step) > loss(theta):
            size /= 2
        theta = theta - size * step
    slope = theta[0] / spread
    return SigmoidCurve(float(slope), float(theta[1] - slope * middle))


def _fit_isotonic(scores: Floats, is_class: NDArray[np.bool_], weights: Floats) -> StepCurve:
    from sklearn.isotonic import IsotonicRegression

    found = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, is_class.astype(np.float64), weights)
    return StepCurve(np.asarray(found.X_thresholds_), np.asarray(found.y_thresholds_))
