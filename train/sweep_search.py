"""The search of a sweep: cells found or read again, one selection of layers in memory at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from icecore.store import Column, FeatureSet
from numpy.typing import NDArray

from .cells import search_cell
from .data import read_dataset
from .models import ModelSpec
from .plan import CellPlan
from .rows import LabelledRows
from .search import GridPoint
from .settings import grid_points
from .shared import divide
from .steps import Steps
from .sweep_kept import Kept, digest_of, targets_inputs
from .sweep_layers import Selection
from .sweep_result import LayerScore, SweepCell, found_json
from .transferability import logme

__all__ = ["SweepProgress", "SweepSearch"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepProgress:
    """Where a sweep is: sent before and after each cell, and once when the quick pass is done."""

    done: int
    """cells finished"""
    total: int
    """cells of the sweep"""
    layers: str
    """columns of the current cell, joined; empty when the quick pass is done"""
    model: str
    """model of the current cell"""
    cell: SweepCell | None
    """the finished cell; None when it is about to begin"""
    reused: bool
    """whether it was read from an earlier sweep"""
    quick: tuple[LayerScore, ...]
    """the quick pass, best first; empty until it is done"""


@dataclass(frozen=True)
class _Layer:
    """A selection of layers, known by its values."""

    selection: Selection
    columns: tuple[Column, ...]
    digest: str
    """of the features of the training rows"""

    @property
    def name(self) -> str:
        return " + ".join(column.name for column in self.columns)


class SweepSearch:
    """Finds the cells of a sweep, and counts those that were computed and those that were there."""

    def __init__(
        self,
        feature_set: FeatureSet,
        rows: LabelledRows,
        plan: CellPlan,
        kept: Kept,
        *,
        selections: Sequence[Selection],
        keep: int,
        progress: Callable[[SweepProgress], None] | None,
    ) -> None:
        """Prepare a search; see ``sweep_models`` for what the parameters mean."""
        self.reused = self.computed = 0
        self._set, self._rows, self._plan, self._kept, self._progress = feature_set, rows, plan, kept, progress
        self._selections, self._keep = selections, keep or len(selections)
        self._y = rows.y_train
        self._cheap = rows.task.quick(len(self._y))
        self._divisions = divide(rows, plan)
        parts = (part.astype(np.int64) for folds in self._divisions for fold in folds for part in fold)
        self._targets = targets_inputs(rows.task, self._y)
        self._protocol = {**self._targets, "folds_sha256": digest_of(*parts)}
        further = len(list(self._further()))
        self._done, self._total = 0, len(selections) * len(self._cheap) + min(self._keep, len(selections)) * further
        self._layers: dict[str, _Layer] = {}
        self._quick: tuple[LayerScore, ...] = ()

    def run(self) -> tuple[tuple[LayerScore, ...], tuple[SweepCell, ...]]:
        """Give the quick pass and the leaderboard, each best first."""
        scores: list[LayerScore] = []
        for selection in self._selections:
            layer, score = self._look_at(selection)
            self._layers[layer.name] = layer
            scores.append(score)
        self._quick = self._ranked(scores)
        self._send(None, "", "", reused=False)
        asked = {spec.name for spec in self._plan.specs}
        cells = [cell for score in self._quick for model, cell in score.cells.items() if model in asked]
        for score in self._quick[: self._keep]:
            cells += self._cells(self._layers[score.layers], self._further())
        metric = self._plan.metric
        return self._quick, tuple(sorted(cells, key=lambda cell: cell.rank(metric)))

    def inputs_of(self, cell: SweepCell) -> dict[str, Any]:
        """Give all that decided a cell that was found."""
        return self._inputs(self._layers[cell.layers], cell.spec, cell.steps)

    def _further(self) -> Iterator[tuple[ModelSpec, Steps]]:
        """Give what is searched after the quick pass: all but what that has found."""
        for steps, spec in product(self._plan.steps, self._plan.specs):
            if spec.name not in self._cheap or steps != self._plan.steps[0]:
                yield spec, steps

    def _look_at(self, selection: Selection) -> tuple[_Layer, LayerScore]:
        """Do the quick pass of one selection; its features are let go of with the call."""
        layer, X = self._open(selection)
        cheap = [(self._rows.task.models[name], self._plan.steps[0]) for name in self._cheap]
        cells = {cell.model: cell for cell in self._cells(layer, cheap, X)}
        columns = tuple(column.name for column in layer.columns)
        return layer, LayerScore(columns, X.shape[1], self._logme(layer, X), cells, kept=True)

    def _ranked(self, scores: Sequence[LayerScore]) -> tuple[LayerScore, ...]:
        metric = self._plan.metric
        order = sorted(scores, key=lambda score: (-score.best(metric), -score.logme))
        return tuple(replace(score, kept=place < self._keep) for place, score in enumerate(order))

    def _open(self, selection: Selection) -> tuple[_Layer, NDArray[np.float32]]:
        data = read_dataset(self._set, selection, self._rows)
        X, _ = data.training()
        return _Layer(selection, data.columns, digest_of(X)), X

    def _logme(self, layer: _Layer, X: NDArray[np.float32]) -> float:
        seed = self._plan.options.seed
        inputs = {"what": "logme", "features_sha256": layer.digest, **self._targets, "seed": seed}
        found = self._kept.get(inputs)
        if found is None:
            found = {"logme": logme(X, self._y, task=self._rows.task, seed=seed)}
            self._kept.put(inputs, found)
        return float(found["logme"])

    def _cells(
        self, layer: _Layer, wanted: Iterable[tuple[ModelSpec, Steps]], X: NDArray[np.float32] | None = None
    ) -> list[SweepCell]:
        """Find cells of one selection; its features are read only where one must be computed."""
        cells = []
        for spec, steps in wanted:
            self._send(None, layer.name, spec.name, reused=False)
            inputs = self._inputs(layer, spec, steps)
            found = self._kept.get(inputs)
            reused = found is not None
            if found is None:
                X = self._open(layer.selection)[1] if X is None else X
                found = self._compute(X, spec, steps)
                self._kept.put(inputs, found)
            cell = _cell(layer, spec, steps, found)
            self.reused, self.computed = self.reused + reused, self.computed + (not reused)
            self._done += 1
            log.info("cell %d of %d: %s on %s, %.2f s", self._done, self._total, spec.name, layer.name, cell.seconds)
            self._send(cell, layer.name, spec.name, reused=reused)
            cells.append(cell)
        return cells

    def _compute(self, X: NDArray[np.float32], spec: ModelSpec, steps: Steps) -> dict[str, Any]:
        start = time.perf_counter()
        search = search_cell(X, self._y, spec, steps, divisions=self._divisions, plan=self._plan)
        return found_json(search, time.perf_counter() - start)

    def _inputs(self, layer: _Layer, spec: ModelSpec, steps: Steps) -> dict[str, Any]:
        """Give all that decides a cell; the held-out rows do not."""
        points = grid_points(spec, self._plan.grids.get(spec.name))
        return {
            "what": "cell",
            "set": self._set.name,
            "generation": self._set.generation,
            "columns": [{"name": column.name, "hash": column.hash} for column in layer.columns],
            "features_sha256": layer.digest,
            **self._protocol,
            "metric": self._plan.metric,
            "halving": self._plan.halving,
            "model": spec.name,
            "grid": [list(point) if isinstance(point, tuple) else point for point in points],
            "options": asdict(replace(self._plan.options, steps=steps)),
        }

    def _send(self, cell: SweepCell | None, layers: str, model: str, *, reused: bool) -> None:
        if self._progress is not None:
            self._progress(SweepProgress(self._done, self._total, layers, model, cell, reused, self._quick))


def _cell(layer: _Layer, spec: ModelSpec, steps: Steps, found: dict[str, Any]) -> SweepCell:
    others = [setting.name for setting in spec.also]
    grid = tuple(
        GridPoint(
            point["value"], point["mean"], point["std"], {name: point[name] for name in others}, point.get("folds")
        )
        for point in found["grid"]
    )
    return SweepCell(
        columns=tuple(column.name for column in layer.columns),
        n_features=sum(column.width for column in layer.columns),
        model=spec.name,
        steps=steps,
        setting=spec.setting,
        best=grid[found["best"]],
        grid=grid,
        seconds=found["seconds"],
        notes=tuple(found["notes"]),
        task=spec.task,
    )
