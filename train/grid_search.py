"""Score every value of a grid on every fold, or drop the worse half of a large grid after each fold.

Dropping is successive halving over folds (Jamieson and Talwalkar, AISTATS 2016): a value that is behind on the first
folds is not tried on the others. The value that is chosen has been tried on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .metrics import Metric
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold, score_folds
from .scoring import score_by_fold
from .settings import Point

__all__ = ["Halving", "Scored", "score_grid"]

Halving = Literal["auto", "always", "never"]
MANY = 24
"""A grid of more values is halved unless it is asked not to be."""
FIRST = 2
"""Folds that every value is tried on."""
FEW = 3
"""So many values, or fewer, are tried on all folds."""


@dataclass(frozen=True)
class Scored:
    """What the folds say of each value."""

    table: NDArray[np.float64]
    """(values, folds), larger is better; NaN where a value was not tried"""
    finished: NDArray[np.intp]
    """positions of the values that were tried on all folds, rising"""
    notes: tuple[str, ...]
    """solvers that did not converge"""
    parts: tuple[tuple[NDArray[np.intp], Sequence[Fold], OutOfFold], ...]
    """of the first division into folds: which values, on which folds, to which scores"""

    def out_of_fold(self, which: int) -> OutOfFold:
        """Give the scores that one value, by its position, gave all rows of the first division."""
        pieces = [(folds, found, int(np.searchsorted(values, which))) for values, folds, found in self.parts]
        if len(pieces) == 1:
            return pieces[0][1].only(pieces[0][2])
        scores = np.array(pieces[-1][1].scores[pieces[-1][2] :][:1])
        for folds, found, row in pieces:
            for _, test in folds:
                scores[0, test] = found.scores[row, test]
        return replace(pieces[-1][1].only(pieces[-1][2]), scores=scores)


def score_grid(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    values: Sequence[Point],
    divisions: Sequence[Sequence[Fold]],
    metric: Metric,
    options: BuildOptions,
    halving: Halving = "auto",
) -> Scored:
    """Score the values of a grid.

    Parameters
    ----------
    spec, X, y, options
        As ``out_of_fold.score_folds`` takes them.
    values
        Points of the grid.
    divisions
        Divisions of the rows into folds; several for repeated cross-validation.
    metric
        What values are compared by.
    halving
        Whether values that are behind are dropped: ``auto`` where there are more than ``MANY``. With log
        loss, or curves for probabilities, none is ever dropped.
    """
    comparable = metric != "log_loss" and options.calibration is None  # else a fold needs the scores of all others
    halve = comparable and (halving == "always" or (halving == "auto" and len(values) > MANY))
    table = np.full((len(values), sum(map(len, divisions))), np.nan)
    alive, notes, parts, column = np.arange(len(values)), dict[str, None](), [], 0
    for i, folds in enumerate(divisions):
        for part in _parts(folds, first=FIRST if i == 0 else 1) if halve else [folds]:
            tried = [values[which] for which in alive.tolist()]
            found = score_folds(spec, X, y, values=tried, folds=part, options=options)
            notes |= dict.fromkeys(found.notes)
            parts += [(alive, part, found)] if i == 0 else []
            for which, scores in zip(alive.tolist(), found.scores, strict=True):
                table[which, column : column + len(part)] = score_by_fold(spec, scores, y, part, metric, options)
            column += len(part)
            alive = _better_half(table, alive, column) if halve else alive
    finished = np.flatnonzero(~np.isnan(table).any(axis=1))
    return Scored(table, finished, tuple(notes), tuple(parts))


def _parts(folds: Sequence[Fold], *, first: int) -> list[Sequence[Fold]]:
    """Give the folds in the order in which values are dropped between them."""
    return [folds[:first], *([fold] for fold in folds[first:])]


def _better_half(table: NDArray[np.float64], alive: NDArray[np.intp], tried: int) -> NDArray[np.intp]:
    """Give the better half of the values by their mean so far, the first ones on ties, in the order of the grid."""
    if len(alive) <= FEW or tried == table.shape[1]:
        return alive
    means = table[alive, :tried].mean(axis=1).round(12)
    kept = np.argsort(-means, kind="stable")[: max(FEW, (len(alive) + 1) // 2)]
    return np.sort(alive[kept])
