"""Transformers of our own, as scikit-learn has them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["SignedSquareRoot"]


class SignedSquareRoot(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # untyped bases
    """Turn each feature x into sign(x) * sqrt(|x|), which tames bursts of pooled activations (Perronnin et al., 2010).

    It learns nothing but the number of features, ``n_features_in_``.
    """

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Look at the shape of X, (n, D)."""
        validate_data(self, X, dtype=[np.float32, np.float64])
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.floating[Any]]:
        """Give a new array, (n, D), float32 or float64 as X is."""
        check_is_fitted(self, "n_features_in_")
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        return np.asarray(np.copysign(np.sqrt(np.abs(X)), X))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")
