"""Probabilities for classifiers that give scores only: one temperature, fitted on out-of-fold scores.

A temperature keeps the order of the scores, so that the called class is the one with the largest probability
(Guo et al., ICML 2017). It is honest only on scores of rows, and of groups, that the model was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibrated", "fit_temperature", "scaled_softmax"]

LOG_BOUNDS = (-10.0, 10.0)
"""Range of the inverse temperature's natural logarithm, as in scikit-learn: scores that separate the rows wholly
would have none."""

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
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # it ships no types

    logits = _logits(scores)

    def loss(log_beta: float) -> float:
        log_proba = _log_softmax(np.exp(log_beta) * logits)
        return -float(log_proba[np.arange(len(y)), y].mean())

    found = minimize_scalar(loss, bounds=LOG_BOUNDS, method="bounded", options={"xatol": 1e-12})
    return float(np.exp(found.x))


def scaled_softmax(scores: Floats, inverse_temperature: float) -> Floats:
    """Give probabilities, (n, k), of scores (n,) or (n, k)."""
    return np.asarray(np.exp(_log_softmax(inverse_temperature * _logits(scores))))


def _logits(scores: Floats) -> Floats:
    """Give one logit a class, (n, k): two classes share the margin of the second."""
    scores = np.asarray(scores, dtype=np.float64)  # float32 has no room for weak scores beside 1
    return np.column_stack((-scores, scores)) if scores.ndim == 1 else scores


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
