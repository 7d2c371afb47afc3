"""A linear classifier for the end of a network: a logistic regression on frozen features, as weights and bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .folds import make_folds
from .models import BuildOptions, ClassWeight, model_spec
from .out_of_fold import fit_pipeline
from .search import search_setting

__all__ = ["fit_head"]

FOLDS = 5


def fit_head(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    groups: Sequence[str] | None = None,
    class_weight: ClassWeight = None,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit a logistic regression, its C chosen by cross-validation, to features as they are.

    Parameters
    ----------
    X : (n, D) float
        Features.
    y : (n,) int
        Classes, from 0 to k - 1; each has a row.
    groups
        n groups; images of one group are never on both sides of a fold.
    class_weight
        ``balanced`` or None.
    seed
        Of the folds.

    Returns
    -------
    weight, bias
        (k, D) and (k,) float64: the softmax of ``X @ weight.T + bias`` is the model's probability of each class.

    Raises
    ------
    FoldError
        When there are not two rows of each class.
    """
    spec = model_spec("logistic_regression")
    X, y = np.asarray(X, dtype=np.float32), np.asarray(y, dtype=np.int64)
    options = BuildOptions(seed=seed, class_weight=class_weight)
    names = [str(label) for label in range(int(y.max()) + 1)]
    count = max(2, min(FOLDS, int(np.bincount(y).min())))
    folds = make_folds(y, classes=names, folds=count, seed=seed, groups=groups)
    best = search_setting(spec, X, y, folds=folds, metric="accuracy", options=options).best
    fitted, _ = fit_pipeline(spec, X, y, value=best.point, options=options)
    scale, model = fitted.named_steps["scale"], fitted.named_steps["model"]
    weight = model.coef_ / scale.scale_
    bias = model.intercept_ - weight @ scale.mean_
    if len(names) == 2:  # one difference of two sums: half of it to each
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float64), bias.astype(np.float64)
