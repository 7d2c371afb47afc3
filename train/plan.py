"""What cells are trained with, checked before any time is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from .calibration_curves import CurveMethod
from .cells import CellPlan
from .errors import TrainError, UnknownModelError
from .grid_search import Halving
from .metrics import METRICS, Metric
from .models import MODELS, BuildOptions, ClassWeight, ModelSpec, model_spec
from .settings import Grid, check_grid
from .steps import Steps

__all__ = ["check_name", "make_plan"]


def make_plan(
    *,
    models: Sequence[str],
    grids: Mapping[str, Grid] | None,
    steps: Steps | Sequence[Steps],
    class_weight: ClassWeight,
    calibration: CurveMethod | None,
    folds: int,
    repeats: int,
    outer_folds: int,
    halving: Halving,
    seed: int,
    metric: Metric,
) -> CellPlan:
    """Give the plan of a run; parameters are those of ``train_models``.

    Raises
    ------
    TrainError
        When one of them cannot be.
    """
    if metric not in METRICS:
        raise UnknownModelError("metric", metric, METRICS)
    _check_counts(folds, repeats, outer_folds)
    _check_choices(calibration=(calibration, (None, *get_args(CurveMethod))), halving=(halving, get_args(Halving)))
    return CellPlan(
        specs=_specs(models, grids or {}),
        steps=_tried(steps),
        grids=grids or {},
        folds=folds,
        repeats=repeats,
        outer_folds=outer_folds,
        halving=halving,
        metric=metric,
        options=BuildOptions(seed=seed, class_weight=class_weight, calibration=calibration),
    )


def check_name(name: str) -> None:
    """Refuse a name that is no plain folder name."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise TrainError(f"name: bundles need a plain folder name, found {name!r}")


def _specs(models: Sequence[str], grids: Mapping[str, Grid]) -> tuple[ModelSpec, ...]:
    specs = tuple(model_spec(model) for model in dict.fromkeys(models))
    if not specs:
        raise TrainError(f"models: name at least one of {', '.join(MODELS)}")
    for model, grid in grids.items():
        check_grid(model_spec(model), grid)
    return specs


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
