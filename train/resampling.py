"""How sure the scores of held-out rows are: bootstrap intervals, and two models compared on the same rows.

Rows are drawn with replacement, or whole groups of them where rows of a group belong together (Efron and Tibshirani,
1993); intervals are percentiles. Equal input gives equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DatasetError
from .metrics import FINEST

__all__ = ["HEADLINES", "Comparison", "Gap", "Interval", "bootstrap_intervals", "compare_models", "draws_for"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Interval = tuple[float, float]

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc")
"""Scores that get an interval."""
MOST_DRAWS, LEAST_DRAWS = 1_000, 300
"""Draws: at 1,000 the ends of a 95 % interval move by some hundredths of its width from seed to seed."""
_WORK = 100_000_000
"""Draws x rows x classes, to which the number of draws is fitted between these two: some seconds."""
_AT_A_TIME = 1 << 22
"""Weights held at once, draws x rows."""
_MOST_UNDEFINED = 0.05
"""Share of draws in which a score may be undefined, because a class is in none of their rows."""


@dataclass(frozen=True)
class Gap:
    """A score of one model minus that of another, on the same rows."""

    difference: float
    """above 0: the first has more"""
    interval: Interval
    """95 %, paired bootstrap"""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows."""

    n: int
    """rows"""
    only_first: int
    """rows that the first alone calls right"""
    only_second: int
    """rows that the second alone calls right"""
    p_value: float
    """McNemar's exact test, two-sided: how likely so uneven a share of these rows is where both models are as good"""
    gaps: Mapping[str, Gap | None]
    """by score of ``HEADLINES``; None where it is undefined"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        gaps = {
            name: None if gap is None else {"difference": gap.difference, "interval": list(gap.interval)}
            for name, gap in self.gaps.items()
        }
        return {
            "n": self.n,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "mcnemar_p": self.p_value,
            "gaps": gaps,
        }


def draws_for(rows: int, classes: int) -> int:
    """Give how often so many rows are drawn again: 1,000 times, and fewer where that would take long, at least 300."""
    return max(LEAST_DRAWS, min(MOST_DRAWS, _WORK // (rows * classes)))


def bootstrap_intervals(
    y: Ints, proba: Floats, *, groups: Sequence[str] | None = None, seed: int = 0, resamples: int | None = None
) -> dict[str, Interval | None]:
    """Give a 95 % interval of every headline score.

    Parameters
    ----------
    y : (n,) int
        True classes, 0 to k - 1.
    proba : (n, k) float
        Probability of each class.
    groups
        Group of each row: groups are drawn whole.
    seed, resamples
        Of the draws; ``draws_for`` gives their number by default. Memory is
        bounded: some tens of megabytes beside the input.

    Returns
    -------
    dict
        Score to its interval; None where more than one draw in twenty leaves it undefined.
    """
    scores = _Scores(y, proba)
    drawn = _drawn(len(y), groups, seed, resamples or draws_for(*proba.shape), [scores])
    return {name: _percentiles(values[0]) for name, values in drawn.items()}


def compare_models(
    y: Ints,
    first: Floats,
    second: Floats,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int | None = None,
) -> Comparison:
    """Compare the probabilities that two models give for the same rows.

    Parameters
    ----------
    y : (n,) int
        True classes.
    first, second : (n, k) float
        Probabilities of each.
    groups, seed, resamples
        As ``bootstrap_intervals``. McNemar's test (McNemar 1947, in its exact form) takes rows for independent of each
        other: with groups, look at the interval.

    Raises
    ------
    DatasetError
        When the rows are not the same number.
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # it ships no types

    if not len(y) == len(first) == len(second):
        raise DatasetError(f"the models scored {len(first)} and {len(second)} rows, and {len(y)} are labelled")
    hits, other = first.argmax(1) == y, second.argmax(1) == y
    only_first, only_second = int((hits & ~other).sum()), int((other & ~hits).sum())
    p_value = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    both = [_Scores(y, first), _Scores(y, second)]
    drawn = _drawn(len(y), groups, seed, resamples or draws_for(*first.shape), both)
    whole = [scores.of(np.ones((1, len(y)), np.float32)) for scores in both]
    gaps: dict[str, Gap | None] = {}
    for name, (values, others) in drawn.items():
        interval = _percentiles(values - others)
        difference = float(whole[0][name][0] - whole[1][name][0])
        gaps[name] = None if interval is None else Gap(difference, interval)
    return Comparison(len(y), only_first, only_second, p_value, gaps)


class _Scores:
    """The headline scores of some probabilities under any weights of their rows."""

    def __init__(self, y: Ints, proba: Floats) -> None:
        k = proba.shape[1]
        called = proba.argmax(1)
        self._is = np.eye(k, dtype=np.float32)[y]  # (n, k)
        self._called = np.eye(k, dtype=np.float32)[called]
        self._hits = self._is * self._called
        share = proba / proba.sum(axis=1, keepdims=True, dtype=np.float64)
        self._loss = -np.log(np.clip(share[np.arange(len(y)), y], FINEST, 1 - FINEST))
        self._areas = [_Area(y == i, proba[:, i]) for i in (range(k) if k > 2 else (1,))]

    def of(self, weights: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        """Give each score for each row of weights, (draws, n); NaN where it is undefined."""
        hits, support, called = (np.float64(1) * (weights @ part) for part in (self._hits, self._is, self._called))
        with np.errstate(invalid="ignore", divide="ignore"):
            recall, f1 = hits / support, 2 * hits / (support + called)
            areas = np.mean([area.of(weights) for area in self._areas], axis=0)
        total = weights.sum(1, dtype=np.float64)
        return {
            "accuracy": hits.sum(1) / total,
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "macro_f1": np.nanmean(f1, axis=1),
            "log_loss": weights.astype(np.float64) @ self._loss / total,
            "roc_auc": areas,
        }


class _Area:
    """The area under the ROC curve of one class against the rest."""

    def __init__(self, positive: NDArray[np.bool_], score: Floats) -> None:
        order = np.argsort(score, kind="stable")
        ends = np.r_[np.flatnonzero(np.diff(score[order])) + 1, len(score)]  # of rows that tie, exclusive
        self._order, self._at = order, np.flatnonzero(positive[order])
        which = np.searchsorted(ends, self._at, side="right")
        self._first, self._last = np.r_[0, ends][which], ends[which]
        self._first_positive = np.searchsorted(self._at, self._first)
        self._last_positive = np.searchsorted(self._at, self._last)

    def of(self, weights: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the chance that a positive row scores above a negative one, ties counting half: (draws,)."""
        ordered = weights[:, self._order]
        positive = ordered[:, self._at]
        passed, hits = _summed(ordered), _summed(positive)
        # for each positive row the weight of all rows below it, and of those that are positive; half of what ties
        below = (passed[:, self._first] + passed[:, self._last]) / 2
        below -= (hits[:, self._first_positive] + hits[:, self._last_positive]) / 2
        return np.asarray((positive * below).sum(1) / (hits[:, -1] * (passed[:, -1] - hits[:, -1])))


def _summed(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the sums before each column, and the whole: (draws, n + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _drawn(
    n: int, groups: Sequence[str] | None, seed: int, resamples: int, scored: Sequence[_Scores]
) -> dict[str, NDArray[np.float64]]:
    """Give every score of every draw: name -> (models, draws)."""
    parts = [[scores.of(weights) for scores in scored] for weights in _weights(n, groups, seed, resamples)]
    return {
        name: np.array([np.concatenate([part[i][name] for part in parts]) for i in range(len(scored))])
        for name in HEADLINES
    }


def _weights(n: int, groups: Sequence[str] | None, seed: int, resamples: int) -> Iterator[NDArray[np.float32]]:
    """Draw how often each row counts, (draws, n), some draws at a time."""
    rng = np.random.default_rng(seed)
    which = None if groups is None else np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1]
    units = n if which is None else int(which.max()) + 1
    at_once = max(1, _AT_A_TIME // n)
    draw: Callable[[int], NDArray[np.int64]] = lambda size: rng.multinomial(units, np.full(units, 1 / units), size)  # noqa: E731
    for start in range(0, resamples, at_once):
        counts = draw(min(at_once, resamples - start)).astype(np.float32)
        yield counts if which is None else counts[:, which]


def _percentiles(values: NDArray[np.float64]) -> Interval | None:
    if np.isnan(values).mean() > _MOST_UNDEFINED:
        return None
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)
