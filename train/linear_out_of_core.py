"""Search and fit logistic regression and the linear SVM out of core, ending in scikit-learn's own estimators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .block_task import BlockTask
from .frames import Frame, pca_of, scaler_of
from .linear_blocks import Learner, scaled, scores_in_passes, solve_in_passes
from .linear_guide import Spectrum, leading_spectrum
from .linear_path import DIRECTIONS, Solution
from .linear_search import class_weights, fill_model, kind_of, limits_of, mean_solution, solver_notes
from .models import ModelSpec

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["COPIES", "LinearOutOfCore"]

Floats = NDArray[np.float32]
COPIES = 32
"""Arrays of the size of the coefficients that a descent holds at most: ten pairs of steps, and what it works with."""
GUIDED_BY = 16_384
"""Rows from which the leading directions are found, at most."""
GUIDE_SHARE = 0.3
"""Part of the memory that their sample may take."""


class LinearOutOfCore:
    """One model on one selection of layers."""

    def __init__(self, task: BlockTask, spec: ModelSpec, values: Sequence[Any]) -> None:
        self._task, self._spec, self._values = task, spec, [float(value) for value in values]
        self._model = spec.build(task.options)
        self._found: list[list[Solution]] = []
        steps = task.options.steps
        self._frames = task.frames(steps.pca, whiten=steps.whiten)
        self._spectrum = self._leading()

    def scores(self) -> Iterator[Floats]:
        """Solve for all folds, and give the out-of-fold scores of one value after the other, (m, columns) float32.

        The array is the same each time.
        """
        task = self._task
        folds = range(len(task.folds))
        for group in _groups(folds, self._at_once()):
            self._found += self._solve([self._learner(which) for which in group], self._values)
        yield from scores_in_passes(
            *(task.blocks, task.training, task.part, task.place, self._frames[:-1], self._found)
        )

    def fit(self, which: int) -> tuple[Pipeline, tuple[str, ...]]:
        """Fit on all training rows with one of the values, from the mean of the folds' models."""
        from sklearn.pipeline import Pipeline

        steps = self._task.options.steps
        start = None if steps.pca or not self._found else mean_solution([of_fold[which] for of_fold in self._found])
        [[found]] = self._solve([self._learner(-1, start)], [self._values[which]])
        model = self._model.set_params(**{self._spec.setting: self._values[which]})
        fill_model(model, found, self._task.k)
        before = [("scale", scaler_of(self._frames[-1], steps))]
        if steps.pca:
            before.append(("pca", pca_of(self._frames[-1], steps)))
        return Pipeline([*before, ("model", model)]), solver_notes([found], model)

    def notes(self) -> tuple[str, ...]:
        """Give what a reader should know of the search."""
        return tuple(dict.fromkeys(note for found in self._found for note in solver_notes(found, self._model)))

    def _solve(self, learners: Sequence[Learner], values: Sequence[float]) -> list[list[Solution]]:
        task = self._task
        return solve_in_passes(
            *(task.blocks, task.training, task.rows.y, task.part, learners, kind_of(self._model), values),
            **limits_of(self._model),
        )

    def _learner(self, without: int, start: Solution | None = None) -> Learner:
        task, frame = self._task, self._frames[without]
        kept = task.training[task.part[task.training] != without]
        weights = class_weights(task.rows.y[kept], task.k, task.options)
        return Learner(frame, without, weights, task.counts(without), self._guide(frame), start)

    def _at_once(self) -> int:
        task = self._task
        columns = 1 if task.k == 2 else task.k
        return max(1, int(0.3 * task.left / (COPIES * 4 * columns * self._frames[-1].width)))

    def _guide(self, frame: Frame) -> Spectrum:
        """Give the leading directions of a learner's inputs: of components, the axes themselves."""
        if frame.turn is None:
            whole = self._frames[-1]
            return scaled(self._spectrum, frame.rows / whole.rows)
        assert frame.variance is not None
        spread = np.ones_like(frame.variance) if self._task.options.steps.whiten else frame.variance
        return Spectrum(np.eye(frame.width, dtype=np.float32), (frame.rows * spread).astype(np.float32), 0.0)

    def _leading(self) -> Spectrum:
        """Find them in a sample of all training rows that fits."""
        task, frame = self._task, self._frames[-1]
        D = task.blocks.n_features
        if frame.turn is not None:
            return Spectrum(np.empty((0, 0), np.float32), np.empty(0, np.float32), 0.0)
        room = GUIDE_SHARE * task.left
        count = int(min(len(task.training), GUIDED_BY, max(64, room / (12 * D))))
        rows = task.training[np.linspace(0, len(task.training) - 1, count).astype(np.intp)]
        sample = np.empty((count, D), dtype=np.float32)
        at = 0
        for chunk in task.blocks.chunks(rows):
            Z = task.blocks.read(chunk)
            Z -= frame.shift
            sample[at : at + len(chunk)] = frame.inputs(Z)
            at += len(chunk)
        directions = min(DIRECTIONS[kind_of(self._model)], max(8, count // 4))
        if room < 20 * D * D:  # else it would decompose the whole matrix
            directions = min(directions, (D - 1) // 4)
        return scaled(leading_spectrum(sample, directions), len(task.training) / count)


def _groups(folds: range, at_once: int) -> Iterator[range]:
    for start in range(0, len(folds), at_once):
        yield folds[start : start + at_once]
