"""What a sweep gives: a cell for each model, with each preprocessing, on each selection of layers, the best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .metrics import Metric, rank_of
from .models import ModelSpec
from .plan import CellPlan
from .result import SearchedCell, intervals_to_json, rows_to_json
from .search import Search
from .settings import params_of
from .shared import rank_key
from .sweep_winner import SweepWinner
from .tasks import Task, TaskName, task_of

__all__ = ["LayerScore", "SweepCell", "SweepResult", "found_json"]


@dataclass(frozen=True, kw_only=True)
class SweepCell(SearchedCell):
    """A cell of a sweep, which has met no held-out row."""

    task: TaskName
    """what is learned"""

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return task_of(self.task).models[self.model]

    @property
    def chosen(self) -> str:
        """The chosen settings in short: those alone of which several values were tried."""
        tried = [params_of(self.spec, point.point) for point in self.grid]
        told = [name for name in self.params if len({point[name] for point in tried}) > 1] or [self.setting]
        return ", ".join(f"{name}={self.params[name]:g}" for name in told)

    def rank(self, metric: Metric) -> tuple[float, int, int, str]:
        """Order of the leaderboard, as ``train_models`` has it."""
        return rank_key(
            *(metric, self.task),
            mean=self.best.mean,
            n_features=self.n_features,
            model=self.model,
            layers=self.layers,
        )


@dataclass(frozen=True)
class LayerScore:
    """What the quick pass found of one selection of layers."""

    columns: tuple[str, ...]
    """column names, joined in this order"""
    n_features: int
    """numbers an image"""
    logme: float
    """log maximum evidence a row and target; see ``transferability``"""
    cells: Mapping[str, SweepCell]
    """the cheap models on it, by name"""
    kept: bool
    """whether it went on to the other models"""

    @property
    def layers(self) -> str:
        """The columns as one text."""
        return " + ".join(self.columns)

    def best(self, metric: Metric) -> float:
        """Score of the better of the cheap models; larger is better, whatever the metric."""
        return max(rank_of(metric, cell.best.mean) for cell in self.cells.values())

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "columns": list(self.columns),
            "n_features": self.n_features,
            "logme": self.logme,
            "cv": {model: cell.best.mean for model, cell in self.cells.items()},
            "kept": self.kept,
        }


@dataclass(frozen=True)
class SweepResult:
    """Outcome of ``sweep_models``."""

    cells: tuple[SweepCell, ...]
    """the leaderboard: best cross-validated score first; ties by fewer features, then by the simpler model"""
    quick: tuple[LayerScore, ...]
    """the quick pass, best first"""
    plan: CellPlan
    """models, preprocessing, folds, metric"""
    trained: SweepWinner
    """the winner, fitted on all training rows and scored on the held-out rows, with its bundle"""
    reused: int
    """cells read from an earlier sweep, those of the quick pass included"""
    computed: int
    """cells computed"""
    notes: tuple[str, ...]
    """what a reader should know of this sweep, beside what is said of the winner's data"""
    folder: Path
    """where the leaderboard is"""
    files: tuple[Path, ...]
    """leaderboard.csv, leaderboard.json and, with a report, leaderboard.html"""

    @property
    def winner(self) -> SweepCell:
        """The cell with the best cross-validated score on the training rows."""
        return self.cells[0]

    @property
    def task(self) -> Task:
        """What was learned."""
        return task_of(self.plan.task)

    def to_json(self) -> dict[str, Any]:
        """Give what a caller prints or keeps, as plain JSON values."""
        trained, options = self.trained, self.plan.options
        return {
            "task": self.plan.task,
            "winner": trained.winner.to_json(),
            "winner_intervals": intervals_to_json(trained.intervals),
            "winner_reused": trained.reused,
            "cells": [cell.to_json() for cell in self.cells],
            "quick": [layer.to_json() for layer in self.quick],
            "baseline": trained.baseline.to_json(),
            "metric": self.plan.metric,
            "folds": self.plan.folds,
            "repeats": self.plan.repeats,
            "calibration": options.calibration,
            "seed": options.seed,
            "class_weight": options.class_weight,
            "classes": list(trained.rows.classes),
            "rows": rows_to_json(trained.rows),
            "set": trained.provenance.set_name,
            "generation": trained.provenance.generation,
            "version": trained.provenance.version,
            "reused": self.reused,
            "computed": self.computed,
            "notes": [*self.notes, *trained.notes],
            "bundles": [str(path) for path in trained.bundles],
            "report": None if trained.report is None else str(trained.report),
            "files": [str(path) for path in self.files],
        }


def found_json(search: Search, seconds: float) -> dict[str, Any]:
    """Give what a search found, to be kept."""
    return {
        "best": search.grid.index(search.best),
        "grid": [point.to_json() for point in search.grid],
        "seconds": seconds,
        "notes": list(search.notes),
    }
