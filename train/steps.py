"""The preprocessing before a model, in a fixed order: signed square root, L2 norm, scaler, principal components.

The first two look at one image at a time. Scaler and components are fitted on training rows alone, inside each fold.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import TrainError

__all__ = ["STANDARD", "Scale", "Steps", "every_combination"]

Scale = Literal["standard", "none"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Steps:
    """What is done to features before a model sees them."""

    signed_sqrt: bool = False
    """whether each feature becomes sign(x) * sqrt(|x|)"""
    l2_norm: bool = False
    """whether each image's features are divided by their Euclidean length"""
    scale: Scale = "standard"
    """``standard``: zero mean and unit variance over the training rows; ``none``"""
    pca: int = 0
    """principal components kept; 0 for all features as they are, more than there are for all components"""
    whiten: bool = False
    """whether the components are scaled to unit variance"""

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise TrainError(f"steps: scale must be {' or '.join(get_args(Scale))}, found {self.scale!r}")
        if not isinstance(self.pca, int) or isinstance(self.pca, bool) or self.pca < 0:
            raise TrainError(f"steps: pca must be a whole number of components, or 0, found {self.pca!r}")
        if self.whiten and not self.pca:
            raise TrainError("steps: whiten needs principal components; set pca, or leave it out")

    def __str__(self) -> str:
        """Give the steps in short: ``sqrt, L2, standard, PCA 256 whitened``."""
        parts = [
            *(["sqrt"] if self.signed_sqrt else []),
            *(["L2"] if self.l2_norm else []),
            *(["standard"] if self.scale == "standard" else []),
            *([f"PCA {self.pca}{' whitened' if self.whiten else ''}"] if self.pca else []),
        ]
        return ", ".join(parts) or "none"

    def by_row(self, X: Floats) -> Floats:
        """Do what looks at one image at a time: (n, D) float32, a new array where anything is done."""
        for _, step in self.row_steps():
            X = step.fit_transform(X)
        return X

    def row_steps(self) -> list[tuple[str, Any]]:
        """Give the steps that look at one image at a time, for a pipeline of scikit-learn."""
        from sklearn.preprocessing import Normalizer

        from .transforms import SignedSquareRoot

        return [
            *([("sqrt", SignedSquareRoot())] if self.signed_sqrt else []),
            *([("norm", Normalizer())] if self.l2_norm else []),
        ]

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return dict(vars(self))


STANDARD = Steps()
"""The standard scaler alone."""


def every_combination(
    *,
    signed_sqrt: Iterable[bool] = (False,),
    l2_norm: Iterable[bool] = (False,),
    scale: Iterable[Scale] = ("standard",),
    pca: Iterable[int] = (0,),
    whiten: Iterable[bool] = (False,),
) -> tuple[Steps, ...]:
    """Give every combination of these, each once, the first values first; without components nothing is whitened.

    Examples
    --------
    >>> [str(steps) for steps in every_combination(l2_norm=[False, True], pca=[0, 64], whiten=[True])]
    ['standard', 'standard, PCA 64 whitened', 'L2, standard', 'L2, standard, PCA 64 whitened']
    """
    combinations = product(signed_sqrt, l2_norm, scale, pca, whiten)
    return tuple(dict.fromkeys(Steps(a, b, c, d, e and d > 0) for a, b, c, d, e in combinations))
