"""Scores that each training row gets, for every value of the grid, from a model that never saw its fold.

Both the choice of a setting and the calibration of its probabilities come from these scores. A model may bring a
solver of its own that finds them for all values in one go; without one, each fold and value is fitted plainly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .calibration_curves import scores_of
from .folds import Fold
from .inputs import fit_steps, inputs_of
from .models import BuildOptions, ModelSpec
from .settings import params_of
from .solving import convergence_notes, folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["OutOfFold", "Solver", "fit_pipeline", "plain_fit", "plain_scores", "score_folds"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold scores of one model."""

    scores: NDArray[Any]
    """(values, n, k) float32 in the order of the values and rows; (values, n, 1) for two classes: positive calls the
    second. Of models with probabilities they are logits: their softmax, or logistic curve, gives the probabilities.
    Of several labels (values, n, L), positive where a row has the label; of numbers (values, n, 1), the predictions"""
    notes: tuple[str, ...] = ()
    """solvers that did not converge"""
    starts: tuple[Any, ...] | None = None
    """for each value, where the solver's ``fit_pipeline`` may begin; None where it has no use for it"""

    def only(self, which: int) -> OutOfFold:
        """Give what belongs to one value, by its position; the notes are of all values, and stay behind."""
        starts = None if self.starts is None else self.starts[which : which + 1]
        return OutOfFold(self.scores[which : which + 1], starts=starts)


class Solver(Protocol):
    """A model's own way to be searched and fitted; a module with these two functions is one."""

    def score_folds(
        self,
        spec: ModelSpec,
        X: Floats,
        y: NDArray[Any],
        *,
        values: Sequence[Any],
        folds: Sequence[Fold],
        options: BuildOptions,
    ) -> OutOfFold:
        """As ``score_folds`` of this module."""

    def fit_pipeline(
        self, spec: ModelSpec, X: Floats, y: NDArray[Any], *, value: Any, options: BuildOptions, start: Any
    ) -> tuple[Pipeline, tuple[str, ...]]:
        """As ``fit_pipeline`` of this module."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[Any],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score each row, for each value, by a scaler and model that were fitted without the row's fold.

    Parameters
    ----------
    spec
        The model.
    X : (n, D) float32
        Raw features of the training rows; never written to.
    y : (n,) int
        Their classes, 0 to k - 1; every fold trains on all of them.
    values
        Points of the model's grid; see ``settings``.
    folds
        Positions of the parts: each row is validated by exactly one fold.
    options
        Seed and class weight.
    """
    X = options.steps.by_row(X)
    if spec.solver is None:
        return plain_scores(spec, X, y, values=values, folds=folds, options=options)
    return spec.solver().score_folds(spec, X, y, values=values, folds=folds, options=options)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[Any], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit scaler and model on all rows.

    Parameters are those of ``score_folds``, with one value, and what ``OutOfFold.starts`` has for it.

    Returns
    -------
    (Pipeline, notes)
        A fitted pipeline of scikit-learn, its last steps ``scale``, perhaps ``pca``, and ``model``, and solvers that
        did not converge.
    """
    from sklearn.pipeline import Pipeline

    X = options.steps.by_row(X)
    if spec.solver is None:
        fitted, notes = plain_fit(spec, X, y, value=value, options=options)
    else:
        fitted, notes = spec.solver().fit_pipeline(spec, X, y, value=value, options=options, start=start)
    before = options.steps.row_steps()
    return (Pipeline([*((name, step.fit(X)) for name, step in before), *fitted.steps]) if before else fitted), notes


def plain_scores(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.int64],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``score_folds`` does, by one plain fit a fold and value, as many at a time as there are cores."""
    from joblib import Parallel, delayed

    columns = 1 if (k := int(y.max()) + 1) == 2 else k
    scores = np.empty((len(values), len(y), columns), dtype=np.float32)
    inputs = inputs_of(X, options)

    def fit_one(row: int, train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        A, held_out = inputs.fold(train, test)
        scores[row, test] = scores_of(_fit(spec, A, y[train], values[row], options), held_out)

    with convergence_notes() as notes, folds_in_threads():
        Parallel()(delayed(fit_one)(row, *fold) for row in range(len(values)) for fold in folds)
    return OutOfFold(scores, tuple(notes))


def plain_fit(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: Any, options: BuildOptions
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``fit_pipeline`` does, by scikit-learn alone."""
    from sklearn.pipeline import Pipeline

    with convergence_notes() as notes, folds_in_threads():
        steps, A = fit_steps(X, options)
        model = _fit(spec, A, y, value, options)
    return Pipeline([*steps, ("model", model)]), tuple(notes)


def _fit(spec: ModelSpec, A: Floats, y: NDArray[np.int64], value: Any, options: BuildOptions) -> Any:
    return spec.build(options).set_params(**params_of(spec, value)).fit(A, y, **_fit_params(spec, y, options))


def _fit_params(spec: ModelSpec, y: NDArray[np.int64], options: BuildOptions) -> dict[str, Any]:
    """Weigh rows where the estimator has no class weights of its own."""
    if spec.takes_class_weight or options.class_weight is None:
        return {}
    from sklearn.utils.class_weight import compute_sample_weight

    return {"sample_weight": compute_sample_weight(options.class_weight, y)}
