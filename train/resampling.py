"""How sure the scores of held-out rows are: bootstrap intervals, and two models compared on the same rows.

Rows are drawn with replacement, or whole groups of them where rows of a group belong together (Efron and Tibshirani,
1993); intervals are percentiles. Equal input gives equal intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import DatasetError
from .metrics import FINEST

__all__ = [
    "HEADLINES",
    "Comparison",
    "Disagreement",
    "Gap",
    "Interval",
    "Resampled",
    "WeightedClasses",
    "bootstrap_intervals",
    "compare_models",
    "disagreement_of",
    "draws_for",
    "gaps_between",
    "intervals_of",
    "paired_draws",
]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Interval = tuple[float, float]
Disagreement = tuple[int, int, float]
"""Rows that the first of two models alone calls right, rows that the second alone does, and McNemar's p value."""

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "roc_auc")
"""Scores of class probabilities that get an interval."""
MOST_DRAWS, LEAST_DRAWS = 1_000, 300
"""Draws: at 1,000 the ends of a 95 % interval move by some hundredths of its width from seed to seed."""
_WORK = 100_000_000
"""Draws x rows x classes, to which the number of draws is fitted between these two: some seconds."""
_AT_A_TIME = 1 << 18
"""Weights held at once, draws x rows."""
_MOST_UNDEFINED = 0.05
"""Share of draws in which a score may be undefined, because a class is in none of their rows."""


class Resampled(Protocol):
    """Scores of some rows under any weights of these."""

    work: int
    """numbers that a draw goes through"""

    def of(self, weights: NDArray[np.float32]) -> Mapping[str, NDArray[np.float64]]:
        """Give each score for each row of weights, (draws, n); NaN where it is undefined."""


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
    only_first: int | None
    """rows that the first alone calls right; None, as the next two, where rows are not right or wrong"""
    only_second: int | None
    """rows that the second alone calls right"""
    p_value: float | None
    """McNemar's exact test, two-sided: how likely so uneven a share of these rows is where both models are as good"""
    gaps: Mapping[str, Gap | None]
    """by headline score; None where it is undefined"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        gaps = {
            name: None if gap is None else {"difference": gap.difference, "interval": list(gap.interval)}
            for name, gap in self.gaps.items()
        }
        test = {"only_first": self.only_first, "only_second": self.only_second, "mcnemar_p": self.p_value}
        return {"n": self.n, **(test if self.p_value is not None else {}), "gaps": gaps}


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
        bounded: some ten megabytes beside the input.

    Returns
    -------
    dict
        Score to its interval; None where more than one draw in twenty leaves it undefined.
    """
    return intervals_of(WeightedClasses(y, proba), len(y), groups=groups, seed=seed, resamples=resamples)


def intervals_of(
    scores: Resampled, n: int, *, groups: Sequence[str] | None = None, seed: int = 0, resamples: int | None = None
) -> dict[str, Interval | None]:
    """Give a 95 % interval of every score of n rows; see ``bootstrap_intervals``."""
    drawn = _drawn(n, groups, seed, resamples or draws_for(n, scores.work // n), [scores])
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
    if not len(y) == len(first) == len(second):
        raise DatasetError(f"the models scored {len(first)} and {len(second)} rows, and {len(y)} are labelled")
    both = WeightedClasses(y, first), WeightedClasses(y, second)
    gaps = gaps_between(*both, len(y), groups=groups, seed=seed, resamples=resamples)
    return Comparison(len(y), *disagreement_of(y, first, second), gaps)


def disagreement_of(y: Ints, first: Floats, second: Floats) -> Disagreement:
    """Count the rows that only one of two models calls right, and test whether that is chance."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # it ships no types

    hits, other = first.argmax(1) == y, second.argmax(1) == y
    only_first, only_second = int((hits & ~other).sum()), int((other & ~hits).sum())
    p_value = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    return only_first, only_second, p_value


def gaps_between(
    first: Resampled,
    second: Resampled,
    n: int,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int | None = None,
) -> dict[str, Gap | None]:
    """Give how far the first's scores of n rows lie above the second's, each with its interval."""
    drawn = paired_draws(first, second, n, groups=groups, seed=seed, resamples=resamples)
    whole = [scores.of(np.ones((1, n), np.float32)) for scores in (first, second)]
    gaps: dict[str, Gap | None] = {}
    for name, (values, others) in drawn.items():
        interval = _percentiles(values - others)
        difference = float(whole[0][name][0] - whole[1][name][0])
        gaps[name] = None if interval is None or np.isnan(difference) else Gap(difference, interval)
    return gaps


def paired_draws(
    first: Resampled,
    second: Resampled,
    n: int,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Give every score of two models in the same draws of n rows, by name: ``(2, draws)``."""
    return _drawn(n, groups, seed, resamples or draws_for(n, first.work // n), [first, second])


class WeightedClasses:
    """The headline scores of some probabilities under any weights of their rows."""

    def __init__(self, y: Ints, proba: Floats) -> None:
        k = proba.shape[1]
        self.work = proba.size
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
    n: int, groups: Sequence[str] | None, seed: int, resamples: int, scored: Sequence[Resampled]
) -> dict[str, NDArray[np.float64]]:
    """Give every score of every draw: name -> (models, draws)."""
    parts = [[scores.of(weights) for scores in scored] for weights in _weights(n, groups, seed, resamples)]
    return {
        name: np.array([np.concatenate([part[i][name] for part in parts]) for i in range(len(scored))])
        for name in parts[0][0]
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
