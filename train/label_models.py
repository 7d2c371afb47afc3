"""One fitted two-class model a label, as one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .metrics import as_probabilities

__all__ = ["LabelModels"]


@dataclass(frozen=True)
class LabelModels:
    """Fitted classifiers that each tell whether a row has one label."""

    models: tuple[Any, ...]
    """classifiers over 0 and 1 with ``predict_proba``, in the order of the labels"""

    def predict_proba(self, X: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Give the probability of each label, (n, L), for features (n, D)."""
        return np.column_stack([as_probabilities(model.predict_proba(X))[:, 1] for model in self.models])
