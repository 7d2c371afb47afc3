"""What the models of a fold are given: rows after scaler and components that only its training rows fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .models import BuildOptions
from .standardise import Centred, Standard, centre, training_standard
from .steps import Steps

__all__ = ["Inputs", "components_of", "fit_steps", "inputs_of"]

Floats = NDArray[np.float32]
FEW_ROWS = 1_000
"""Below so many rows, and half as many as there are features, components come from the rows, not from a covariance."""
EXACT_WIDTH = 2_048
"""Up to so many features the components are those of the whole covariance, beyond it they are found by sampling."""


@dataclass(frozen=True)
class Inputs:
    """The features of all rows, ready to be divided into folds."""

    centred: Centred
    """features less the mean of all rows"""
    steps: Steps
    """what is fitted inside a fold: scaler and components"""
    seed: int
    """seed of components that are found by sampling"""

    def fold(self, train: NDArray[np.intp], test: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Give the inputs of training and of validation rows, new arrays."""
        rows = self.centred.X[train]
        standard = self.standard(rows)
        A, held_out = standard.apply(rows), standard.apply(self.centred.X[test])
        if not self.steps.pca:
            return A, held_out
        pca = components_of(self.steps.pca, A.shape, self.seed, whiten=self.steps.whiten)
        return pca.fit_transform(A), pca.transform(held_out)

    def standard(self, rows: Floats) -> Standard:
        """Give means and scales of centred training rows; without a scaler, those that leave features as they were."""
        if self.steps.scale == "standard":
            return training_standard(rows, self.centred.shift)
        return Standard(-self.centred.shift, np.ones(rows.shape[1]))


def inputs_of(X: Floats, options: BuildOptions) -> Inputs:
    """Take features (n, D) in, a copy of them."""
    return Inputs(centre(X), options.steps, options.seed)


def fit_steps(X: Floats, options: BuildOptions) -> tuple[list[tuple[str, Any]], Floats]:
    """Fit scaler and components on all rows.

    Returns
    -------
    (list of (name, transformer), (n, d) float32)
        Steps for a pipeline of scikit-learn, and what they make of the rows.
    """
    from sklearn.preprocessing import StandardScaler

    steps: list[tuple[str, Any]] = [("scale", StandardScaler() if options.steps.scale == "standard" else "passthrough")]
    A = X if options.steps.scale == "none" else steps[0][1].fit_transform(X)
    if options.steps.pca:
        pca = components_of(options.steps.pca, A.shape, options.seed, whiten=options.steps.whiten)
        steps.append(("pca", pca))
        A = pca.fit_transform(A)
    return steps, A


def components_of(components: int, shape: tuple[int, int], seed: int, *, whiten: bool = False) -> Any:
    """Give unfitted components: no more than features, and fewer than rows, which vary in no more directions."""
    from sklearn.decomposition import PCA

    n, features = shape
    if n < min(features / 2, FEW_ROWS):
        solver = "full"
    else:
        solver = "covariance_eigh" if features <= EXACT_WIDTH else "randomized"
    kept = min(components, features, n - 1)
    return PCA(kept, whiten=whiten, svd_solver=solver, iterated_power=2, random_state=seed)
