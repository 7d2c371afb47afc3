"""What cells are trained with, checked before any time is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from .calibration_curves import CurveMethod
from .errors import TrainError, UnknownModelError
from .grid_search import Halving
from .metrics import Metric
from .models import BuildOptions, ClassWeight, ModelSpec
from .settings import Grid, check_grid
from .steps import Steps
from .tasks import Task, TaskName, task_of

__all__ = ["CellPlan", "check_name", "make_plan"]


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


def make_plan(
    *,
    task: TaskName = "classification",
    models: Sequence[str] | None,
    grids: Mapping[str, Grid] | None,
    steps: Steps | Sequence[Steps],
    class_weight: ClassWeight,
    calibration: CurveMethod | None,
    folds: int,
    repeats: int,
    outer_folds: int,
    halving: Halving,
    seed: int,
    metric: Metric | None,
    memory: int | None = None,
) -> CellPlan:
    """Give the plan of a run; parameters are those of ``train_models``.

    Raises
    ------
    TrainError
        When one of them cannot be.
    """
    learned = task_of(task)
    metric = metric or cast("Metric", learned.metrics[0])
    if metric not in learned.metrics:
        raise UnknownModelError("metric", metric, learned.metrics, task)
    _check_classes_only(learned, class_weight, calibration)
    _check_counts(folds, repeats, outer_folds)
    if memory is not None and task != "classification":
        raise TrainError(f"memory: only classes can be learned within a limit, and this is a {task}; leave it out")
    if memory is not None and memory < 1:
        raise TrainError(f"memory: bytes, at least 1, or None for no limit, found {memory}")
    _check_choices(calibration=(calibration, (None, *get_args(CurveMethod))), halving=(halving, get_args(Halving)))
    return CellPlan(
        specs=_specs(learned, models, grids or {}),
        steps=_tried(steps),
        grids=grids or {},
        folds=folds,
        repeats=repeats,
        outer_folds=outer_folds,
        halving=halving,
        metric=metric,
        task=task,
        options=BuildOptions(seed=seed, class_weight=class_weight, calibration=calibration),
        memory=memory,
    )


def check_name(name: str) -> None:
    """Refuse a name that is no plain folder name."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise TrainError(f"name: bundles need a plain folder name, found {name!r}")


def _specs(task: Task, models: Sequence[str] | None, grids: Mapping[str, Grid]) -> tuple[ModelSpec, ...]:
    """Give the models of these names, all of the task by default; refuse names and grids that it does not have."""
    known = task.models
    named = tuple(known) if models is None else tuple(dict.fromkeys(models))
    if not named:
        raise TrainError(f"models: name at least one of {', '.join(known)}")
    for model in (*named, *grids):
        if model not in known:
            raise UnknownModelError("model", model, tuple(known), task.name)
    for model, grid in grids.items():
        check_grid(known[model], grid)
    return tuple(known[model] for model in named)


def _check_classes_only(task: Task, class_weight: ClassWeight, calibration: CurveMethod | None) -> None:
    """Refuse what only tasks with classes have."""
    if class_weight is not None and not task.weighs_classes:
        raise TrainError(f"class_weight: a {task.name} has no classes to weigh; leave it out, found {class_weight!r}")
    if calibration is not None and not task.has_curves:
        raise TrainError(f"calibration: curves are for classes alone, and this is a {task.name}; leave it out")


def _tried(steps: Steps | Sequence[Steps]) -> tuple[Steps, ...]:
    tried = (steps,) if isinstance(steps, Steps) else tuple(dict.fromkeys(steps))
    if not tried:
        raise TrainError("steps: give at least one Steps(), or leave it out")
    return tried


def _check_counts(folds: int, repeats: int, outer_folds: int) -> None:
    if folds < 2:
        raise TrainError(f"folds: at least 2, found {folds}")
    if repeats < 1:
        raise TrainError(f"repeats: at least 1, found {repeats}")
    if outer_folds < 0 or outer_folds == 1:
        raise TrainError(f"outer_folds: at least 2, or 0 for none, found {outer_folds}")


def _check_choices(**choices: tuple[Any, Sequence[Any]]) -> None:
    for name, (found, known) in choices.items():
        if found not in known:
            raise TrainError(f"{name}: one of {', '.join(map(str, known))}, found {found!r}")
