"""Two generations of features under the same classifiers, on the same rows, and whether the second one is worth it.

Each side is searched by cross-validation on the same training rows and folds; the held-out rows compare what was
chosen. Nothing is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from icecore.store import FeatureStore

from .calibration_curves import CurveMethod
from .compare_cells import describe_side, find_changes, notes_on, pair_cells, pair_runs, train_side
from .compare_rows import compare_rows
from .compare_sides import choose_sides, layers_of_both
from .comparison import GenerationComparison
from .errors import TrainError
from .grid_search import Halving
from .labels import LabelSource
from .metrics import Metric
from .models import ClassWeight
from .plan import make_plan
from .progress import Progress
from .settings import Grid
from .shared import each_layer
from .splits import SplitRule
from .steps import STANDARD, Steps
from .tasks import TaskName, task_of
from .verdict import LEAST_GAIN, judge

__all__ = ["compare_generations", "default_models"]


def compare_generations(
    store_path: Path | str,
    a: str,
    b: str | None = None,
    *,
    layers: Sequence[str | Sequence[str]] = (),
    layers_b: Sequence[str | Sequence[str]] | None = None,
    task: TaskName = "classification",
    models: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    grids: Mapping[str, Grid] | None = None,
    steps: Steps | Sequence[Steps] = STANDARD,
    class_weight: ClassWeight = None,
    calibration: CurveMethod | None = None,
    folds: int = 5,
    repeats: int = 1,
    halving: Halving = "auto",
    seed: int = 0,
    metric: Metric | None = None,
    least_gain: float = LEAST_GAIN,
    progress: Callable[[str, Progress], None] | None = None,
) -> GenerationComparison:
    """Train the same models on both generations, and compare them on the same held-out rows.

    Parameters
    ----------
    store_path
        Folder of the store.
    a, b
        The two sides: a set, ``SET@VERSION``, ``SET@TAG`` or a generation's uuid; by custom ``a`` is frozen and ``b``
        fine-tuned. Without ``b``, ``a`` is a fine-tuned one, and is held against the newest version of the
        generation that it was tuned from.
    layers
        Selections of layers, as ``train_models`` takes them; all columns that both sides have by default.
    layers_b
        Those of the second side, position by position, where its network names them otherwise.
    models
        Names of models; by default one that is fast: ``logistic_regression``, or ``ridge`` for numbers.
    task, labels, split, grids, steps, class_weight, calibration, folds, repeats, halving, seed, metric
        As ``train_models`` takes them.
    least_gain
        Gain in the task's first score, 0 or more, from which the second side is worth it; see ``verdict``.
    progress
        Called before and after each cell with the side's name.

    Returns
    -------
    GenerationComparison
        Every pair of cells, each side's own winner, classes, costs and a verdict. Memory is that of ``train_models``
        with ``save="all"``, one side at a time.

    Raises
    ------
    ComparisonError
        When there is nothing to compare: the same state twice, no layer in common, no parent.
        ``HeldOutDiffersError``, when the held-out images of both sides are not the same files;
        ``HeldOutSeenError``, when a fine-tuning saw one of them, under whichever name.
    TrainError
        As ``train_models``.
    icecore.store.StoreError
        When a store, a state or a layer is not there.

    Examples
    --------
    >>> found = compare_generations("features", "photos@frozen", "photos")  # doctest: +SKIP
    >>> found.verdict.text  # doctest: +SKIP
    """
    if not least_gain >= 0:
        raise TrainError(f"least_gain: 0 or more, found {least_gain!r}")
    plan = make_plan(
        task=task,
        models=models or default_models(task),
        grids=grids,
        steps=steps,
        class_weight=class_weight,
        calibration=calibration,
        folds=folds,
        repeats=repeats,
        outer_folds=0,
        halving=halving,
        seed=seed,
        metric=metric,
    )
    with FeatureStore.open(store_path) as store:
        sides = choose_sides(store, a, b)
        layers_a, theirs, notes = layers_of_both(*sides, layers, layers_b)
        selections = layers_a, theirs
        names = (tuple(dict.fromkeys(each_layer(each))) for each in selections)
        rows, left_out = compare_rows(*sides, *names, labels=labels, split=split, task=task)
        runs = [
            train_side(side, rows, selection, plan=plan, progress=progress)
            for side, selection in zip(sides, selections, strict=True)
        ]
        found = [
            describe_side(store, side, run, selection, rows, plan)
            for side, run, selection in zip(sides, runs, selections, strict=True)
        ]
    winners = pair_cells(runs[0].winner, runs[1].winner, rows, plan)
    classes = find_changes(runs[0].winner, runs[1].winner, rows)
    headline = rows.task.headlines[0]
    verdict = judge(
        winners.comparison,
        headline,
        before=getattr(winners.a.evaluation, headline),
        kept="the frozen features" if sides[1].tunings and not sides[0].tunings else sides[0].name,
        has_groups=rows.groups is not None,
        least_gain=least_gain,
    )
    return GenerationComparison(
        a=found[0],
        b=found[1],
        pairs=tuple(pair_runs(runs, selections, sides, rows, plan)),
        winners=winners,
        classes=classes,
        baseline=rows.task.baseline(rows.y_train, rows.y_held_out, rows.classes),
        verdict=verdict,
        rows=rows,
        left_out=left_out,
        metric=plan.metric,
        folds=plan.folds,
        repeats=plan.repeats,
        seed=seed,
        notes=tuple(notes_on(sides, runs, rows, left_out, classes, notes)),
    )


def default_models(task: TaskName) -> tuple[str, ...]:
    """Give the model that compares where none is named: a linear one, which is fast and leaves it to the features."""
    known = task_of(task).models
    return ("logistic_regression",) if "logistic_regression" in known else ("ridge",)
