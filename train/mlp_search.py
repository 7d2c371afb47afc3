"""Search and fit a multilayer perceptron on frozen features: each run is scored at every number of epochs asked for.

A network of few epochs is the beginning of one of many, so that early stopping is a setting like others, chosen by
the folds, and no part of the training rows is put aside for it. Models are scikit-learn's ``MLPClassifier``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration_curves import scores_of
from .folds import Fold
from .inputs import fit_steps, inputs_of
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .settings import params_of
from .solving import folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "score_folds"]

Floats = NDArray[np.float32]
EPOCHS = "epochs"
BATCH = 64
"""Rows of a step of Adam's."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.int64],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, by one run a fold and network for all numbers of epochs."""
    from joblib import Parallel, delayed

    k, inputs = int(y.max()) + 1, inputs_of(X, options)
    scores = np.empty((len(values), len(y), 1 if k == 2 else k), dtype=np.float32)
    points = [params_of(spec, value) for value in values]
    order = sorted(range(len(points)), key=lambda i: (_network(points[i]), points[i][EPOCHS]))

    def run(which: Sequence[int], train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        A, held_out = inputs.fold(train, test)
        waiting = list(which)
        for epoch, model in enumerate(_epochs(spec, A, y[train], points[which[-1]], options), 1):
            while waiting and points[waiting[0]][EPOCHS] == epoch:
                scores[waiting.pop(0), test] = scores_of(model, held_out)

    runs = [list(same) for _, same in groupby(order, key=lambda i: _network(points[i]))]
    with folds_in_threads():
        Parallel()(delayed(run)(which, *fold) for which in runs for fold in folds)
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does; the search leaves nothing to start from."""
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        steps, A = fit_steps(X, options)
        *_, model = _epochs(spec, A, y, params_of(spec, value), options)
    model.random_state = options.seed
    for name in ("_optimizer", "_random_state"):  # of use to more epochs alone
        delattr(model, name)
    return Pipeline([*steps, ("model", model)]), ()


def _network(point: Mapping[str, float]) -> tuple[float, ...]:
    """Give what makes a run: all but its length."""
    return tuple(value for name, value in point.items() if name != EPOCHS)


def _epochs(
    spec: ModelSpec, A: Floats, y: NDArray[np.int64], point: Mapping[str, float], options: BuildOptions
) -> Iterator[Any]:
    """Train a network and give it after each epoch."""
    model = spec.build(options).set_params(
        hidden_layer_sizes=(int(point["hidden"]),),
        alpha=point["alpha"],
        batch_size=min(BATCH, len(A)),
        random_state=np.random.RandomState(
            options.seed
        ),  # goes on from epoch to epoch, where a number would begin anew
    )
    weights, classes = _row_weights(y, options), np.arange(int(y.max()) + 1)
    for _ in range(int(point[EPOCHS])):
        yield model.partial_fit(A, y, classes=classes, sample_weight=weights)


def _row_weights(y: NDArray[np.int64], options: BuildOptions) -> NDArray[np.float64] | None:
    if options.class_weight is None:
        return None
    from sklearn.utils.class_weight import compute_sample_weight

    return np.asarray(compute_sample_weight(options.class_weight, y))
