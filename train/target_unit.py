"""Targets of a regression in units of their own spread, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TargetUnit", "target_unit"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class TargetUnit:
    """Mean and standard deviation of some targets."""

    mean: float
    """in the unit of the targets"""
    scale: float
    """likewise; above 0"""

    def standardise(self, y: Floats) -> NDArray[np.float64]:
        """Give targets, (n,), less the mean and divided by the scale."""
        return np.asarray((y - self.mean) / self.scale, np.float64)

    def restore(self, predicted: Floats) -> NDArray[np.float64]:
        """Give standardised predictions, of any shape, in the unit of the targets."""
        return np.asarray(predicted, np.float64) * self.scale + self.mean


def target_unit(y: Floats) -> TargetUnit:
    """Measure targets, (n,); those that are all the same keep their unit."""
    return TargetUnit(float(y.mean()), float(y.std()) or 1.0)
