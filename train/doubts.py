"""Training images whose labels or numbers their features speak against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Doubt", "Outlier", "Suspect", "find_outliers", "find_suspects"]

_FAR = 6.0
"""Deviations from which a number is doubtful: residuals have heavier tails than normal numbers (colours of 132 flowers,
squeezenet1_1: at 4, five sound ones were doubtful)."""
_NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""


@dataclass(frozen=True)
class Suspect:
    """A training image whose label its features speak against."""

    id: str
    """its id"""
    label: str
    """what it is called"""
    likely: str
    """what models that never saw it call it"""
    p_label: float
    """probability that they give to its label"""
    p_likely: float
    """and to the likely one"""

    def __str__(self) -> str:
        """Give both labels."""
        return f"{self.id}: {self.label}, or {self.likely}?"


@dataclass(frozen=True)
class Outlier:
    """A training image whose number its features speak against."""

    id: str
    """its id"""
    value: float
    """its number"""
    predicted: float
    """what models that never saw it predict"""
    deviations: float
    """how far apart the two are, in robust standard deviations of all such distances"""

    def __str__(self) -> str:
        """Give both numbers."""
        return f"{self.id}: {self.value:g}, or {self.predicted:.4g}?"


Doubt = Suspect | Outlier


def find_suspects(
    proba: NDArray[np.floating[Any]], y: NDArray[np.int64], ids: Sequence[str], classes: Sequence[str]
) -> tuple[Suspect, ...]:
    """Find labels that are likely wrong, by confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

    A row counts as one of class j where its probability of j reaches the mean that rows labelled j have of it. A row
    that counts as another class than its label, and is more likely that, is a suspect.

    Parameters
    ----------
    proba : (m, k) float
        Out-of-fold probabilities.
    y : (m,) int
        Labels; every class has a row.
    ids, classes
        Names of rows and classes.

    Returns
    -------
    tuple of Suspect
        Largest difference of the two probabilities first.
    """
    own = proba[np.arange(len(y)), y]
    typical = np.bincount(y, weights=own, minlength=len(classes)) / np.bincount(y, minlength=len(classes))  # (k,)
    counted = np.where(proba >= typical, proba, -1.0)
    likely = counted.argmax(1)
    wrong = (counted.max(1) > own) & (likely != y)
    order = sorted(np.flatnonzero(wrong).tolist(), key=lambda i: float(own[i] - proba[i, likely[i]]))
    return tuple(
        Suspect(ids[i], classes[y[i]], classes[likely[i]], float(own[i]), float(proba[i, likely[i]])) for i in order
    )


def find_outliers(
    predicted: NDArray[np.floating[Any]], y: NDArray[np.floating[Any]], ids: Sequence[str]
) -> tuple[Outlier, ...]:
    """Find numbers that lie six robust standard deviations or more from their out-of-fold predictions.

    Parameters
    ----------
    predicted, y : (m,) float
        Predictions by models that never saw the row, and the numbers.
    ids
        Names of the rows.

    Returns
    -------
    tuple of Outlier
        Farthest first. Deviations are measured by the median absolute one, which outliers do not widen.
    """
    apart = y - predicted
    middle = float(np.median(apart))
    spread = _NORMAL_MAD * float(np.median(np.abs(apart - middle)))
    if spread == 0:
        return ()
    far = np.abs(apart - middle) / spread
    order = sorted(np.flatnonzero(far >= _FAR).tolist(), key=lambda i: -float(far[i]))
    return tuple(Outlier(ids[i], float(y[i]), float(predicted[i]), float(far[i])) for i in order)
