"""Folds for numbers: every part holds small and large ones alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FoldError
from .folds import Fold

__all__ = ["make_number_folds", "quantile_bins"]

BINS = 10
"""Most bins of the targets that folds are divided by."""


def make_number_folds(
    y: NDArray[np.floating[Any]], *, name: str, folds: int, seed: int, groups: Sequence[str] | None = None
) -> tuple[Fold, ...]:
    """Divide training rows into folds, stratified by quantile bins of the target.

    Parameters
    ----------
    y : (n,) float
        Numbers of the training rows.
    name
        What they are called.
    folds, seed, groups
        As ``make_folds`` takes them.

    Returns
    -------
    tuple of (training rows, validation rows)
        Positions in ``y``.

    Raises
    ------
    FoldError
        When there are fewer than two rows a fold, fewer groups than folds, or a training part whose numbers are all
        the same.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    _check(name, len(y), folds, "training rows", least=2 * folds)
    if groups is not None:
        _check(name, len(set(groups)), folds, "groups of training rows", least=folds)
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    bins = quantile_bins(y, max(1, min(BINS, len(y) // folds)))
    parts = tuple(splitter(folds, shuffle=True, random_state=seed).split(np.zeros(len(y)), bins, groups))
    for train, test in parts:
        if not len(test) or (y[train] == y[train[0]]).all():
            fault = "train on a single number" if len(test) else "validate on nothing"
            raise FoldError(
                f"{name!r}: rows or groups are so uneven that a fold would {fault}; "
                f"use other folds than {folds} (--set train.folds=N), or add images",
                label=name,
                count=len(y),
                folds=folds,
            )
    return parts


def quantile_bins(y: NDArray[np.floating[Any]], bins: int) -> NDArray[np.int64]:
    """Give the bin of each number, (n,), 0 to bins - 1, each of as many rows; ties go by position."""
    ranks = np.empty(len(y), dtype=np.int64)
    ranks[np.argsort(y, kind="stable")] = np.arange(len(y))
    return ranks * bins // len(y)


def _check(name: str, count: int, folds: int, what: str, *, least: int) -> None:
    if count < least:
        fewer = count * folds // least
        cure = f"lower them (--set train.folds={fewer}), or add some" if fewer >= 2 else "add some"
        raise FoldError(
            f"{name!r} has {count} {what}, and {folds} folds need {least}: {cure}", label=name, count=count, folds=folds
        )
