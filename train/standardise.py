"""Standardise rows by the means and scales of a fold's training rows, in float32 without loss.

Features are centred by the mean of all rows once, before anything is summed: a large common offset would cancel the
digits that tell rows apart. That changes nothing of a fold's standardised rows but their rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Centred", "Standard", "centre", "training_standard"]

Floats = NDArray[np.float32]
BLOCK = 1024
"""Rows that are turned into float64 at a time."""


@dataclass(frozen=True)
class Centred:
    """Features less the mean of all rows."""

    X: Floats
    """(n, D)"""
    shift: NDArray[np.float64]
    """(D,) what was taken off"""


@dataclass(frozen=True)
class Standard:
    """Means and scales of a fold's training rows, in centred features."""

    mean: NDArray[np.float64]
    """(D,)"""
    scale: NDArray[np.float64]
    """(D,) standard deviations; 1 for constant features, as in scikit-learn's ``StandardScaler``"""

    def apply(self, rows: Floats) -> Floats:
        """Standardise rows, (m, D), in place, and give them."""
        rows -= self.mean.astype(np.float32)
        rows /= self.scale.astype(np.float32)
        return rows


def centre(X: Floats) -> Centred:
    """Take the mean of all rows, rounded to float32, off a copy."""
    shift = X.mean(axis=0, dtype=np.float64).astype(np.float32)  # near the mean, a difference in float32 is exact
    return Centred(X - shift, shift.astype(np.float64))


def training_standard(rows: Floats, shift: NDArray[np.float64]) -> Standard:
    """Give means and scales of rows, (m, D), that ``shift`` was taken off.

    A feature is constant where its variance is no more than rounding makes it, by the bound of scikit-learn.
    """
    m = len(rows)
    mean = rows.mean(axis=0, dtype=np.float64)
    squares = np.zeros(rows.shape[1])
    for start in range(0, m, BLOCK):
        apart = rows[start : start + BLOCK] - mean
        squares += np.einsum("ij,ij->j", apart, apart)
    variance, eps = squares / m, np.finfo(np.float64).eps
    is_constant = variance <= m * eps * variance + (m * (mean + shift) * eps) ** 2
    return Standard(mean, np.where(is_constant, 1.0, np.sqrt(variance)))
