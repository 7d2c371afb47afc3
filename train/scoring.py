"""From out-of-fold scores to one number a fold, and to probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import fit_temperature, scaled_softmax
from .calibration_curves import CurveMethod, Curves, fit_curves
from .folds import Fold
from .metrics import ClassMetric, Metric, metric_score
from .models import BuildOptions, ModelSpec
from .tasks import task_of

__all__ = ["as_decided", "class_scores", "curves_by", "logits_of", "probabilities_by", "score_by_fold"]

Probabilities = Callable[[NDArray[Any]], NDArray[np.float64]]


def score_by_fold(
    spec: ModelSpec,
    scores: NDArray[Any],
    y: NDArray[Any],
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
) -> NDArray[np.float64]:
    """Score one value on each fold, (folds,), larger is better, as the model's task does."""
    return task_of(spec.task).fold_scores(spec, scores, y, folds, metric, options)


def class_scores(
    spec: ModelSpec,
    scores: NDArray[np.float32],
    y: NDArray[np.int64],
    folds: Sequence[Fold],
    metric: ClassMetric,
    options: BuildOptions,
) -> NDArray[np.float64]:
    """Score a classifier's scores on each fold.

    What turns scores into probabilities for a fold is fitted on the out-of-fold scores of the other folds.
    """
    if options.calibration is None and metric != "log_loss":
        called = scores.argmax(axis=1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
        return np.array([metric_score(metric, y[test], called[test], None) for _, test in folds])
    found = []
    for train, test in folds:
        proba = probabilities_by(spec, scores[train], y[train], options)(scores[test])
        found.append(metric_score(metric, y[test], proba.argmax(axis=1), proba))
    return np.array(found)


def probabilities_by(
    spec: ModelSpec, scores: NDArray[np.float32], y: NDArray[np.int64], options: BuildOptions
) -> Probabilities:
    """Fit what turns a model's scores into probabilities, on out-of-fold scores (n, k), or (n, 1) for two classes."""
    if options.calibration is not None:
        return curves_by(spec, scores, y, options.calibration, options).proba
    if spec.has_probabilities:
        return lambda scores: scaled_softmax(logits_of(scores), 1.0)
    temperature = fit_temperature(as_decided(scores), y)
    return lambda scores: scaled_softmax(as_decided(scores), temperature)


def curves_by(
    spec: ModelSpec, scores: NDArray[np.floating[Any]], y: NDArray[np.int64], method: CurveMethod, options: BuildOptions
) -> Curves:
    """Fit curves to out-of-fold scores, on rows that count as they do for the model."""
    weights = None
    if options.class_weight is not None:
        from sklearn.utils.class_weight import compute_sample_weight

        weights = compute_sample_weight(options.class_weight, y)
    return fit_curves(method, scores, y, are_logits=spec.has_probabilities, weights=weights)


def logits_of(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Give one logit a class, (n, k), of the scores of a model with probabilities."""
    return (np.column_stack((np.zeros_like(scores), scores)) if scores.shape[1] == 1 else scores).astype(np.float64)


def as_decided(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Give the scores as scikit-learn's ``decision_function`` does: (n,) for two classes."""
    return (scores[:, 0] if scores.shape[1] == 1 else scores).astype(np.float64)
