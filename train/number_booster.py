"""XGBoost on numbers in any unit: they are learned in units of their own spread, which the booster remembers."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from xgboost import XGBRegressor

from .target_unit import TargetUnit, target_unit

__all__ = ["NumberBooster", "unit_of"]

MEAN, SCALE = "target_mean", "target_scale"
"""Attributes of the booster, kept in its JSON."""


class NumberBooster(XGBRegressor):
    """``XGBRegressor`` on standardised targets.

    XGBoost holds targets and leaves as float32 and has thresholds in their unit: of brightness in millionths it learned
    nothing, and of times in minutes since 1970 neither.
    """

    def fit(self, X: ArrayLike, y: ArrayLike, **options: Any) -> Self:
        """Learn numbers, (n,), from features, (n, D)."""
        numbers = np.asarray(y, dtype=np.float64)
        unit = target_unit(numbers)
        super().fit(X, unit.standardise(numbers), **options)
        self.get_booster().set_attr(**{MEAN: repr(unit.mean), SCALE: repr(unit.scale)})
        return self

    def predict(self, X: ArrayLike, **options: Any) -> NDArray[np.float64]:
        """Give the numbers, (n,), in the unit of the targets."""
        return unit_of(self.get_booster()).restore(super().predict(X, **options))


def unit_of(booster: Any) -> TargetUnit:
    """Give the unit that a booster's numbers are in; a booster that remembers none gives them as they are.

    Raises
    ------
    ValueError
        When what it remembers is no unit.
    """
    mean, scale = (booster.attr(name) for name in (MEAN, SCALE))
    if mean is None and scale is None:
        return TargetUnit(0.0, 1.0)
    unit = TargetUnit(float(mean), float(scale))
    if not (np.isfinite(unit.mean) and 0 < unit.scale < np.inf):
        raise ValueError(f"numbers in units of {scale} from {mean}")
    return unit
