"""Search and fit a classifier for several labels: each label is a problem of two classes for the model's own solver.

One setting serves all labels. Steps before the model know nothing of labels, and are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .label_models import LabelModels
from .models import MODELS, BuildOptions, ModelSpec

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

    from .out_of_fold import OutOfFold, Solver

__all__ = ["LABELLERS", "LabelSolver"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LabelSolver:
    """The solver of a classifier, asked once a label; see ``out_of_fold.Solver``."""

    base: ModelSpec
    """the classifier"""

    def score_folds(
        self,
        spec: ModelSpec,
        X: Floats,
        y: NDArray[np.int64],
        *,
        values: Sequence[Any],
        folds: Sequence[Fold],
        options: BuildOptions,
    ) -> OutOfFold:
        """Give scores, (values, n, L), positive where a row has the label."""
        from .out_of_fold import OutOfFold, score_folds

        options = _without_row_steps(options)
        found = [score_folds(self.base, X, one, values=values, folds=folds, options=options) for one in _labels_of(y)]
        starts = [each.starts for each in found if each.starts is not None]
        return OutOfFold(
            np.concatenate([each.scores for each in found], axis=2),
            tuple(dict.fromkeys(note for each in found for note in each.notes)),
            tuple(zip(*starts, strict=True)) if len(starts) == len(found) else None,
        )

    def fit_pipeline(
        self, spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: Any, options: BuildOptions, start: Any
    ) -> tuple[Pipeline, tuple[str, ...]]:
        """Give a pipeline whose last step is ``LabelModels``."""
        from sklearn.pipeline import Pipeline

        from .out_of_fold import fit_pipeline

        options = _without_row_steps(options)
        found = [
            fit_pipeline(self.base, X, one, value=value, options=options, start=None if start is None else start[i])
            for i, one in enumerate(_labels_of(y))
        ]
        models = LabelModels(tuple(pipeline["model"] for pipeline, _ in found))
        notes = tuple(dict.fromkeys(note for _, noted in found for note in noted))
        return Pipeline([*found[0][0].steps[:-1], ("model", models)]), notes


def _labels_of(y: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for column in y.T:
        yield np.ascontiguousarray(column)


def _without_row_steps(options: BuildOptions) -> BuildOptions:
    """Leave out what was done to each image already."""
    return replace(options, steps=replace(options.steps, signed_sqrt=False, l2_norm=False))


def _per_label(base: ModelSpec) -> ModelSpec:
    def solver() -> Solver:
        return LabelSolver(base)

    return replace(base, solver=solver, task="multilabel")


LABELLERS: Mapping[str, ModelSpec] = MappingProxyType({name: _per_label(spec) for name, spec in MODELS.items()})
"""Every classifier, asked once a label, by name, the simplest first: it wins ties."""
