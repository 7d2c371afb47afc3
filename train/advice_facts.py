"""What is known of a task before its backbone is fine-tuned: the input of the rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .distance import Distance
from .evidence import LearningPoint

__all__ = ["Facts", "LayerFact", "expected_gain"]

LEVEL = 0.05
"""Largest p value at which one layer is better than the last one."""


@dataclass(frozen=True)
class LayerFact:
    """How one layer does, by cross-validation on the training images."""

    name: str
    """its best column"""
    score: float
    """cross-validated accuracy of the best model on it"""
    n_features: int
    """numbers an image"""
    p_value: float | None
    """McNemar's exact test against the last layer, of the training images out of fold; None for the last one"""


@dataclass(frozen=True)
class Facts:
    """What is known before a fine-tuning; no held-out label has a part in it."""

    n_train: int
    """training images"""
    n_held_out: int
    """held-out images"""
    n_classes: int
    """classes"""
    smallest: tuple[str, int]
    """class with the fewest training images, and how many it has"""
    layers: tuple[LayerFact, ...]
    """in the order of the network"""
    winner: int
    """position of the layer with the best score"""
    majority: float
    """accuracy of always calling the largest class, on the training images"""
    training_score: float
    """accuracy on the training images themselves of the winner fitted to all of them"""
    learning: tuple[LearningPoint, ...]
    """learning curve of the winner"""
    distance: Distance | None
    """how far held-out images lie from the training images, by the winner's features"""

    @property
    def score(self) -> float:
        """Cross-validated accuracy of the best layer."""
        return self.layers[self.winner].score

    @property
    def reach(self) -> float:
        """Part of the way from the majority class's accuracy to 1 that the best layer goes."""
        return (self.score - self.majority) / max(1 - self.majority, 1e-9)

    @property
    def is_early(self) -> bool:
        """Whether a layer before the last is better than that beyond chance."""
        p_value = self.layers[self.winner].p_value
        return p_value is not None and p_value <= LEVEL and self.score > self.layers[-1].score

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        gain = expected_gain(self.learning)
        return {**asdict(self), "score": self.score, "is_early": self.is_early, "gain_of_twice_the_images": gain}


def expected_gain(points: Sequence[LearningPoint]) -> float | None:
    """Give what twice the images would bring: the error falls as a power of their number (Hestness et al. 2017).

    A line through the logarithms of the last three points is carried on; None with fewer points, 0 where it rises.
    """
    last = points[-3:]
    if len(last) < 3:
        return None
    at = [math.log(point.rows) for point in last]
    errors = [math.log(max(1 - point.mean, 1e-6)) for point in last]
    middle = sum(at) / 3
    slope = sum((x - middle) * e for x, e in zip(at, errors, strict=True)) / sum((x - middle) ** 2 for x in at)
    return (1 - points[-1].mean) * (1 - 2 ** min(slope, 0.0))
