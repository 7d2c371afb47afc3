"""Scores of label probabilities on held-out rows, and of the labels' shares beside them.

A row has a label where its probability is above one half. The tests hold every number against scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from .curves import precision_recall_curve
from .errors import UnknownModelError
from .metrics import LabelMetric

__all__ = [
    "MULTILABEL_METRICS",
    "LabelScore",
    "MultilabelEvaluation",
    "WeightedLabels",
    "average_precisions",
    "evaluate_labels",
    "label_score",
]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]

MULTILABEL_METRICS: tuple[LabelMetric, ...] = get_args(LabelMetric)
"""What a multi-label model may be chosen by."""


@dataclass(frozen=True)
class LabelScore:
    """How one label fares."""

    label: str
    """its name"""
    precision: float
    """part of the rows called so that have it; 0 when none is called so"""
    recall: float
    """part of the rows with it that are found; 0 when there is none"""
    f1: float
    """harmonic mean of the two"""
    average_precision: float | None
    """mean precision over all thresholds, weighted by what recall gains; None when no row has it"""
    support: int
    """held-out rows that have it"""


@dataclass(frozen=True)
class MultilabelEvaluation:
    """All scores of one multi-label model on one set of rows."""

    n: int
    """rows"""
    macro_f1: float
    """mean F1 of the labels that are there or are predicted"""
    micro_f1: float
    """F1 of all pairs of row and label together"""
    subset_accuracy: float
    """part of the rows with every label right"""
    hamming_loss: float
    """part of the pairs of row and label that are wrong"""
    mean_average_precision: float | None
    """mean average precision of the labels that are there; None when none is"""
    per_label: tuple[LabelScore, ...]
    """one entry a label, in their order"""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as plain JSON values."""
        whole = {name: getattr(self, name) for name in ("n", *MULTILABEL_METRICS)}
        return {**whole, "per_label": [vars(row) for row in self.per_label]}


def evaluate_labels(y: Ints, proba: Floats, names: Sequence[str]) -> MultilabelEvaluation:
    """Score label probabilities.

    Parameters
    ----------
    y : (n, L) int
        1 where a row has a label, n >= 1.
    proba : (n, L) float
        Probability of each label.
    names
        The L names.
    """
    called = proba > 0.5
    hits, support, n_called = _counts(y, called)
    average = average_precisions(y, proba)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * hits / (support + n_called))
    return MultilabelEvaluation(
        n=len(y),
        **{name: abs(label_score(name, y, called, proba)) for name in MULTILABEL_METRICS[:4]},
        mean_average_precision=float(np.nanmean(average)) if support.any() else None,
        per_label=tuple(
            LabelScore(
                label=name,
                precision=float(hits[i] / max(n_called[i], 1)),
                recall=float(hits[i] / max(support[i], 1)),
                f1=float(f1[i]),
                average_precision=None if np.isnan(average[i]) else float(average[i]),
                support=int(support[i]),
            )
            for i, name in enumerate(names)
        ),
    )


def label_score(metric: str, y: Ints, called: NDArray[np.bool_], scores: Floats) -> float:
    """Give one score, larger is better (Hamming loss negated).

    Parameters
    ----------
    metric
        Which one.
    y : (n, L) int
        1 where a row has a label.
    called : (n, L) bool
        Whether it is called so.
    scores : (n, L) float
        What orders the rows of a label; needed by mean average precision, which is 0 where no row has any label.

    Raises
    ------
    UnknownModelError
        When there is no metric of this name.
    """
    if metric == "mean_average_precision":
        average = average_precisions(y, scores)
        return 0.0 if np.isnan(average).all() else float(np.nanmean(average))
    right = called == (y == 1)
    if metric == "subset_accuracy":
        return float(right.all(axis=1).mean())
    if metric == "hamming_loss":
        return -float((~right).mean())
    hits, support, n_called = _counts(y, called)
    if metric == "micro_f1":
        return float(2 * hits.sum() / max(support.sum() + n_called.sum(), 1))
    if metric == "macro_f1":
        there = support + n_called > 0
        return float((2 * hits[there] / (support + n_called)[there]).mean()) if there.any() else 0.0
    raise UnknownModelError("metric", metric, MULTILABEL_METRICS)


def average_precisions(y: Ints, scores: Floats) -> NDArray[np.float64]:
    """Give the average precision of each label, (L,); NaN of a label that no row has."""
    return np.array(
        [
            precision_recall_curve(has == 1, score).area if (has == 1).any() else np.nan
            for has, score in zip(y.T, scores.T, strict=True)
        ]
    )


class WeightedLabels:
    """The headline scores of some label probabilities under any weights of their rows."""

    def __init__(self, y: Ints, proba: Floats) -> None:
        called = proba > 0.5
        self.work = y.size
        self._has, self._called = y.astype(np.float32), called.astype(np.float32)  # (n, L)
        self._hits = self._has * self._called
        right = called == (y == 1)
        self._right = np.column_stack((right.all(axis=1), (~right).mean(axis=1)))  # (n, 2)
        self._precisions = [_WeightedPrecision(has == 1, score) for has, score in zip(y.T, proba.T, strict=True)]

    def of(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Give each score for each row of weights, (draws, n); NaN where it is undefined."""
        hits, support, called = (np.float64(1) * (weights @ part) for part in (self._hits, self._has, self._called))
        right = weights.astype(np.float64) @ self._right / weights.sum(1, dtype=np.float64)[:, None]
        average = np.array([precision.of(weights) for precision in self._precisions])  # (L, draws)
        either = support + called
        return {
            "macro_f1": _mean_of_defined(_ratio(2 * hits, either).T),
            "micro_f1": _ratio(2 * hits.sum(1), either.sum(1)),
            "subset_accuracy": right[:, 0],
            "hamming_loss": right[:, 1],
            "mean_average_precision": _mean_of_defined(average),
        }


class _WeightedPrecision:
    """The average precision of one label."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        self._order = np.argsort(-score, kind="stable")
        self._ends = np.r_[np.flatnonzero(np.diff(score[self._order])), len(score) - 1]  # rows that tie pass together
        self._positive = positive[self._order]

    def of(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give it for each row of weights: (draws,)."""
        ordered = weights[:, self._order].astype(np.float64)
        passed = np.cumsum(ordered, axis=1)[:, self._ends]
        hits = np.cumsum(ordered * self._positive, axis=1)[:, self._ends]
        precision = np.nan_to_num(_ratio(hits, passed))
        return _ratio((np.diff(hits, axis=1, prepend=0) * precision).sum(1), hits[:, -1])


def _counts(y: Ints, called: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Give rows that have a label and are called so, that have it, and that are called so, each (L,)."""
    has = y == 1
    return (has & called).sum(0), has.sum(0), called.sum(0)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, NaN where there is nothing to divide by."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)


def _mean_of_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean over the labels, (L, draws) to (draws,), of those that are defined; NaN where none is."""
    defined = ~np.isnan(values)
    return _ratio(np.nansum(values, axis=0), defined.sum(0).astype(np.float64))
