"""Search and fit XGBoost with coarse bins and few columns a node: a fold has one matrix, and one run for all rounds.

A model of few rounds is the beginning of one of many: both are scored from the same run. Columns are drawn anew for
each tree and each of its nodes, which costs less than all of them and, on pooled features, tells more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import fit_steps, inputs_of
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .settings import params_of
from .solving import folds_in_threads
from .target_unit import target_unit

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["boost", "estimator_params", "fit_pipeline", "objective_of", "row_weights", "score_folds", "trees_of"]

Floats = NDArray[np.float32]
ROUNDS = "n_estimators"
TREE_COLUMNS, NODE_COLUMNS = 256, 32
"""Columns that a tree, and a node of it, may choose from, where there are so many. On 800 flowers with 1,280 features,
100 rounds of depth 4, cross-validated: accuracy 0.90 with 64 a node, 0.89 with 32 a node of 256 a tree, 0.89 with all,
on three of the folds and at ten times the cost, 0.87 on 256 components."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[Any],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, by one run a fold for all numbers of rounds.

    Memory: for each fold at work a scaled copy of its rows, and a byte for each binned value.
    """
    from joblib import Parallel, delayed

    objective, inputs = objective_of(spec.build(options), y), inputs_of(X, options)
    is_number = y.dtype.kind == "f"
    shape = (len(values), len(y), objective.get("num_class", 1))
    scores = np.empty(shape, dtype=np.float64 if is_number else np.float32)
    points = [params_of(spec, value) for value in values]
    order = sorted(range(len(points)), key=lambda i: (trees_of(points[i]), points[i][ROUNDS]))

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        import xgboost

        weights = row_weights(y[train], options)
        rows, held_out = inputs.fold(train, test)
        model = spec.build(options)
        unit = target_unit(y[train]) if is_number else None
        learned = y[train] if unit is None else unit.standardise(y[train])
        matrix = xgboost.QuantileDMatrix(rows, learned, weight=weights, max_bin=model.max_bin, nthread=1)
        for _, run in groupby(order, key=lambda i: trees_of(points[i])):
            which = list(run)  # the last has the most rounds
            model.set_params(**estimator_params(points[which[-1]], rows.shape[1]))
            booster = boost(model, matrix, objective)
            for i in which:
                rounds = (0, int(points[i][ROUNDS]))
                found = booster.inplace_predict(held_out, iteration_range=rounds, predict_type="margin")
                found = found.reshape(len(test), -1)
                scores[i, test] = found if unit is None else unit.restore(found)

    with folds_in_threads():
        Parallel()(delayed(search_fold)(*fold) for fold in folds)
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does; the search leaves nothing to start from."""
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    point = params_of(spec, value)
    with threadpool_limits(1):
        steps, rows = fit_steps(X, options)
        model = spec.build(options).set_params(**estimator_params(point, rows.shape[1]))
        model.fit(rows, y, sample_weight=row_weights(y, options))
    return Pipeline([*steps, ("model", model)]), ()


def trees_of(point: Mapping[str, float]) -> tuple[float, ...]:
    """Give what makes the trees of a run: all but their number."""
    return tuple(value for name, value in point.items() if name != ROUNDS)


def estimator_params(point: Mapping[str, float], width: int) -> dict[str, float]:
    """Give the estimator's parameters: the point's, and the shares of the columns that trees and nodes are given."""
    tree = min(width, TREE_COLUMNS)
    return {**point, "colsample_bytree": tree / width, "colsample_bynode": min(tree, NODE_COLUMNS) / tree}


def objective_of(model: Any, y: NDArray[Any]) -> dict[str, Any]:
    """Give what ``model.fit`` would minimise: a classifier's loss follows from its classes."""
    from xgboost import XGBClassifier

    if not isinstance(model, XGBClassifier):
        return {"objective": model.objective}
    k = int(y.max()) + 1
    return {"objective": "binary:logistic"} if k == 2 else {"objective": "multi:softprob", "num_class": k}


def boost(model: Any, matrix: Any, objective: Mapping[str, Any]) -> Any:
    """Train as ``model.fit`` does, on a matrix that is already binned."""
    import xgboost

    return xgboost.train({**model.get_xgb_params(), **objective}, matrix, num_boost_round=model.n_estimators)


def row_weights(y: NDArray[np.int64], options: BuildOptions) -> NDArray[np.float64] | None:
    """Give a weight a row, (n,), where classes are weighed."""
    if options.class_weight is None:
        return None
    from sklearn.utils.class_weight import compute_sample_weight

    return np.asarray(compute_sample_weight(options.class_weight, y))
