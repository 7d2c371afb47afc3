"""Train every model on every set of layers: the loop of the job, which saves nothing.

One version of the feature set, one split and one set of folds serve all cells, so that they can be compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from icecore.store import Column, FeatureSet, FeatureStore
from icecore.store.durable import make_folder
from numpy.typing import NDArray

from .data import Dataset, Provenance, pin, read_provenance
from .errors import MemoryLimitError
from .evidence import Evidence, gather_evidence
from .folds import Fold
from .grid_search import Halving
from .labels import LabelSource
from .metrics import Metric
from .models import BuildOptions, ModelSpec
from .nested import Nested, OuterFold, nested_score
from .out_of_core import Learned, learn_out_of_core
from .result import Cell, Predictions
from .rows import LabelledRows
from .sampled_evidence import gather_sampled_evidence
from .search import Fitted, Search, fit_model, search_setting
from .selection import Selection, Way, in_words
from .settings import Grid
from .shared import divide, notes_on_copies, notes_on_rows, rank_key, share_rows
from .splits import SplitRule
from .steps import Steps
from .tasks import TaskName

__all__ = ["CellPlan", "Progress", "Run", "Trained", "search_cell", "train_cells", "train_rows"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where a run is: sent before and after each cell."""

    done: int
    """cells finished"""
    total: int
    """cells of the run"""
    layers: str
    """columns of the current cell, joined"""
    model: str
    """model of the current cell"""
    steps: Steps
    """preprocessing of the current cell"""
    cell: Cell | None
    """the finished cell; None when it is about to begin"""
    outer_fold: int = 0
    """fold of the nested cross-validation that the cell belongs to, from 1; 0 outside it"""


@dataclass(frozen=True)
class CellPlan:
    """How cells are trained."""

    specs: tuple[ModelSpec, ...]
    """the models"""
    steps: tuple[Steps, ...]
    """the preprocessing tried before each; ``options`` has none of its own"""
    grids: Mapping[str, Grid]
    """grids to use instead of a model's own, by name"""
    folds: int
    """folds of the cross-validation"""
    repeats: int
    """divisions into folds that each score is the mean of"""
    outer_folds: int
    """folds of the nested cross-validation; 0 for none"""
    halving: Halving
    """whether settings that are behind are dropped before the last fold"""
    metric: Metric
    """what to choose by"""
    task: TaskName
    """what to learn"""
    options: BuildOptions
    """seed and class weight"""
    memory: int | None = None
    """bytes that training may add to the process; None for no limit"""
    scratch: Path = Path()
    """folder for temporary files, where there is a limit"""


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


@dataclass(frozen=True)
class Run:
    """All cells of a run."""

    cells: tuple[Cell, ...]
    """best first"""
    kept: tuple[Trained, ...]
    """best first: the winner and the next one, or all cells"""
    rows: LabelledRows
    """the rows that all cells share"""
    provenance: Provenance
    """the version that all cells read"""
    evidence: Evidence
    """what stands beside the winner's scores"""
    nested: Nested | None
    """the whole search judged on rows that it never saw; None where it was not asked for"""
    notes: tuple[str, ...]
    """what a reader should know of the data"""


def train_cells(
    store: FeatureStore,
    set_name: str,
    layers: Sequence[str | Sequence[str]],
    *,
    plan: CellPlan,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    version: int | str | None = None,
    keep_all: bool = False,
    with_plots: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train all cells and order them.

    Parameters are those of ``train_models``; ``keep_all`` keeps every fitted model, not only the two best;
    ``with_plots`` finds what only a report draws.
    """
    feature_set = pin(store, set_name, version)
    rows = share_rows(feature_set, layers, labels=labels, split=split, task=plan.task)
    return train_rows(feature_set, rows, layers, plan=plan, keep_all=keep_all, with_plots=with_plots, progress=progress)


def train_rows(
    feature_set: FeatureSet,
    rows: LabelledRows,
    layers: Sequence[str | Sequence[str]],
    *,
    plan: CellPlan,
    keep_all: bool = False,
    with_plots: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train all cells on rows that every one of these layers, of a pinned set, covers."""
    report = _Reporter(progress, len(layers) * len(plan.steps) * len(plan.specs) * (1 + plan.outer_folds))
    divisions = divide(rows, plan)  # folds that cannot be made are told before any time is spent

    def search_within(inner: LabelledRows, number: int) -> OuterFold:
        report.outer_fold = number
        _, [best], _ = _train_all(feature_set, layers, inner, plan, report, keep=1)
        return _outer_fold(best.cell, plan.metric)

    nested = None
    if plan.outer_folds:
        nested = nested_score(rows, folds=plan.outer_folds, seed=plan.options.seed, search=search_within)
        report.outer_fold = 0
    cells, kept, on_copies = _train_all(feature_set, layers, rows, plan, report, keep=None if keep_all else 2)
    evidence = _evidence(feature_set, kept[0], rows, divisions, plan, with_plots=with_plots)
    notes = dict.fromkeys((*notes_on_rows(rows), *on_copies, *evidence.notes()))
    return Run(tuple(cells), tuple(kept), rows, read_provenance(feature_set), evidence, nested, tuple(notes))


def _train_all(
    feature_set: FeatureSet,
    layers: Sequence[str | Sequence[str]],
    rows: LabelledRows,
    plan: CellPlan,
    report: _Reporter,
    *,
    keep: int | None,
) -> tuple[list[Cell], list[Trained], list[str]]:
    """Give all cells and the best ``keep`` trained ones (None: all), best first, and notes on copies."""
    divisions = divide(rows, plan)
    cells: list[Cell] = []
    kept: list[Trained] = []
    notes: list[str] = []
    for layer in layers:
        selection = Selection(feature_set, layer, rows, divisions, plan.memory)
        pairs, skipped = _ways(selection, plan)
        report.skip(len(skipped))
        notes += skipped
        data = selection.load() if any(way == "in memory" for _, _, way in pairs) else None
        notes += notes_on_copies(data or selection) if pairs else []
        for steps, spec, way in pairs:
            report.begin(selection, spec, steps)
            if data is None or way == "out of core":
                data = None  # its memory is wanted
                trained = _train_out_of_core(selection, spec, steps, plan)
            else:
                trained = _train_cell(data, spec, steps, divisions, plan)
            report.end(selection, spec, trained.cell)
            cells.append(trained.cell)
            kept = sorted([*kept, trained], key=lambda item: _rank(item.cell, plan))[:keep]
        del data
    if not cells:
        raise MemoryLimitError(f"memory: no model can train within the limit: {'; '.join(notes)}")
    return sorted(cells, key=lambda cell: _rank(cell, plan)), kept, notes


def _ways(selection: Selection, plan: CellPlan) -> tuple[list[tuple[Steps, ModelSpec, Way]], list[str]]:
    """Give the cells of a selection with how each trains, those in memory first, and notes on those that cannot."""
    pairs: list[tuple[Steps, ModelSpec, Way]] = []
    notes = []
    for steps, spec in product(plan.steps, plan.specs):
        grid = plan.grids.get(spec.name)
        way = selection.way(spec, steps, grid)
        if way == "skipped":
            notes.append(f"skipped: {selection.why_skipped(spec, steps, grid)}")
        else:
            pairs.append((steps, spec, way))
    return sorted(pairs, key=lambda pair: pair[2] != "in memory"), notes


def _outer_fold(cell: Cell, metric: Metric) -> OuterFold:
    score = getattr(cell.evaluation, metric) or 0.0  # undefined, of an outer fold of one number: as an inner one counts
    return OuterFold(cell.columns, str(cell.steps), cell.model, cell.params, cell.best.mean, cell.evaluation, score)


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


def _train_cell(
    data: Dataset, spec: ModelSpec, steps: Steps, divisions: Sequence[Sequence[Fold]], plan: CellPlan
) -> Trained:
    start = time.perf_counter()
    X, y = data.training()
    search = search_cell(X, y, spec, steps, divisions=divisions, plan=plan)
    options = replace(plan.options, steps=steps)
    fitted = fit_model(spec, X, y, value=search.best.point, folds=divisions[0], options=options, found=search.found)
    X_held_out, _ = data.held_out()
    outputs = fitted.outputs(X_held_out)
    out_of_fold = search.outputs(spec, y, options)
    return _trained(data, data.rows, spec, steps, Learned(search, fitted, outputs, out_of_fold), start)


def _train_out_of_core(selection: Selection, spec: ModelSpec, steps: Steps, plan: CellPlan) -> Trained:
    start = time.perf_counter()
    make_folder(plan.scratch)
    with TemporaryDirectory(prefix=".out-of-core-", suffix=".tmp", dir=plan.scratch) as folder:
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


def _evidence(
    feature_set: FeatureSet,
    winner: Trained,
    rows: LabelledRows,
    divisions: Sequence[Sequence[Fold]],
    plan: CellPlan,
    *,
    with_plots: bool,
) -> Evidence:
    spec, columns = rows.task.models[winner.cell.model], [column.name for column in winner.columns]
    selection = Selection(feature_set, columns, rows, divisions, plan.memory)
    if (sample := selection.sample(spec, winner.cell.steps, plan.grids.get(spec.name))) is not None:
        return gather_sampled_evidence(
            *(selection.blocks, rows, read_provenance(feature_set), sample, spec),
            value=winner.cell.best.point,
            folds=divisions[0],
            metric=plan.metric,
            options=replace(plan.options, steps=winner.cell.steps),
            out_of_fold=winner.out_of_fold,
            best=winner.cell.best,
            with_plots=with_plots,
        )
    return gather_evidence(
        selection.load(),
        spec,
        value=winner.cell.best.point,
        folds=divisions[0],
        metric=plan.metric,
        options=replace(plan.options, steps=winner.cell.steps),
        out_of_fold=winner.out_of_fold,
        best=winner.cell.best,
        with_plots=with_plots,
    )


def _rank(cell: Cell, plan: CellPlan) -> tuple[float, int, int, str]:
    return rank_key(
        *(plan.metric, plan.task),
        mean=cell.best.mean,
        n_features=cell.n_features,
        model=cell.model,
        layers=cell.layers,
    )


class _Reporter:
    """Counts cells and tells the caller."""

    def __init__(self, progress: Callable[[Progress], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.outer_fold = 0

    def skip(self, cells: int) -> None:
        self._total -= cells

    def begin(self, data: Selection, spec: ModelSpec, steps: Steps) -> None:
        self._send(data, spec, steps, None)

    def end(self, data: Selection, spec: ModelSpec, cell: Cell) -> None:
        self._done += 1
        log.info("cell %d of %d: %s on %s, %.2f s", self._done, self._total, spec.name, cell.layers, cell.seconds)
        self._send(data, spec, cell.steps, cell)

    def _send(self, data: Selection, spec: ModelSpec, steps: Steps, cell: Cell | None) -> None:
        if self._progress is not None:
            layers = " + ".join(column.name for column in data.columns)
            self._progress(Progress(self._done, self._total, layers, spec.name, steps, cell, self.outer_fold))
