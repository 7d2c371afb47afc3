"""Probabilities for classifiers that give scores only: one temperature, fitted on out-of-fold scores.

A temperature keeps the order of the scores, so that the called class is the one with the largest probability
(Guo et al., ICML 2017). It is honest only on scores of rows, and of groups, that the model was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibrated", "fit_temperature", "log_softmax", "scaled_softmax"]

LOG_BOUNDS = (-10.0, 10.0)
"""Range of the inverse temperature's natural logarithm, as in scikit-learn: scores that separate the rows wholly
would have none."""

FLAT = 1e-10
"""Derivative of the loss by that logarithm at which the search for it ends."""
STEPS = 100
"""Most steps of the search; halving the range alone needs 35."""
FLOOR = 1e-30
"""Smallest mean size of scores that the search begins from."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibrated:
    """A fitted classifier with the temperature that turns its scores into probabilities."""

    model: Any
    """fitted classifier with ``decision_function``"""
    inverse_temperature: float
    """what its scores are multiplied by"""

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> Floats:
        """Give the probability of each class, (n, k), for features (n, D)."""
        return scaled_softmax(self.model.decision_function(X), self.inverse_temperature)


def fit_temperature(scores: Floats, y: NDArray[np.int64]) -> float:
    """Give the inverse temperature with the least log loss.

    Parameters
    ----------
    scores : (n,) or (n, k) float
        Out-of-fold scores; with two classes, those of the second.
    y : (n,) int
        Classes, 0 to k - 1.
    """
    logits = _logits(scores)
    true = logits[np.arange(len(y)), y].mean()
    low, high = LOG_BOUNDS
    log_beta = np.clip(-np.log(max(float(np.abs(logits).mean()), FLOOR)), low, high)
    for _ in range(STEPS):
        beta = np.exp(log_beta)
        proba = np.exp(log_softmax(beta * logits))
        mean = (proba * logits).sum(axis=1)  # (n,)
        slope = mean.mean() - true  # of the loss, by beta; the loss is convex in it
        bend = max((proba * logits**2).sum(axis=1).mean() - (mean**2).mean(), 0.0)
        if abs(slope) * beta < FLAT:  # also where scores are all right: a higher one would only be surer of new rows
            break
        low, high = (low, log_beta) if slope > 0 else (log_beta, high)
        step = np.log1p(-slope / (bend * beta)) if slope < bend * beta else -np.inf  # Newton's, of beta
        moved = log_beta + step
        if not low < moved < high:
            moved = (low + high) / 2
        log_beta = moved
    return float(np.exp(log_beta))


def scaled_softmax(scores: Floats, inverse_temperature: float) -> Floats:
    """Give probabilities, (n, k), of scores (n,) or (n, k)."""
    return np.asarray(np.exp(log_softmax(inverse_temperature * _logits(scores))))


def _logits(scores: Floats) -> Floats:
    """Give one logit a class, (n, k): two classes share the margin of the second."""
    scores = np.asarray(scores, dtype=np.float64)  # float32 has no room for weak scores beside 1
    return np.column_stack((-scores, scores)) if scores.ndim == 1 else scores


def log_softmax(logits: Floats) -> Floats:
    """Give the logarithms of the probabilities, (n, k), whose logits these are."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
