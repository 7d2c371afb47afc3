"""How far new rows lie from the training rows: the share that is farther than training rows are from each other.

Distances are Euclidean, of features that were standardised by the training rows: with cosines a row that lies far out
in a usual direction would seem near. For each training row the nearest
other one is found, of another group where rows have groups; 95 % of these distances are below a limit. Were new rows
drawn as the training rows, 5 % of them would be farther than that from their nearest training row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["USUAL", "Distance", "measure_distance"]

Floats = NDArray[np.float32]

USUAL = 0.05
"""Share of rows that is far by the meaning of the limit."""
MOST_ROWS = 2_000
"""Rows of each side that are looked at, evenly spaced: some seconds at 100,000 training rows."""
_AT_A_TIME = 1 << 24
"""Distances held at once."""


@dataclass(frozen=True)
class Distance:
    """How far new rows lie from the training rows."""

    share: float
    """part of them that lies farther from its nearest training row than 95 % of the training rows from theirs"""
    p_value: float
    """chance of so large a share, or a larger one, where new rows are like the training rows (binomial, one-sided)"""
    looked_at: int
    """new rows that were looked at"""
    median: float
    """median distance of these"""
    median_training: float
    """median distance of the training rows"""


def measure_distance(X: Floats, new: Floats, *, groups: Sequence[str] | None = None) -> Distance | None:
    """Hold new rows against training rows; no label is looked at.

    Parameters
    ----------
    X : (m, D) float32
        Features of the training rows.
    new : (n, D) float32
        Features of the new rows.
    groups
        Group of each training row: its nearest row is one of another group.

    Returns
    -------
    Distance or None
        None where there is no new row, or not two training rows that may be held against each other. Memory: copies of
        the features, and 64 MiB.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # it ships no types

    names = np.arange(len(X)).astype(str) if groups is None else np.asarray(groups, dtype=object).astype(str)
    kinds, codes = np.unique(names, return_inverse=True)
    if len(kinds) < 2 or not len(new):
        return None
    mean, std = X.mean(0), X.std(0)
    training, other = ((rows - mean) / np.where(std > 0, std, 1) for rows in (X, new))
    some, chosen = _spread(len(X)), _spread(len(new))
    among = _nearest(training[some], training, codes[some], codes)
    beyond = _nearest(other[chosen], training, np.full(len(chosen), -1), codes)
    far = int((beyond > np.quantile(among, 1 - USUAL)).sum())
    return Distance(
        share=far / len(beyond),
        p_value=float(binomtest(far, len(beyond), USUAL, alternative="greater").pvalue),
        looked_at=len(beyond),
        median=float(np.median(beyond)),
        median_training=float(np.median(among)),
    )


def _spread(n: int) -> NDArray[np.intp]:
    """Give all positions, or so many evenly spaced ones."""
    return np.linspace(0, n - 1, min(n, MOST_ROWS)).astype(np.intp)


def _nearest(rows: Floats, training: Floats, own: NDArray[np.intp], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Give the distance of each row to its nearest training row of another group."""
    found = np.empty(len(rows))
    lengths = np.einsum("ij,ij->i", training, training)  # (m,)
    block = max(1, _AT_A_TIME // len(training))
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        squares = lengths - 2 * (part @ training.T)  # (b, m), less the row's own length
        squares[own[start : start + block, None] == codes] = np.inf
        nearest = squares.min(axis=1) + np.einsum("ij,ij->i", part, part)
        found[start : start + block] = np.sqrt(np.maximum(nearest, 0))
    return found
