"""How a caller is told where a run is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from .models import ModelSpec
from .result import Cell
from .selection import Selection
from .steps import Steps

__all__ = ["Progress", "Reporter"]

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


class Reporter:
    """Counts cells and tells the caller."""

    def __init__(self, progress: Callable[[Progress], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0
        self.outer_fold = 0

    def skip(self, cells: int) -> None:
        """Count on fewer cells: some cannot be trained."""
        self._total -= cells

    def begin(self, data: Selection, spec: ModelSpec, steps: Steps) -> None:
        """Say that a cell begins."""
        self._send(data, spec, steps, None)

    def end(self, data: Selection, spec: ModelSpec, cell: Cell) -> None:
        """Say that it is finished."""
        self._done += 1
        log.info("cell %d of %d: %s on %s, %.2f s", self._done, self._total, spec.name, cell.layers, cell.seconds)
        self._send(data, spec, cell.steps, cell)

    def _send(self, data: Selection, spec: ModelSpec, steps: Steps, cell: Cell | None) -> None:
        if self._progress is not None:
            layers = " + ".join(column.name for column in data.columns)
            self._progress(Progress(self._done, self._total, layers, spec.name, steps, cell, self.outer_fold))
