"""The training job: layers x models from one store, to a leaderboard, bundles and a report.

The winner is chosen by cross-validation on training rows; held-out rows only score what was chosen before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from icecore.store import FeatureStore

from .bundle_write import new_bundle_id, sweep_strays, write_bundle
from .calibration_curves import CurveMethod
from .card import make_card
from .cells import Trained
from .errors import ReportError, TrainError
from .grid_search import Halving
from .labels import LabelSource
from .metrics import Metric
from .models import ClassWeight
from .plan import CellPlan, check_name, make_plan
from .progress import Progress
from .resampling import Comparison, Interval, gaps_between, intervals_of
from .result import RunnerUp, TrainResult
from .row_list import ROWS, pack_rows
from .rows import LabelledRows
from .run import Run, train_cells
from .settings import Grid
from .splits import SplitRule
from .steps import STANDARD, Steps
from .tasks import TaskName

__all__ = ["REPORT", "conclude", "train_models"]

log = logging.getLogger(__name__)

REPORT = "report.html"
"""Name of the report in the winner's bundle."""

Save = Literal["best", "all"]


def train_models(
    store_path: Path | str,
    set_name: str,
    *,
    layers: Sequence[str | Sequence[str]],
    task: TaskName = "classification",
    models: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    version: int | str | None = None,
    grids: Mapping[str, Grid] | None = None,
    steps: Steps | Sequence[Steps] = STANDARD,
    class_weight: ClassWeight = None,
    calibration: CurveMethod | None = None,
    folds: int = 5,
    repeats: int = 1,
    outer_folds: int = 0,
    halving: Halving = "auto",
    seed: int = 0,
    metric: Metric | None = None,
    memory: int | None = None,
    name: str = "default",
    save: Save = "best",
    report: bool = True,
    images: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> TrainResult:
    """Train every model on every set of layers, choose the best by cross-validation, and save it.

    Parameters
    ----------
    store_path
        Folder of the store.
    set_name
        Feature set.
    layers
        Each entry makes one row of cells: a layer, or several joined.
    task
        What the labels are: ``classification``, a class; ``multilabel``, several columns of a CSV that say yes or no;
        ``regression``, a column of numbers. See ``CsvLabels.columns``.
    models
        Names of models; all that the task has by default.
    labels
        Where the labels are; folders named ``SPLIT/LABEL`` by default.
    split
        How to divide the rows; by default as the labels say, or by hash of the id.
    version
        Version or tag of the set to learn from; the latest by default.
    grids
        Values of a model's main setting to try instead of its own, the simplest first, by model; or values of several
        of its settings by name: ``{"rbf_svm": {"C": [1, 10], "gamma_scale": [0.5, 1]}}``.
    steps
        What is done to the features before a model: scaler, norm, components. Of several, each makes cells of its own.
    class_weight
        ``balanced`` weighs classes alike, or the two sides of each label; None rows. Numbers have no classes.
    calibration
        ``sigmoid`` or ``isotonic`` turns every model's scores into probabilities by a curve a class, fitted on
        out-of-fold scores. By default models without probabilities get one temperature, and others keep theirs.
    folds
        Folds of the cross-validation, at least 2.
    repeats
        Divisions into folds; scores are means over all.
    outer_folds
        Folds of a nested cross-validation of the whole search on the training rows, which multiplies the time; 0
        for none.
    halving
        Whether settings that are behind on the first folds are dropped: ``auto`` in grids of more than 24,
        ``always`` or ``never``.
    seed
        Seed of folds and models.
    metric
        What to choose by; by default ``accuracy``, of labels ``macro_f1``, of numbers ``rmse``.
    memory
        Bytes that training may add, at its peak, to the resident memory of the process. Cells that need more learn
        out of core, where their model can (logistic_regression, linear_svm, xgboost), or are skipped with a note. No
        limit by default. It is kept by estimates, on the safe side, not enforced by the system. For classes only.
    name
        Bundles are kept under this name.
    save
        ``best`` saves the winner, ``all`` every cell.
    report
        Whether to write ``report.html`` beside the winner.
    images
        The image folder, for thumbnails of the worst mistakes in the report.
    config
        The resolved configuration, kept in the card.
    progress
        Called before and after each cell.

    Returns
    -------
    TrainResult
        The leaderboard and what was saved. Memory: one matrix of features at a time, scaled copies of its
        training rows, and the models that are to be saved.

    Raises
    ------
    TrainError
        A subclass says what does not fit: labels, split, folds, names, a missing extra.
    ReportError
        When the report cannot be made: after all bundles were written without it. Holds the result.
    icecore.store.StoreError
        When the store, the set or a layer is not there.

    Examples
    --------
    >>> result = train_models("features", "photos", layers=["layer3", "layer4"])  # doctest: +SKIP
    >>> print(result.winner.model, result.winner.evaluation.accuracy)  # doctest: +SKIP
    """
    plan = make_plan(
        task=task,
        models=models,
        grids=grids,
        steps=steps,
        class_weight=class_weight,
        calibration=calibration,
        folds=folds,
        repeats=repeats,
        outer_folds=outer_folds,
        halving=halving,
        seed=seed,
        metric=metric,
        memory=memory,
    )
    _check_run(layers, name, save)
    if report:
        from .report import require_extra

        require_extra()  # before any time is spent
    with FeatureStore.open(store_path) as store:
        folder = store.models_path / name
        sweep_strays(folder)
        plan = replace(plan, scratch=folder)
        run = train_cells(
            store,
            set_name,
            layers,
            plan=plan,
            labels=labels,
            split=split,
            version=version,
            keep_all=save == "all",
            with_plots=report,
            progress=progress,
        )
    saved = run.kept if save == "all" else run.kept[:1]
    return conclude(run, plan, saved, folder=folder, store_path=store_path, report=report, images=images, config=config)


def conclude(
    run: Run,
    plan: CellPlan,
    saved: Sequence[Trained],
    *,
    folder: Path,
    store_path: Path | str,
    report: bool,
    images: Path | str | None,
    config: Mapping[str, Any] | None,
    chosen_among: int | None = None,
    entries: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Write the bundles of a finished run, and the report of its winner; parameters are those of ``train_models``.

    Parameters
    ----------
    run, plan
        What was trained, and how.
    saved
        Cells to make bundles of, best first.
    folder
        Where the bundles go.
    chosen_among
        Number of cells that the winner was chosen from; by default those of the run.
    entries
        What the cards say beside what all cards do.
    """
    seed = plan.options.seed
    result = TrainResult(
        cells=run.cells,
        baseline=run.rows.task.baseline(run.rows.y_train, run.rows.y_held_out, run.rows.classes),
        metric=plan.metric,
        folds=plan.folds,
        repeats=plan.repeats,
        seed=seed,
        class_weight=plan.options.class_weight,
        calibration=plan.options.calibration,
        rows=run.rows,
        provenance=run.provenance,
        predictions=run.kept[0].predictions,
        intervals=tuple(_intervals(item, run.rows, seed) for item in saved),
        runner_up=_runner_up(run.kept, run.rows, seed),
        evidence=run.evidence,
        nested=run.nested,
        notes=run.notes,
        bundles=(),
        report=None,
        chosen_among=len(run.cells) if chosen_among is None else chosen_among,
    )
    bundles = tuple(folder / new_bundle_id() for _ in saved)
    page, failure = _render(result, store_path, bundles[0], images) if report else (b"", None)
    if failure is None:
        return _save(result, saved, bundles, page=page, config=config, entries=entries)
    told = f"the report could not be made ({type(failure).__name__}: {failure})"
    result = replace(result, notes=(*result.notes, told))
    raise ReportError(_save(result, saved, bundles, page=b"", config=config, entries=entries), told) from failure


def _intervals(item: Trained, rows: LabelledRows, seed: int) -> dict[str, Interval | None]:
    y, outputs = item.predictions.y, item.predictions.outputs
    return intervals_of(rows.task.resampled(y, outputs), len(y), groups=rows.held_out_groups, seed=seed)


def _runner_up(kept: Sequence[Trained], rows: LabelledRows, seed: int) -> RunnerUp | None:
    """Compare the winner with the next best cell, on the held-out rows."""
    if len(kept) < 2:
        return None
    first, second = (item.predictions for item in kept[:2])
    task, y = rows.task, first.y
    ours, other = (task.resampled(y, each.outputs) for each in (first, second))
    gaps = gaps_between(ours, other, len(y), groups=rows.held_out_groups, seed=seed)
    only_first, only_second, p_value = task.disagreement(y, first.outputs, second.outputs) or (None, None, None)
    return RunnerUp(kept[1].cell, Comparison(len(y), only_first, only_second, p_value, gaps), task.headlines[0])


def _check_run(layers: Sequence[str | Sequence[str]], name: str, save: str) -> None:
    if isinstance(layers, str) or not layers or not all(layers):
        raise TrainError(f"layers: a list of layers, or of lists of layers to join, found {layers!r}")
    check_name(name)
    if save not in get_args(Save):
        raise TrainError(f"save: {' or '.join(get_args(Save))}, found {save!r}")


def _render(
    result: TrainResult, store: Path | str, bundle: Path, images: Path | str | None
) -> tuple[bytes, Exception | None]:
    """Give the report, or what kept it from being made: the models must not be lost for a page."""
    from .report import render_report

    folder = None if images is None else Path(images)
    try:
        return render_report(result, store=Path(store), bundle=bundle, images=folder).encode("utf-8"), None
    except Exception as exc:  # noqa: BLE001  # it is raised once the bundles are written
        return b"", exc


def _save(
    result: TrainResult,
    kept: Sequence[Trained],
    bundles: tuple[Path, ...],
    *,
    page: bytes,
    config: Mapping[str, Any] | None,
    entries: Mapping[str, Any] | None,
) -> TrainResult:
    """Write bundles and report, the winner last: its bundle is the newest, and it tells that all is there."""
    listed = pack_rows(result.rows)
    for item, path, intervals in reversed(list(zip(kept, bundles, result.intervals, strict=True))):
        write_bundle(
            path,
            steps=item.fitted.steps,
            model=item.fitted.model,
            curves=item.fitted.curves,
            card={**make_card(result, item.cell, item.columns, intervals=intervals, config=config), **(entries or {})},
            extra={ROWS: listed, **({REPORT: page} if page and path == bundles[0] else {})},
        )
        log.info("bundle written: %s", path)
    return replace(result, bundles=bundles, report=bundles[0] / REPORT if page else None)
