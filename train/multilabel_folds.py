"""Folds for images with several labels: the rarest label is divided first.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011), with whole groups where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FoldError
from .folds import Fold

__all__ = ["make_label_folds"]

Ints = NDArray[np.integer[Any]]


def make_label_folds(
    y: Ints, *, names: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None = None
) -> tuple[Fold, ...]:
    """Divide training rows into folds, each with its share of every label as far as there are rows of it.

    Parameters
    ----------
    y : (n, L) int
        1 where a row has a label.
    names
        The L names.
    folds, seed, groups
        As ``make_folds`` takes them.

    Returns
    -------
    tuple of (training rows, validation rows)
        Positions in ``y``.

    Raises
    ------
    FoldError
        When there are fewer rows or groups than folds, or a label would be had by no row, or by every row, of a
        training part.
    """
    units = np.arange(len(y)) if groups is None else np.unique(np.array(groups, str), return_inverse=True)[1]
    n_units = int(units.max()) + 1
    if n_units < folds:
        what = "training rows" if groups is None else "groups of training rows"
        raise FoldError(
            f"{n_units} {what}, fewer than the {folds} folds: lower them (--set train.folds=N), or add some",
            label=names[0],
            count=n_units,
            folds=folds,
        )
    counts = np.zeros((n_units, y.shape[1] + 1))  # the last column counts rows: those without any label are divided too
    np.add.at(counts, units, np.column_stack((y, np.ones(len(y)))))
    part = _assign(counts, folds, np.random.default_rng(seed))[units]  # (n,)
    found = tuple((np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(folds))
    _check_parts(found, y, names, folds)
    return found


def _assign(counts: NDArray[np.float64], folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Give each unit its part: a unit of the label with the fewest left goes where most of that label is wanted."""
    part = np.full(len(counts), -1)
    wanted = np.tile(counts.sum(axis=0) / folds, (folds, 1))  # (folds, L + 1)
    left = counts.sum(axis=0)
    while (left > 0).any():
        label = int(np.argmin(np.where(left > 0, left, np.inf)))
        units = rng.permutation(np.flatnonzero((part < 0) & (counts[:, label] > 0)))
        for unit in units[np.argsort(-counts[units, label], kind="stable")].tolist():  # large groups first
            best = np.flatnonzero(wanted[:, label] >= wanted[:, label].max() - 1e-9)
            best = best[wanted[best, -1] >= wanted[best, -1].max() - 1e-9]
            part[unit] = rng.choice(best)
            wanted[part[unit]] -= counts[unit]
        left = counts[part < 0].sum(axis=0)
    return part


def _check_parts(parts: Sequence[Fold], y: Ints, names: Sequence[str], folds: int) -> None:
    """Refuse folds whose training part cannot teach a label, or that validate on nothing."""
    for train, test in parts:
        has, rows = y[train].sum(axis=0).tolist(), len(train)
        for i, name in enumerate(names):
            if 0 < has[i] < rows and len(test):
                continue
            count = int(y[:, i].sum())
            fault = f"a fold would train on {has[i]} of {rows}" if len(test) else "a fold would validate on none"
            raise FoldError(
                f"label {name!r}: {count} of {len(y)} training rows have it, and {fault}; add images of the rarer kind,"
                f" use other folds than {folds} (--set train.folds=N), or leave the label out (labels.columns)",
                label=name,
                count=count,
                folds=folds,
            )
