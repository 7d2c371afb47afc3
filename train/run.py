"""Train every model on every set of layers: the loop of the job, which saves nothing.

One version of the feature set, one split and one set of folds serve all cells, so that they can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from icecore.store import FeatureSet, FeatureStore

from .cells import Trained, train_cell, train_out_of_core
from .data import Provenance, pin, read_provenance
from .errors import MemoryLimitError
from .evidence import Evidence, gather_evidence
from .folds import Fold
from .labels import LabelSource
from .metrics import Metric
from .models import ModelSpec
from .nested import Nested, OuterFold, nested_score
from .plan import CellPlan
from .progress import Progress, Reporter
from .result import Cell
from .rows import LabelledRows
from .sampled_evidence import gather_sampled_evidence
from .selection import Selection, Way
from .shared import divide, notes_on_copies, notes_on_rows, rank_key, share_rows
from .splits import SplitRule
from .steps import Steps

__all__ = ["Run", "train_cells", "train_rows"]


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
    report = Reporter(progress, len(layers) * len(plan.steps) * len(plan.specs) * (1 + plan.outer_folds))
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
    report: Reporter,
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
                trained = train_out_of_core(selection, spec, steps, plan)
            else:
                trained = train_cell(data, spec, steps, divisions, plan)
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
