"""Scores of predicted numbers on held-out rows, and of the training mean beside them.

The tests hold every number against scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import UnknownModelError
from .metrics import NumberMetric

__all__ = [
    "REGRESSION_METRICS",
    "RegressionEvaluation",
    "WeightedErrors",
    "error_score",
    "evaluate_numbers",
]

Floats = NDArray[np.floating[Any]]

REGRESSION_METRICS: tuple[NumberMetric, ...] = get_args(NumberMetric)
"""What a regressor may be chosen by."""


@dataclass(frozen=True)
class RegressionEvaluation:
    """All scores of one regressor on one set of rows."""

    n: int
    """rows"""
    rmse: float
    """root of the mean squared error, in the unit of the target"""
    mae: float
    """mean absolute error, in the unit of the target"""
    r2: float | None
    """part of the rows' variance that is explained (coefficient of determination); None when undefined"""
    r2_reason: str
    """why it is undefined, else empty"""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as plain JSON values."""
        return dict(vars(self))


def evaluate_numbers(y: Floats, predicted: Floats) -> RegressionEvaluation:
    """Score predicted numbers.

    Parameters
    ----------
    y : (n,) float
        True numbers, n >= 1.
    predicted : (n,) float
        Predicted ones, in the same unit.
    """
    varies = bool((y != y[0]).any())
    return RegressionEvaluation(
        n=len(y),
        rmse=-error_score("rmse", y, predicted),
        mae=-error_score("mae", y, predicted),
        r2=error_score("r2", y, predicted) if varies else None,
        r2_reason="" if varies else f"every held-out row has the number {y[0]:g}",
    )


def error_score(metric: str, y: Floats, predicted: Floats) -> float:
    """Give one score, larger is better (errors negated).

    Of rows that are all the same number, R2 is 1 where every prediction is right and 0 otherwise, as scikit-learn has
    it.

    Raises
    ------
    UnknownModelError
        When there is no metric of this name.
    """
    apart = y - predicted
    if metric == "rmse":
        return -float(np.sqrt(np.mean(apart**2)))
    if metric == "mae":
        return -float(np.abs(apart).mean())
    if metric != "r2":
        raise UnknownModelError("metric", metric, REGRESSION_METRICS)
    left, whole = float(apart @ apart), float(((y - y.mean()) ** 2).sum())
    return 1 - left / whole if whole else float(left == 0)


class WeightedErrors:
    """The scores of some predictions under any weights of their rows."""

    def __init__(self, y: Floats, predicted: Floats) -> None:
        apart = np.asarray(y, np.float64) - predicted
        centred = y - y.mean()  # before squares are summed: a large common offset would cancel digits
        self.work = len(y)
        self._sums = np.column_stack((apart**2, np.abs(apart), centred, centred**2))  # (n, 4)

    def of(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Give each score for each row of weights, (draws, n); NaN where it is undefined."""
        sums = weights.astype(np.float64) @ self._sums
        squares, absolute, y, y_squares = (sums / weights.sum(1, dtype=np.float64)[:, None]).T
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = y_squares - y**2
            variance = np.where(variance > 1e-12 * y_squares, variance, np.nan)
            return {"rmse": np.sqrt(squares), "mae": absolute, "r2": 1 - squares / variance}
