"""Search, fit and score one cell: a model on a selection of layers, after some preprocessing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from icecore.store import Column
from icecore.store.durable import make_folder
from numpy.typing import NDArray

from .bundle_write import SCRATCH
from .data import Dataset
from .folds import Fold
from .models import ModelSpec
from .out_of_core import Learned, learn_out_of_core
from .plan import CellPlan
from .result import Cell, Predictions
from .rows import LabelledRows
from .search import Fitted, Search, fit_model, search_setting
from .selection import Selection, in_words
from .steps import Steps

__all__ = ["Trained", "search_cell", "train_cell", "train_out_of_core"]


@dataclass(frozen=True)
class Trained:
    """A finished cell with what a bundle of it needs."""

    cell: Cell
    """its scores"""
    fitted: Fitted
    """steps and model"""
    columns: tuple[Column, ...]
    """what the model takes"""
    predictions: Predictions
    """its outputs for the held-out rows"""
    out_of_fold: NDArray[np.floating[Any]]
    """(m, k) outputs, such as probabilities, for the training rows, each from a model that never saw its fold"""


def search_cell(
    X: NDArray[np.float32],
    y: NDArray[Any],
    spec: ModelSpec,
    steps: Steps,
    *,
    divisions: Sequence[Sequence[Fold]],
    plan: CellPlan,
) -> Search:
    """Choose a model's settings by cross-validation on raw features, (n, D), and targets of training rows."""
    folds, *repeats = divisions
    return search_setting(
        *(spec, X, y),
        folds=folds,
        repeats=repeats,
        metric=plan.metric,
        options=replace(plan.options, steps=steps),
        grid=plan.grids.get(spec.name),
        halving=plan.halving,
    )


def train_cell(
    data: Dataset, spec: ModelSpec, steps: Steps, divisions: Sequence[Sequence[Fold]], plan: CellPlan
) -> Trained:
    """Search, fit and score a cell with its features in memory."""
    start = time.perf_counter()
    X, y = data.training()
    search = search_cell(X, y, spec, steps, divisions=divisions, plan=plan)
    options = replace(plan.options, steps=steps)
    fitted = fit_model(spec, X, y, value=search.best.point, folds=divisions[0], options=options, found=search.found)
    X_held_out, _ = data.held_out()
    outputs = fitted.outputs(X_held_out)
    out_of_fold = search.outputs(spec, y, options)
    return _trained(data, data.rows, spec, steps, Learned(search, fitted, outputs, out_of_fold), start)


def train_out_of_core(selection: Selection, spec: ModelSpec, steps: Steps, plan: CellPlan) -> Trained:
    """Search, fit and score a cell whose features are larger than the memory limit."""
    start = time.perf_counter()
    make_folder(plan.scratch)
    with TemporaryDirectory(prefix=".out-of-core-", suffix=SCRATCH, dir=plan.scratch) as folder:
        tasks = selection.tasks(replace(plan.options, steps=steps), Path(folder))
        learned = learn_out_of_core(tasks, spec, metric=plan.metric, grid=plan.grids.get(spec.name))
    told = f"trained out of core: the memory limit is {in_words(plan.memory or 0)}"
    return _trained(selection, selection.rows, spec, steps, learned, start, told)


def _trained(
    source: Dataset | Selection,
    rows: LabelledRows,
    spec: ModelSpec,
    steps: Steps,
    learned: Learned,
    start: float,
    *notes: str,
) -> Trained:
    search = learned.search
    cell = Cell(
        columns=tuple(column.name for column in source.columns),
        n_features=sum(column.width for column in source.columns),
        model=spec.name,
        steps=steps,
        setting=spec.setting,
        best=search.best,
        grid=search.grid,
        evaluation=rows.task.evaluate(rows.y_held_out, learned.outputs, rows.classes),
        seconds=time.perf_counter() - start,
        notes=tuple(dict.fromkeys((*notes, *search.notes, *learned.fitted.notes))),
    )
    predictions = Predictions(rows.held_out_ids, rows.y_held_out, learned.outputs)
    return Trained(cell, learned.fitted, source.columns, predictions, learned.out_of_fold)
