"""Logistic regression and the linear SVM on rows that are read block by block: all folds in the same passes.

A pass gives every descent under way the gradient at the point that it asks for, and needs no memory that grows with the
rows: scores are made and used within a block. The folds' paths of C, and each class of the SVM, descend on their own
(limited-memory BFGS, as ``linear_descent`` has it, with a pass for each length that a line search tries) and ask again
until all are done. A fold's model is that of its training rows alone; only the guess of the inverse Hessian, which
changes the way and not the end, comes from a sample of all training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, Positions
from .frames import Frame
from .linear_descent import FLATTENED, TRIALS, StepMemory, next_length
from .linear_guide import Spectrum
from .linear_losses import Floats, Logistic, Loss, Softmax, SquaredHinge
from .linear_path import HINGE_SLACK, LEAST_CURVATURE, Kind, Solution

__all__ = ["Learner", "scaled", "scores_in_passes", "solve_in_passes"]


@dataclass(frozen=True)
class Learner:
    """A set of training rows and what makes inputs of them: one fold, or all rows."""

    frame: Frame
    """made of its training rows"""
    without: int
    """part of the rows that it does not learn from; -1 for none"""
    weights: NDArray[np.float64]
    """(k,) weight of each class"""
    counts: NDArray[np.int64]
    """(k,) its training rows of each class"""
    spectrum: Spectrum
    """leading directions of its inputs' Gram matrix"""
    start: Solution | None = None
    """where to begin"""


@dataclass(frozen=True)
class _Asked:
    """A point at which a descent wants the gradient of its loss."""

    learner: int
    """whose rows"""
    column: int | None
    """class of the SVM; None for all columns at once"""
    theta: Floats
    """(width + 1, c), the intercepts in the last row"""


@dataclass(frozen=True)
class _Told:
    """What a pass found there."""

    gradient: Floats
    """(width + 1, c) of the loss alone"""
    curvature: Floats
    """(c,) mean second derivative over the rows"""


_Found = tuple[int, Floats, int, bool]
_Descent = Generator[Floats, _Told, list[_Found]]


def solve_in_passes(
    blocks: Blocks,
    positions: Positions,
    y: NDArray[np.int64],
    part: NDArray[np.intp],
    learners: Sequence[Learner],
    kind: Kind,
    values: Sequence[float],
    *,
    tol: float,
    max_iter: int,
) -> list[list[Solution]]:
    """Solve for each learner and value of C what ``solve_path`` solves in memory, to the same tolerance.

    Parameters
    ----------
    blocks, positions
        The training rows of all learners.
    y : (n,) int
        Classes of all labelled rows.
    part : (n,) int
        Part of each labelled row.
    learners
        Each has a descent of its own, or one a class.
    kind, values, tol, max_iter
        As ``solve_path`` takes them.

    Returns
    -------
    list of list of Solution
        Of inputs; a list a learner, in the order of ``values``. Memory: some thirty times the coefficients of all
        learners, and the blocks at work.
    """
    k = len(learners[0].weights)
    columns: list[int | None] = [None] if kind == "logistic" or k == 2 else list(range(k))
    asked: dict[tuple[int, int | None], tuple[_Descent, Floats]] = {}
    found: dict[tuple[int, int | None], list[_Found]] = {}
    for i, learner in enumerate(learners):
        for column in columns:
            descent = _path(learner, kind, column, values, tol=tol, max_iter=max_iter)
            asked[i, column] = descent, next(descent)
    one_pass = _Pass(blocks, positions, y, part, learners, kind)
    while asked:
        told = one_pass([_Asked(i, column, theta) for (i, column), (_, theta) in asked.items()])
        for key, answer in zip(list(asked), told, strict=True):
            descent, _ = asked[key]
            try:
                asked[key] = descent, descent.send(answer)
            except StopIteration as done:
                found[key] = done.value
                del asked[key]
    return [[_solution(found, i, columns, at) for at in range(len(values))] for i in range(len(learners))]


def _solution(
    found: Mapping[tuple[int, int | None], list[_Found]], i: int, columns: Sequence[int | None], at: int
) -> Solution:
    """Put the columns of a learner together."""
    parts = [next(one for one in found[i, column] if one[0] == at) for column in columns]
    theta = np.hstack([one[1] for one in parts])
    return Solution(theta[:-1], theta[-1], max(one[2] for one in parts), all(one[3] for one in parts))


def _path(
    learner: Learner, kind: Kind, column: int | None, values: Sequence[float], *, tol: float, max_iter: int
) -> _Descent:
    """Descend for each value, the strongest penalty first: asks for gradients, gives what it found."""
    k = len(learner.weights)
    c = k if kind == "logistic" and k > 2 else 1
    theta = np.zeros((learner.frame.width + 1, c), dtype=np.float32)
    told = yield theta
    finished = _finish(learner, kind, column, told, tol)
    if learner.start is not None:
        which = slice(None) if column is None else slice(column, column + 1)
        theta = np.vstack((learner.start.coef[:, which], learner.start.intercept[which]))
        told = yield theta
    found: list[_Found] = []
    for at in np.argsort(values, kind="stable").tolist():
        penalty = np.full((len(theta), 1), 1 / values[at], dtype=np.float32)
        if kind == "logistic":
            penalty[-1] = 0
        guide = _guide(learner, penalty, told.curvature)
        theta, told, steps, converged = yield from _minimise(theta, told, penalty, guide, finished, max_iter)
        if kind == "logistic" and c > 1:  # what all classes share changes no probability
            found.append((at, theta - theta.mean(axis=1, keepdims=True), steps, converged))
        else:
            found.append((at, theta, steps, converged))
    return found


def _minimise(
    theta: Floats,
    told: _Told,
    penalty: Floats,
    guide: Callable[[Floats], Floats],
    finished: Callable[[Floats], bool],
    max_iter: int,
) -> Generator[Floats, _Told, tuple[Floats, _Told, int, bool]]:
    """Go on to the minimum of the loss + sum of penalty * theta ** 2 / 2."""
    memory = StepMemory(coupled=True)
    gradient = told.gradient + penalty * theta
    for iteration in range(max_iter):
        if finished(gradient):
            return theta, told, iteration, True
        step = -memory.apply(gradient, guide)
        first = np.float32(np.vdot(gradient, step))
        low, low_slope, high, high_slope = np.float32(0), first, np.float32(np.inf), np.float32(1)
        length = np.float32(1)
        for trial in range(1, TRIALS + 1):
            moved = theta + length * step
            told = yield moved
            changed = told.gradient + penalty * moved
            slope = np.float32(np.vdot(changed, step))
            if abs(slope) <= FLATTENED * abs(first) or trial == TRIALS:
                break
            if slope < 0:
                low, low_slope = length, slope
            else:
                high, high_slope = length, slope
            length = np.float32(next_length(*map(np.asarray, (low, low_slope, high, high_slope, first))))
        memory.add(moved - theta, changed - gradient)
        theta, gradient = moved, changed
    return theta, told, max_iter, finished(gradient)


def _guide(learner: Learner, penalty: Floats, curvature: Floats) -> Callable[[Floats], Floats]:
    bounded = np.maximum(curvature, LEAST_CURVATURE)

    def apply(gradient: Floats) -> Floats:
        inner = learner.spectrum.solve(gradient[:-1], bounded, float(penalty[0, 0]))
        return np.vstack((inner, gradient[-1:] / (bounded * learner.frame.rows + penalty[-1])))

    return apply


def _finish(learner: Learner, kind: Kind, column: int | None, first: _Told, tol: float) -> Callable[[Floats], bool]:
    """Say when a gradient is small enough, as ``linear_path`` does; ``first`` is the loss's at zero."""
    if kind == "logistic":
        limit = tol * float(learner.weights @ learner.counts)
        return lambda gradient: float(np.abs(gradient).max()) <= limit
    m = learner.frame.rows
    positive = int(learner.counts[-1 if column is None else column])
    rare = min(positive, m - positive) / m
    limit = tol * min(HINGE_SLACK * rare, 1) * float(np.linalg.norm(first.gradient))
    return lambda gradient: float(np.linalg.norm(gradient)) <= limit


class _Pass:
    """One look at all rows, which serves all descents under way."""

    def __init__(
        self,
        blocks: Blocks,
        positions: Positions,
        y: NDArray[np.int64],
        part: NDArray[np.intp],
        learners: Sequence[Learner],
        kind: Kind,
    ) -> None:
        self._blocks, self._positions, self._y, self._part = blocks, positions, y, part
        self._learners, self._kind = learners, kind

    def __call__(self, asked: Sequence[_Asked]) -> list[_Told]:
        ends = np.cumsum([one.theta.shape[1] for one in asked]).tolist()
        columns = [slice(end - one.theta.shape[1], end) for one, end in zip(asked, ends, strict=True)]
        outward = [self._learners[one.learner].frame.outward(one.theta[:-1], one.theta[-1]) for one in asked]
        W, b = np.hstack([coef for coef, _ in outward]), np.concatenate([intercept for _, intercept in outward])
        shift = self._learners[0].frame.shift

        def look(chunk: Positions, Z: Floats) -> tuple[Floats, NDArray[np.float64], NDArray[np.float64]]:
            Z -= shift
            scores = Z @ W  # (rows, columns of all)
            scores += b
            slopes, bends = np.empty_like(scores), np.empty(len(b))
            for one, which in zip(asked, columns, strict=True):
                loss = self._loss(one, chunk)
                slopes[:, which] = loss.slopes(scores[:, which])
                bends[which] = loss.curvature(scores[:, which]).astype(np.float64) * len(chunk)
            return slopes.T @ Z, slopes.sum(axis=0, dtype=np.float64), bends

        gradient, sums, bends = np.zeros((len(b), len(shift))), np.zeros(len(b)), np.zeros(len(b))
        for part_gradient, part_sums, part_bends in self._blocks.map(look, self._positions):
            gradient += part_gradient
            sums += part_sums
            bends += part_bends
        return [
            self._told(one, gradient[which].T, sums[which], bends[which])
            for one, which in zip(asked, columns, strict=True)
        ]

    def _told(
        self, one: _Asked, gradient: NDArray[np.float64], sums: NDArray[np.float64], bends: NDArray[np.float64]
    ) -> _Told:
        frame = self._learners[one.learner].frame
        whole = np.vstack((frame.inward(gradient, sums), sums.astype(np.float32)))
        return _Told(whole, (bends / frame.rows).astype(np.float32))

    def _loss(self, one: _Asked, chunk: Positions) -> Loss:
        """Give the loss of a block's rows; those that the learner does not learn from weigh nothing."""
        learner, y = self._learners[one.learner], self._y[chunk]
        inside = self._part[chunk] != learner.without
        by_row = (learner.weights[y] * inside).astype(np.float32)
        k = len(learner.weights)
        if self._kind == "logistic":
            return Logistic(y, by_row) if k == 2 else Softmax(y, by_row, k)
        if k == 2:
            return SquaredHinge((2 * y - 1).astype(np.float32)[:, None], by_row[:, None])
        is_class = y == one.column
        weights = np.where(is_class, by_row, inside).astype(np.float32)
        return SquaredHinge(np.where(is_class, 1, -1).astype(np.float32)[:, None], weights[:, None])


def scores_in_passes(
    blocks: Blocks,
    positions: Positions,
    part: NDArray[np.intp],
    place: NDArray[np.intp],
    frames: Sequence[Frame],
    solutions: Sequence[Sequence[Solution]],
) -> Iterator[Floats]:
    """Score each row by the fold that did not learn from it, one value of C after the other.

    Parameters
    ----------
    blocks, positions, part
        The training rows and the part that each is in.
    place : (n,) int
        Where each labelled row stands among the training rows.
    frames, solutions
        Of each part's fold; its solutions in the order of the values.

    Yields
    ------
    (m, columns) float32
        The same array, filled anew.
    """
    scores = np.empty((len(positions), len(solutions[0][0].intercept)), dtype=np.float32)
    for at in range(len(solutions[0])):
        outward = [
            frame.outward(of_fold[at].coef, of_fold[at].intercept)
            for frame, of_fold in zip(frames, solutions, strict=True)
        ]

        def score(chunk: Positions, Z: Floats, outward: list[tuple[Floats, Floats]] = outward) -> None:
            Z -= frames[0].shift
            for which in np.unique(part[chunk]).tolist():
                rows = part[chunk] == which
                W, b = outward[which]
                scores[place[chunk[rows]]] = Z[rows] @ W + b

        for _ in blocks.map(score, positions):
            pass
        yield scores


def scaled(spectrum: Spectrum, factor: float) -> Spectrum:
    """Give the spectrum of so many times as many rows."""
    return replace(spectrum, values=(spectrum.values * factor).astype(np.float32), rest=spectrum.rest * factor)
