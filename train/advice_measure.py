"""Measure what the rules of an advice need: layers by depth, a learning curve, how far unseen images lie.

Scores are of the cross-validation on training rows. Of the held-out rows the features are looked at, never the labels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store import Column, FeatureSet, FeatureStore
from icecore.store.tunings import read_tuning
from numpy.typing import NDArray

from .advice_facts import Facts, LayerFact
from .cells import search_cell
from .compare import default_models
from .data import Dataset, pin, read_dataset
from .distance import measure_distance
from .errors import DatasetError
from .evidence import learning_curve
from .folds import Fold
from .grid_search import Halving
from .labels import LabelSource
from .metrics import Metric
from .models import ClassWeight, ModelSpec
from .plan import CellPlan, make_plan
from .resampling import disagreement_of
from .search import Search, fit_model
from .settings import Grid
from .shared import divide, each_layer, rank_key, share_rows
from .splits import SplitRule
from .steps import STANDARD, Steps
from .sweep_layers import expand_layers

__all__ = ["measure_facts", "network_order"]


@dataclass(frozen=True, eq=False)
class _Tried:
    """The best model on one layer."""

    column: Column
    spec: ModelSpec
    steps: Steps
    search: Search
    called: NDArray[np.intp]
    """(m,), class that each training row is called by models that never saw its fold"""
    accuracy: float


def measure_facts(
    store_path: Path | str,
    set_name: str,
    *,
    layers: Sequence[str | Sequence[str]] = (),
    models: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    version: int | str | None = None,
    grids: Mapping[str, Grid] | None = None,
    steps: Steps | Sequence[Steps] = STANDARD,
    class_weight: ClassWeight = None,
    folds: int = 5,
    repeats: int = 1,
    halving: Halving = "auto",
    seed: int = 0,
    metric: Metric | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Facts:
    """Measure what ``advise`` asks for, on the features of a frozen backbone with classes.

    Parameters
    ----------
    store_path, set_name, labels, split, version, grids, steps, class_weight, folds, repeats, halving, seed, metric
        As ``train_models`` takes them.
    layers
        Layers to look at, one by one, names or globs as ``sweep_models`` takes them; every column by default. Their
        order is that of the network; see ``network_order``.
    models
        Names of models; the best counts for each layer. By default ``logistic_regression`` alone.
    progress
        Called after each layer with its name and accuracy.

    Returns
    -------
    Facts
        Memory: the features of one layer at a time, and their scaled copies.

    Raises
    ------
    DatasetError
        When the backbone is fine-tuned already: it knows the training rows.
    TrainError
        As ``train_models``.
    icecore.store.StoreError
        When the store, the set or a layer is not there.

    Examples
    --------
    >>> facts = measure_facts("features", "photos")  # doctest: +SKIP
    >>> advise(facts).action  # doctest: +SKIP
    'keep frozen'
    """
    plan = make_plan(
        models=models or default_models("classification"),
        grids=grids,
        steps=steps,
        class_weight=class_weight,
        calibration=None,
        folds=folds,
        repeats=repeats,
        outer_folds=0,
        halving=halving,
        seed=seed,
        metric=metric,
    )
    with FeatureStore.open(store_path) as store:
        feature_set = pin(store, set_name, version)
        _require_frozen(store, feature_set)
        columns = _columns(feature_set, layers)
        rows = share_rows(feature_set, [column.name for column in columns], labels=labels, split=split)
        divisions = divide(rows, plan)
        tried: dict[str, _Tried] = {}  # the best column of each layer, in their order
        for column in columns:
            one = _try(read_dataset(feature_set, column.name, rows), divisions, plan)
            if column.layer not in tried or _rank(one, plan) < _rank(tried[column.layer], plan):
                tried[column.layer] = one
            if progress is not None:
                progress(column.name, one.accuracy)
        by_depth = tuple(tried.values())
        winner = min(range(len(by_depth)), key=lambda i: (_rank(by_depth[i], plan), -i))  # of equals, the later one
        data = read_dataset(feature_set, by_depth[winner].column.name, rows)
    return _facts(data, by_depth, winner, divisions[0], plan)


def network_order(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Give columns in the order of the network, as far as a store knows it.

    Layers whose names differ in numbers alone, ``features.7`` and ``features.10`` or ``layer1`` and ``layer4``, stand
    in the order of the numbers. Others stand as they were added: one run of ``extract`` adds its layers in the order of
    the network, but a layer that a later run added stands behind those of the first.
    """
    shapes = {re.sub(r"\d+", "0", column.layer) for column in columns}
    if len(shapes) > 1:
        return tuple(columns)
    return tuple(sorted(columns, key=lambda column: [int(part) for part in re.findall(r"\d+", column.layer)]))


def _require_frozen(store: FeatureStore, feature_set: FeatureSet) -> None:
    if read_tuning(store.path, feature_set.contract.weights) is not None:
        raise DatasetError(
            f"{feature_set.name}@{feature_set.version} is of a fine-tuned backbone, which knows the training images: "
            "their cross-validated scores would flatter it. Name a version of the frozen one (train.version), or use "
            "`icecore compare`"
        )


def _columns(feature_set: FeatureSet, layers: Sequence[str | Sequence[str]]) -> tuple[Column, ...]:
    """Give the columns asked for, each once, in the order of the network; joined ones one by one."""
    chosen = expand_layers(feature_set, layers or None)
    wanted = {feature_set.resolve(name) for name in each_layer(chosen)}
    return network_order([column for column in feature_set.columns if column in wanted])


def _try(data: Dataset, divisions: Sequence[Sequence[Fold]], plan: CellPlan) -> _Tried:
    """Search every model on one layer, and keep the best."""
    X, y = data.training()
    found = []
    for spec, steps in product(plan.specs, plan.steps):
        search = search_cell(X, y, spec, steps, divisions=divisions, plan=plan)
        called = search.outputs(spec, y, replace(plan.options, steps=steps)).argmax(axis=1)
        found.append(_Tried(data.columns[0], spec, steps, search, called, float((called == y).mean())))
    return min(found, key=lambda one: _rank(one, plan))


def _rank(one: _Tried, plan: CellPlan) -> float:
    mean = one.search.best.mean
    return rank_key(plan.metric, mean=mean, n_features=0, model=one.spec.name, layers="")[0]


def _facts(data: Dataset, tried: Sequence[_Tried], winner: int, folds: Sequence[Fold], plan: CellPlan) -> Facts:
    rows, best, last = data.rows, tried[winner], tried[-1]
    X, y = data.training()
    counts = np.bincount(y, minlength=len(rows.classes))
    smallest = int(counts.argmin())
    options = replace(plan.options, steps=best.steps)
    point: Any = best.search.best.point
    fitted = fit_model(best.spec, X, y, value=point, folds=folds, options=options, found=best.search.found)
    X_held_out = data.X[~rows.train]
    return Facts(
        n_train=len(y),
        n_held_out=len(X_held_out),
        n_classes=len(rows.classes),
        smallest=(rows.classes[smallest], int(counts[smallest])),
        layers=tuple(
            LayerFact(one.column.name, one.accuracy, one.column.width, None if one is last else _p_value(one, last, y))
            for one in tried
        ),
        winner=winner,
        majority=float(counts.max() / counts.sum()),
        training_score=float((fitted.outputs(X).argmax(axis=1) == y).mean()),
        learning=learning_curve(*(best.spec, X, y), value=point, folds=folds, metric="accuracy", options=options),
        distance=measure_distance(X, X_held_out, groups=rows.train_groups),
    )


def _p_value(one: _Tried, last: _Tried, y: NDArray[Any]) -> float:
    """Test whether a layer and the last one call the training rows, out of fold, right equally often."""
    k = int(y.max()) + 1
    return disagreement_of(y, np.eye(k)[one.called], np.eye(k)[last.called])[2]
