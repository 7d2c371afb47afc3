"""Nested cross-validation: the whole search, choice among cells included, judged on rows that no part of it saw.

The score of a chosen cell flatters it, since it was chosen for that score. Here each outer fold's rows are kept from
everything: the inner folds choose layers, steps, model and settings anew, and what they chose is scored on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rows import LabelledRows
from .tasks import Scores

__all__ = ["Nested", "OuterFold", "nested_score"]


@dataclass(frozen=True)
class OuterFold:
    """What was chosen without a fold's rows, and how it did on them."""

    columns: tuple[str, ...]
    """layers of the chosen cell"""
    steps: str
    """its steps, in short"""
    model: str
    """its model"""
    params: dict[str, float]
    """its settings by name"""
    chosen_by: float
    """its cross-validated score inside: what it was chosen by"""
    evaluation: Scores
    """its scores on the rows of the outer fold"""
    score: float
    """the metric among them"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {**vars(self), "columns": list(self.columns), "evaluation": self.evaluation.to_json()}


@dataclass(frozen=True)
class Nested:
    """An estimate of what the search gives on new images."""

    folds: tuple[OuterFold, ...]
    """one entry an outer fold"""

    @property
    def mean(self) -> float:
        """Mean of the metric over the outer folds."""
        return float(np.mean([fold.score for fold in self.folds]))

    @property
    def std(self) -> float:
        """Its standard deviation over them."""
        return float(np.std([fold.score for fold in self.folds]))

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {"mean": self.mean, "std": self.std, "folds": [fold.to_json() for fold in self.folds]}


def nested_score(
    rows: LabelledRows, *, folds: int, seed: int, search: Callable[[LabelledRows, int], OuterFold]
) -> Nested:
    """Judge a search on each outer fold of the training rows; groups are kept whole.

    Parameters
    ----------
    rows
        All rows; the held-out ones have no part in this.
    folds
        Outer folds, at least 2.
    seed
        Seed of their shuffle.
    search
        Searches the training rows of what it is given, scores its choice on the held-out ones, and is told the
        number of the fold, from 1.

    Raises
    ------
    FoldError
        When a class has too few rows or groups for the outer folds, or, inside, for the inner ones.
    """
    outer = rows.task.make_folds(rows.y_train, names=rows.classes, folds=folds, seed=seed, groups=rows.train_groups)
    places = np.flatnonzero(rows.train)
    return Nested(
        tuple(
            search(rows.within(places[train], places[test], f"outer fold {i} of {folds}"), i)
            for i, (train, test) in enumerate(outer, 1)
        )
    )
