"""Scores of class probabilities on held-out rows, and of the majority class beside them.

Written out rather than taken from scikit-learn so that rows without some class give a reason instead of a
warning; the tests hold every number against scikit-learn's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import UnknownModelError

__all__ = [
    "LOSSES",
    "METRICS",
    "ClassMetric",
    "ClassScore",
    "Evaluation",
    "LabelMetric",
    "Metric",
    "NumberMetric",
    "as_probabilities",
    "evaluate",
    "majority_baseline",
    "metric_score",
    "rank_of",
    "sign_of",
    "wilson_interval",
]

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.floating[Any]]

ClassMetric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
LabelMetric = Literal["macro_f1", "micro_f1", "subset_accuracy", "hamming_loss", "mean_average_precision"]
NumberMetric = Literal["rmse", "mae", "r2"]
Metric = ClassMetric | LabelMetric | NumberMetric
METRICS: tuple[ClassMetric, ...] = get_args(ClassMetric)
"""What a classifier may be chosen by; other tasks have metrics of their own."""
LOSSES = frozenset({"log_loss", "hamming_loss", "rmse", "mae"})
"""Metrics of which less is better."""

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution: the half width of a 95 % interval."""

FINEST = float(np.finfo(np.float32).eps)
"""Smallest probability that the log loss tells apart, of every model: XGBoost's are float32, which has no finer
step beside 1. A sure mistake costs much (15.9), not all."""


@dataclass(frozen=True)
class ClassScore:
    """How one class fares."""

    label: str
    """class name"""
    precision: float
    """part of the rows called so that are; 0 when none is called so"""
    recall: float
    """part of its rows that are found; 0 when it has none"""
    f1: float
    """harmonic mean of the two"""
    support: int
    """held-out rows of the class"""


@dataclass(frozen=True)
class Evaluation:
    """All scores of one model on one set of rows."""

    n: int
    """rows"""
    accuracy: float
    """part of the rows called right"""
    accuracy_interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy"""
    balanced_accuracy: float
    """mean recall of the classes that are there"""
    macro_f1: float
    """mean F1 of the classes that are there or are predicted"""
    log_loss: float
    """mean negative natural logarithm of the true class's probability"""
    roc_auc: float | None
    """area under the ROC curve; of several classes, the mean of one against the rest; None when undefined"""
    roc_auc_reason: str
    """why it is undefined, else empty"""
    per_class: tuple[ClassScore, ...]
    """one entry a class, in the order of the classes"""
    confusion: tuple[tuple[int, ...], ...]
    """rows of true class i that were called j"""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as plain JSON values."""
        return {
            **{name: getattr(self, name) for name in ("n", *METRICS, "roc_auc", "roc_auc_reason")},
            "accuracy_interval": list(self.accuracy_interval),
            "per_class": [vars(row) for row in self.per_class],
            "confusion": [list(row) for row in self.confusion],
        }


def as_probabilities(scores: Any) -> NDArray[np.float64]:
    """Give a model's probabilities in float64 with rows that sum to 1: float32 models do so only to within 1e-7.

    Parameters
    ----------
    scores : (n, k) floating point
        Probabilities as the model gives them.
    """
    proba = np.array(scores, dtype=np.float64)
    proba /= proba.sum(axis=1, keepdims=True)
    return proba


def evaluate(y: Ints, proba: Floats, classes: Sequence[str]) -> Evaluation:
    """Score class probabilities.

    Parameters
    ----------
    y : (n,) int
        True classes, as positions in ``classes``; n >= 1.
    proba : (n, k) float
        Probability of each class; the called class is the largest, the first one on ties.
    classes
        The k class names.
    """
    confusion = _confusion(y, proba.argmax(axis=1), len(classes))
    hits = int(np.trace(confusion))
    recall, f1, there = _per_class(confusion)[1:4]
    present = confusion.sum(axis=1) > 0
    auc, reason = _roc_auc(y, proba, classes)
    return Evaluation(
        n=len(y),
        accuracy=hits / len(y),
        accuracy_interval=wilson_interval(hits, len(y)),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(f1[there].mean()),
        log_loss=_log_loss(y, proba),
        roc_auc=auc,
        roc_auc_reason=reason,
        per_class=_class_scores(confusion, classes),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def majority_baseline(y_train: Ints, y: Ints, classes: Sequence[str]) -> Evaluation:
    """Score the model that always gives the training rows' class shares: what no features at all reach.

    Parameters
    ----------
    y_train : (m,) int
        Classes of the training rows.
    y : (n,) int
        Classes of the rows to score on.
    classes
        The class names.
    """
    priors = np.bincount(y_train, minlength=len(classes)) / len(y_train)  # (k,)
    return evaluate(y, np.tile(priors, (len(y), 1)), classes)


def metric_score(metric: Metric, y: Ints, called: Any, proba: Any) -> float:
    """Give one score, larger is better (log loss negated).

    Parameters
    ----------
    metric
        Which one.
    y : (n,) int
        True classes.
    called : (n,) int or None
        Called classes; needed by all but log loss.
    proba : (n, k) float or None
        Class probabilities; needed by log loss.

    Raises
    ------
    UnknownModelError
        When there is no metric of this name.
    """
    if metric == "log_loss":
        return -_log_loss(y, proba)
    confusion = _confusion(y, called, int(max(y.max(), called.max())) + 1)
    if metric == "accuracy":
        return float(np.trace(confusion) / len(y))
    _, recall, f1, there = _per_class(confusion)
    if metric == "balanced_accuracy":
        return float(recall[confusion.sum(axis=1) > 0].mean())
    if metric == "macro_f1":
        return float(f1[there].mean())
    raise UnknownModelError("metric", metric, METRICS)


def sign_of(metric: str) -> int:
    """Give 1 where larger is better, -1 where smaller is."""
    return -1 if metric in LOSSES else 1


def rank_of(metric: str, score: float) -> float:
    """Give what scores are compared by, larger is better.

    Twelve digits: two means over the same folds may differ in the last bit alone, and are a tie then.
    """
    return round(sign_of(metric) * score, 12)


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Give Wilson's 95 % interval of a proportion (Wilson 1927), which stays within 0 and 1."""
    share, z2 = hits / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _confusion(y: Ints, called: Ints, k: int) -> NDArray[np.int64]:
    return np.bincount(y.astype(np.int64) * k + called, minlength=k * k).reshape(k, k)


def _per_class(
    confusion: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Give precision, recall, F1 and whether the class occurs at all, each (k,)."""
    hits, support, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision = hits / np.maximum(called, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + called, 1)
    return precision, recall, f1, support + called > 0


def _class_scores(confusion: NDArray[np.int64], classes: Sequence[str]) -> tuple[ClassScore, ...]:
    precision, recall, f1, _ = _per_class(confusion)
    support = confusion.sum(axis=1)
    return tuple(
        ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(classes)
    )


def _log_loss(y: Ints, proba: Floats) -> float:
    share = proba.astype(np.float64)
    share /= share.sum(axis=1, keepdims=True)
    return float(-np.log(np.clip(share[np.arange(len(y)), y], FINEST, 1 - FINEST)).mean())


def _roc_auc(y: Ints, proba: Floats, classes: Sequence[str]) -> tuple[float | None, str]:
    absent = [label for i, label in enumerate(classes) if not (y == i).any()]
    if absent:
        return None, f"no held-out row of class {', '.join(map(repr, absent))}"
    if len(classes) == 2:
        return _binary_auc(y == 1, proba[:, 1]), ""
    return float(np.mean([_binary_auc(y == i, proba[:, i]) for i in range(len(classes))])), ""


def _binary_auc(positive: NDArray[np.bool_], score: Floats) -> float:
    """Give the chance that a positive row scores above a negative one, ties counting half (Mann-Whitney)."""
    _, where, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[where]  # (n,), mean rank of ties, from 1
    n_positive = int(positive.sum())
    u = float(rank[positive].sum()) - n_positive * (n_positive + 1) / 2
    return u / (n_positive * (len(score) - n_positive))
