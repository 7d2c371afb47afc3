"""What the report draws of a winner beside its scores: curves, calibration, a map of the features, a learning curve.

Numbers only: ``plots`` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Calibration",
    "Confused",
    "Curve",
    "FeatureMap",
    "calibration_of",
    "confused_pairs",
    "feature_map",
    "precision_recall_curve",
    "roc_curve",
]

Floats = NDArray[np.floating[Any]]
BINS = 10
"""Bins of the calibration curve, each of the same width."""
MOST_MAPPED = 3_000
"""Rows that the map shows."""


@dataclass(frozen=True)
class Curve:
    """A curve through all thresholds, and what it sums up to."""

    x: NDArray[np.float64]
    """false positive rate, or recall"""
    y: NDArray[np.float64]
    """true positive rate, or precision"""
    area: float
    """area under the ROC curve, or average precision"""


@dataclass(frozen=True)
class Calibration:
    """How often the called class is right where it is given some probability."""

    confidence: NDArray[np.float64]
    """(b,), mean probability of the called class in each bin that has rows"""
    accuracy: NDArray[np.float64]
    """(b,), part of the bin's rows that are called right"""
    rows: NDArray[np.int64]
    """(b,), rows of the bin"""
    error: float
    """expected calibration error (Guo et al., ICML 2017): mean distance of the two, weighted by rows"""


@dataclass(frozen=True)
class Confused:
    """Two classes that are taken for each other."""

    first: str
    """class name"""
    second: str
    """class name"""
    first_as_second: int
    """rows of the first called the second"""
    second_as_first: int
    """and the other way round"""
    share: float
    """both, as a part of the rows of the two classes"""


@dataclass(frozen=True)
class FeatureMap:
    """Rows in the plane of the two largest principal components."""

    points: NDArray[np.float32]
    """(n, 2)"""
    which: NDArray[np.intp]
    """(n,), position of each among all rows"""
    explained: tuple[float, float]
    """part of the variance that each axis holds"""


def roc_curve(positive: NDArray[np.bool_], score: Floats) -> Curve:
    """Give the receiver operating characteristic; rows that tie are passed together."""
    hits, others = _passed(positive, score)
    x, y = np.r_[0, others / others[-1]], np.r_[0, hits / hits[-1]]
    return Curve(x, y, float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2))


def precision_recall_curve(positive: NDArray[np.bool_], score: Floats) -> Curve:
    """Give precision by recall, and the average precision: the sum of steps of recall, each times its precision."""
    hits, others = _passed(positive, score)
    recall, precision = hits / hits[-1], hits / (hits + others)
    average = float(np.sum(np.diff(recall, prepend=0) * precision))
    return Curve(np.r_[0, recall], np.r_[precision[0], precision], average)


def calibration_of(y: NDArray[np.int64], proba: Floats) -> Calibration:
    """Hold the probability of the called class against how often it is right.

    Parameters
    ----------
    y : (n,) int
        True classes.
    proba : (n, k) float
        Probabilities.
    """
    sure, right = proba.max(1).astype(np.float64), proba.argmax(1) == y
    bins = np.minimum((sure * BINS).astype(np.intp), BINS - 1)
    rows = np.bincount(bins, minlength=BINS)
    there = rows > 0
    confidence = np.bincount(bins, sure, BINS)[there] / rows[there]
    accuracy = np.bincount(bins, right, BINS)[there] / rows[there]
    error = float(np.sum(rows[there] * np.abs(confidence - accuracy)) / len(y))
    return Calibration(confidence, accuracy, rows[there], error)


def confused_pairs(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> tuple[Confused, ...]:
    """Give the pairs of classes that are taken for each other, the largest number of rows first."""
    counts = np.array(confusion)
    support = counts.sum(1)
    pairs = [
        Confused(
            *(classes[i], classes[j], int(counts[i, j]), int(counts[j, i])),
            share=float((counts[i, j] + counts[j, i]) / (support[i] + support[j])),
        )
        for i in range(len(classes))
        for j in range(i + 1, len(classes))
        if counts[i, j] + counts[j, i]
    ]
    return tuple(sorted(pairs, key=lambda pair: (-(pair.first_as_second + pair.second_as_first), -pair.share)))


def feature_map(X: NDArray[np.float32], train: NDArray[np.bool_], *, seed: int = 0) -> FeatureMap:
    """Lay rows out by the two largest principal components of the standardised training rows.

    Parameters
    ----------
    X : (n, D) float32
        Features, D >= 2.
    train : (n,) bool
        Training rows.
    seed
        Of the rows shown, where there are more than 3,000, and of the components' start.
    """
    from sklearn.decomposition import PCA

    which = np.arange(len(X))
    if len(X) > MOST_MAPPED:
        which = np.sort(np.random.default_rng(seed).choice(len(X), MOST_MAPPED, replace=False))
    shown, fitted = X[which], train[which]
    mean, scale = shown[fitted].mean(0), shown[fitted].std(0)
    Z = (shown - mean) / np.where(scale > 0, scale, 1)
    found = PCA(2, svd_solver="randomized", random_state=seed).fit(Z[fitted])
    first, second = (float(share) for share in found.explained_variance_ratio_)
    return FeatureMap(found.transform(Z).astype(np.float32), which, (first, second))


def _passed(positive: NDArray[np.bool_], score: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count positive and other rows at or above each threshold, from the highest."""
    order = np.argsort(-score, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    return np.cumsum(positive[order], dtype=np.int64)[ends], np.cumsum(~positive[order], dtype=np.int64)[ends]
