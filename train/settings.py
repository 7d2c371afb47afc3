"""The settings that a search tries: a main one and others beside it, and the grid that they span.

A point of the grid is a number where a model has one setting, and a tuple, the main setting first, where it has more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import TrainError

if TYPE_CHECKING:
    from .models import ModelSpec

__all__ = ["Grid", "Point", "Setting", "check_grid", "grid_points", "params_of"]

Point = float | tuple[float, ...]
"""One setting, or several with the main one first."""
Grid = Sequence[float] | Mapping[str, Sequence[float]]
"""Values of the main setting, or of several settings by name; those not named keep the model's own."""


@dataclass(frozen=True)
class Setting:
    """A hyper-parameter that is searched beside the main one."""

    name: str
    """a parameter of what the model's ``build`` gives, or of its solver"""
    kind: type[int] | type[float]
    """type of its values"""
    grid: tuple[float, ...]
    """values tried by default, the simplest first"""
    default: float
    """the value where a point names the main setting alone"""


def grid_points(spec: ModelSpec, grid: Grid | None = None) -> tuple[Point, ...]:
    """Give every point of a model's grid, the simplest first.

    Parameters
    ----------
    spec
        The model.
    grid
        What to try instead of its own grid.
    """
    named = grid if isinstance(grid, Mapping) else {spec.setting: grid or spec.grid}
    axes = [[kind(value) for value in named.get(name, own)] for name, kind, own in _axes(spec)]
    return tuple(point if spec.also else point[0] for point in product(*axes))


def params_of(spec: ModelSpec, point: Point) -> dict[str, float]:
    """Give a point's values by name, the main setting first; a lone number leaves the others at their defaults."""
    given = point if isinstance(point, tuple) else (point, *(setting.default for setting in spec.also))
    return {name: kind(value) for (name, kind, _), value in zip(_axes(spec), given, strict=True)}


def check_grid(spec: ModelSpec, grid: Any) -> None:
    """Refuse a grid that the model cannot search.

    Raises
    ------
    TrainError
        When it names a setting that the model does not search, or holds no value, or one of the wrong kind.
    """
    if not grid:
        raise TrainError(f"grids: the grid of {spec.name!r} is empty; give values or leave it out")
    kinds = {name: kind for name, kind, _ in _axes(spec)}
    for name, values in grid.items() if isinstance(grid, Mapping) else [(spec.setting, grid)]:
        if name not in kinds:
            raise TrainError(f"grids: {spec.name!r} does not search {name!r}; it searches {', '.join(kinds)}")
        if not values:
            raise TrainError(f"grids: {name} of {spec.name!r} has no values; give some or leave it out")
        what = "a whole number" if kinds[name] is int else "a number"
        for value in values:
            if not (
                isinstance(value, (int, float, np.number)) and 0 < value < math.inf and kinds[name](value) == value
            ):
                raise TrainError(f"grids: {name} of {spec.name!r} must be {what} above 0, found {value!r}")


def _axes(spec: ModelSpec) -> Iterator[tuple[str, type[int] | type[float], tuple[float, ...]]]:
    yield spec.setting, spec.kind, spec.grid
    for setting in spec.also:
        yield setting.name, setting.kind, setting.grid
