"""Classifiers by what is near: the means of the classes, shrunken, and the nearest training rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

__all__ = ["ClassMeans", "NearestMean", "SmoothedNeighbors", "class_means", "smoothed_votes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMeans:
    """What some rows say of their classes."""

    counts: Floats
    """(k,) rows of each class"""
    means: Floats
    """(k, D) mean of each class"""
    spread: Floats
    """(D,) standard deviation within the classes, with the median over the features added to it"""

    def linear(self, threshold: float, *, balanced: bool) -> tuple[Floats, Floats]:
        """Give coefficients (k, D) and intercepts (k,) of the shrunken means; see ``NearestMean``."""
        n = self.counts.sum()
        centre = self.counts @ self.means / n
        unit = np.sqrt(np.maximum(1 / self.counts - 1 / n, 0))[:, None] * self.spread  # (k, D)
        apart = self.means - centre
        means = centre + np.sign(apart) * np.maximum(np.abs(apart) - threshold * unit, 0)
        coef = 2 * means / self.spread**2
        prior = 0 if balanced else 2 * np.log(self.counts / n)
        return coef, prior - (coef * means).sum(axis=1) / 2


def class_means(X: NDArray[np.floating[Any]], y: NDArray[np.int64], k: int) -> ClassMeans:
    """Give the means of k classes, of rows (n, D) and classes (n,); each has a row."""
    counts = np.bincount(y, minlength=k).astype(np.float64)
    sums, squares = np.zeros((k, X.shape[1])), np.zeros(X.shape[1])
    for c in range(k):
        rows = X[y == c]
        sums[c] = rows.sum(axis=0, dtype=np.float64)
        squares += ((rows - sums[c] / counts[c]) ** 2).sum(axis=0, dtype=np.float64)
    within = np.sqrt(squares / max(len(y) - k, 1))
    spread = within + np.median(within)
    return ClassMeans(counts, sums / counts[:, None], np.where(spread > 0, spread, 1.0))


def smoothed_votes(
    distances: NDArray[np.floating[Any]], classes: NDArray[np.int64], shares: Floats, numbers: Sequence[int]
) -> Iterator[Floats]:
    """Score rows by the classes of their nearest training rows.

    Parameters
    ----------
    distances : (m, K) float
        To the K nearest, in order.
    classes : (m, K) int
        Their classes.
    shares : (k,) float
        Share of each class in the training rows: what a vote beyond the K would say.
    numbers
        Growing numbers of neighbours that vote, none above K.

    Yields
    ------
    (m, k) float64
        For each number of neighbours N, the logarithm of (N * share of the votes + share of the class) / (N + 1).
        Votes weigh one over their distance; where one is at no distance, such alone count.
    """
    m = len(distances)
    with np.errstate(divide="ignore"):
        weights = 1 / distances.astype(np.float64)
    is_same = np.isinf(weights)
    weights = np.where(is_same.any(axis=1, keepdims=True), is_same, weights)
    votes, rows, done = np.zeros((m, len(shares))), np.arange(m), 0
    for number in numbers:
        for j in range(done, number):
            votes[rows, classes[:, j]] += weights[:, j]
        done = number
        share = votes / votes.sum(axis=1, keepdims=True)
        yield np.log((number * share + shares) / (number + 1))


class NearestMean(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """The class whose shrunken mean is nearest, features weighed by their spread within the classes.

    Means move towards the mean of all rows by ``shrink_threshold`` standard errors in each feature, and stop there
    (nearest shrunken centroids: Tibshirani et al., PNAS 2002). ``NearestCentroid`` shrinks likewise, but measures
    distances in one way when it calls classes of equal shares and in another when it scores them, and fails where more
    than half of the features are constant.

    Parameters
    ----------
    shrink_threshold
        How far means are moved, 0 or more.
    priors
        ``empirical``: frequent classes are likelier; ``uniform``: all alike.
    """

    def __init__(self, shrink_threshold: float = 0.0, *, priors: str = "empirical") -> None:
        self.shrink_threshold = shrink_threshold
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike) -> NearestMean:
        """Find the means of rows (n, D) with classes (n,)."""
        rows, labels = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(labels)
        self.classes_, positions = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: at least two classes, found one class, {self.classes_[0]!r}")
        found = class_means(rows, positions, len(self.classes_))
        self.coef_, self.intercept_ = found.linear(self.shrink_threshold, balanced=self.priors == "uniform")
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Give the score of each class, (n, k), larger is nearer; with two classes that of the second, (n,)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = rows @ self.coef_.T + self.intercept_
        return np.asarray(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the class of the largest score, (n,)."""
        return _called(self.decision_function(X), self.classes_)


class SmoothedNeighbors(KNeighborsClassifier):  # type: ignore[misc]  # scikit-learn is untyped
    """``KNeighborsClassifier(weights="distance")`` with scores that no class has at minus infinity.

    The votes are joined by one vote of all training rows, so that a class without a near row stays possible: the
    scores are logarithms of probabilities, which a temperature makes honest; see ``smoothed_votes``.

    Parameters
    ----------
    n_neighbors
        How many rows vote; all where there are fewer.
    metric
        ``cosine`` or ``euclidean``.
    priors
        ``empirical``, or ``uniform``: a class's odds are divided by its share of the training rows.
    """

    def __init__(self, n_neighbors: int = 5, *, metric: str = "cosine", priors: str = "empirical") -> None:
        super().__init__(n_neighbors, weights="distance", algorithm="brute", metric=metric)
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike) -> SmoothedNeighbors:
        """Keep rows (n, D) with classes (n,)."""
        super().fit(X, column_or_1d(y, warn=True))
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Give the score of each class, (n, k); with two classes that of the second, (n,)."""
        check_is_fitted(self)
        number = min(self.n_neighbors, self.n_samples_fit_)
        distances, near = self.kneighbors(X, n_neighbors=number)
        shares = np.bincount(self._y, minlength=len(self.classes_)) / len(self._y)
        [scores] = smoothed_votes(distances, self._y[near], shares, [number])
        if self.priors == "uniform":
            scores = scores - np.log(shares)
        return np.asarray(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Give the class of the largest score, (n,)."""
        return _called(self.decision_function(X), self.classes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = False
        tags.target_tags.multi_output = False
        return tags


def _called(scores: Floats, classes: NDArray[Any]) -> NDArray[Any]:
    best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
    return np.asarray(classes[best])
