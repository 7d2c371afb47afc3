"""Divide training rows into the folds that serve every model and layer, for choosing and for calibrating."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import FoldError

__all__ = ["Fold", "make_folds"]

Fold = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Positions of the training rows and of the validation rows."""


def make_folds(
    y: NDArray[np.int64],
    *,
    classes: Sequence[str],
    folds: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> tuple[Fold, ...]:
    """Divide training rows into stratified folds, the same for every model and layer.

    Parameters
    ----------
    y : (n,) int
        Classes of the training rows.
    classes
        Their names.
    folds
        How many, at least 2.
    seed
        Seed of the shuffle.
    groups
        Group of each row: none is ever in both parts of a fold.

    Returns
    -------
    tuple of (training rows, validation rows)
        Positions in ``y``.

    Raises
    ------
    FoldError
        When a class has fewer rows or groups than folds: it would be missing from some part.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    for i, label in enumerate(classes):
        rows = np.flatnonzero(y == i)
        _check_count(label, len(rows), folds, "training rows")
        if groups is not None:
            _check_count(label, len({groups[row] for row in rows.tolist()}), folds, "groups of training rows")
    if groups is None:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    parts = tuple(splitter.split(np.zeros(len(y)), y, groups))
    _check_parts(parts, y, classes, folds)
    return parts


def _check_count(label: str, count: int, folds: int, what: str) -> None:
    if count < folds:
        cure = f"lower it (--set train.folds={max(count, 2)})" if count >= 2 else "add some"
        raise FoldError(
            f"class {label!r} has {count} {what}, fewer than the {folds} folds: {cure}, or remove the class",
            label=label,
            count=count,
            folds=folds,
        )


def _check_parts(parts: Sequence[Fold], y: NDArray[np.int64], classes: Sequence[str], folds: int) -> None:
    """Refuse folds whose training part lacks a class, which lopsided groups can cause."""
    for train, _ in parts:
        for i in sorted(set(range(len(classes))) - set(y[train].tolist())):
            raise FoldError(
                f"class {classes[i]!r}: its groups are so uneven that a fold would train without it; "
                f"use fewer folds than {folds} (--set train.folds=N), or remove the class",
                label=classes[i],
                count=int((y == i).sum()),
                folds=folds,
            )
