"""A logistic regression as a probe: what it gets right by some features, and by others of the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .labels import Labels
from .models import BuildOptions, model_spec
from .splits import HELD_OUT_NAMES, GivenSplit, SplitRule, split_rows

__all__ = ["Probe", "probe_features"]

FOLDS = 5


@dataclass(frozen=True)
class Probe:
    """What a logistic regression made of each of several features of the same images."""

    judged: int
    """images that were judged"""
    how: str
    """``held-out`` or ``cross-validated``"""
    right: Mapping[str, int]
    """images that it got right, by features"""
    differing: Mapping[str, int]
    """images that it labels otherwise than by the first of the features"""

    def accuracy(self, name: str) -> float:
        """Give the share that it got right by these features."""
        return self.right[name] / self.judged


def probe_features(
    features: Mapping[str, NDArray[np.float32]], ids: Sequence[str], labels: Labels, split: SplitRule | None = None
) -> Probe | None:
    """Fit and judge a logistic regression (C = 1, standardised) by each of several features of the same images.

    Parameters
    ----------
    features
        (n, D) each, by name; rows in the order of ``ids``.
    ids
        The n images.
    labels
        Their labels; images without one are left out.
    split
        Which images are held out and judged; given splits by default. Where none is given all are, in five folds.

    Returns
    -------
    Probe or None
        None where images are too few: fewer than two classes to learn, or, in folds, five images of each.

    Raises
    ------
    SplitError
        As ``split_rows``.
    """
    rows = [row for row, image in enumerate(ids) if image in labels.label]
    classes, y = np.unique([labels.label[ids[row]] for row in rows], return_inverse=True)
    if len(classes) < 2:
        return None
    parts = _parts([ids[row] for row in rows], y, labels, split or GivenSplit())
    if parts is None:
        return None
    how, folds = parts
    judged = np.concatenate([test for _, test in folds])
    guesses = {name: _guess(X[rows], y, folds) for name, X in features.items()}
    first = next(iter(guesses.values()))
    return Probe(
        judged=len(judged),
        how=how,
        right={name: int((guess == y[judged]).sum()) for name, guess in guesses.items()},
        differing={name: int((guess != first).sum()) for name, guess in guesses.items()},
    )


_Folds = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def _parts(ids: Sequence[str], y: NDArray[np.int64], labels: Labels, split: SplitRule) -> tuple[str, _Folds] | None:
    sides = {labels.split[image].lower() in HELD_OUT_NAMES for image in ids if image in labels.split}
    if len(sides) == 2 or not isinstance(split, GivenSplit):
        is_train = split_rows(split, ids, names=labels.split, groups=labels.group).train
        train, test = np.flatnonzero(is_train), np.flatnonzero(~is_train)
        return None if len(np.unique(y[train])) < 2 else ("held-out", [(train, test)])
    if np.bincount(y).min() < FOLDS:
        return None
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(np.zeros(len(y)), y)
    return "cross-validated", list(folds)


def _guess(X: NDArray[np.float32], y: NDArray[np.int64], folds: _Folds) -> NDArray[np.int64]:
    """Give the class of each judged row, fold after fold."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), model_spec("logistic_regression").build(BuildOptions()))
    return np.concatenate([model.fit(X[train], y[train]).predict(X[test]) for train, test in folds])
