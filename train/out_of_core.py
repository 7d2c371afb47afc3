"""Train a cell whose features do not fit the memory limit, from blocks of rows that are read again and again.

Cross-validation looks at all training rows, as in memory: nothing is chosen by a sample. What the report shows beside
the scores (map, learning curve, near copies) is of a sample that fits, and says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .block_task import BlockTask
from .blocks import Blocks, Positions
from .boosting_out_of_core import BoostingOutOfCore
from .linear_out_of_core import LinearOutOfCore
from .metrics import Metric, rank_of, sign_of
from .models import ModelSpec
from .out_of_fold import OutOfFold
from .rows import LabelledRows
from .scoring import probabilities_by, score_by_fold
from .search import Fitted, Search, choose_point, with_probabilities
from .settings import Grid, grid_points

__all__ = ["OUT_OF_CORE", "Learned", "learn_out_of_core", "repeated_held_out"]

Floats = NDArray[np.float32]
BLOCK = 4096
"""Rows whose probabilities are found at once."""


class _Learner(Protocol):
    def __init__(self, task: BlockTask, spec: ModelSpec, values: Sequence[Any]) -> None: ...

    def scores(self) -> Iterator[Floats]: ...

    def fit(self, which: int) -> tuple[Any, tuple[str, ...]]: ...

    def notes(self) -> tuple[str, ...]: ...


OUT_OF_CORE: Mapping[str, type[_Learner]] = {
    "logistic_regression": LinearOutOfCore,
    "linear_svm": LinearOutOfCore,
    "xgboost": BoostingOutOfCore,
}
"""The models that can learn from blocks."""


@dataclass(frozen=True)
class Learned:
    """What became of a cell."""

    search: Search
    """the choice of its setting"""
    fitted: Fitted
    """steps and model"""
    outputs: NDArray[np.float64]
    """(n - m, k) probabilities of the held-out rows"""
    out_of_fold: NDArray[np.floating[Any]]
    """(m, k) probabilities of the training rows, each from a model that never saw its fold"""


def learn_out_of_core(
    tasks: Sequence[BlockTask], spec: ModelSpec, *, metric: Metric, grid: Grid | None = None
) -> Learned:
    """Choose a setting by cross-validation on all training rows, fit it, and score the held-out rows, all by blocks.

    Every value of the grid is tried on every fold.

    Parameters
    ----------
    tasks
        The rows and the memory there is, a task a division into folds; the first one's folds calibrate.
    spec
        One of the models of ``OUT_OF_CORE``.
    metric, grid
        As ``search_setting`` takes them.

    Raises
    ------
    DatasetError
        When a feature is not finite.
    """
    task, *repeats = tasks
    values, y, options = grid_points(spec, grid), task.rows.y_train, task.options
    learner = OUT_OF_CORE[spec.name](task, spec, values)
    others = [_table(again, OUT_OF_CORE[spec.name](again, spec, values), spec, metric) for again in repeats]
    elsewhere = np.hstack([np.empty((len(values), 0)), *others])
    found: list[NDArray[np.float64]] = []
    kept, highest = np.empty(0, dtype=np.float32), -np.inf
    for scores, more in zip(learner.scores(), elsewhere, strict=True):
        found.append(np.append(score_by_fold(spec, scores, y, task.folds, metric, options), more))
        rank = rank_of(metric, float(sign_of(metric) * found[-1].mean()))
        if rank > highest:
            kept, highest = scores.copy(), rank
    best, points, notes = choose_point(spec, values, np.array(found), metric)
    pipeline, told = learner.fit(best)
    notes = tuple(dict.fromkeys((*learner.notes(), *notes)))
    fitted = with_probabilities(spec, pipeline, (*learner.notes(), *told), kept, y, options)
    return Learned(
        Search(points[best], points, notes, OutOfFold(kept[None])),
        _with_row_steps(task, fitted),
        _held_out(task, fitted),
        _out_of_fold(spec, kept, task),
    )


def _table(task: BlockTask, learner: _Learner, spec: ModelSpec, metric: Metric) -> NDArray[np.float64]:
    """Score every value on the folds of a further division, (values, folds)."""
    y = task.rows.y_train
    return np.array([score_by_fold(spec, scores, y, task.folds, metric, task.options) for scores in learner.scores()])


def repeated_held_out(blocks: Blocks, rows: LabelledRows) -> tuple[str, ...]:
    """Give held-out images whose features equal those of a training image, as ``Dataset.repeated_held_out`` does.

    Rows are held against each other by 8-byte digests: among a million rows two others agree once in ten million times.
    """
    digests = np.empty(len(rows.train), dtype=np.uint64)

    def digest(chunk: Positions, X: Floats) -> None:
        digests[chunk] = [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big") for row in X]

    for _ in blocks.map(digest, np.arange(len(rows.train))):
        pass
    held_out = np.flatnonzero(~rows.train)
    repeated = np.isin(digests[held_out], digests[rows.train])
    return tuple(rows.ids[i] for i in held_out[repeated].tolist())


def _held_out(task: BlockTask, fitted: Fitted) -> NDArray[np.float64]:
    held_out = np.flatnonzero(~task.rows.train)
    place = np.cumsum(~task.rows.train) - 1
    proba = np.empty((len(held_out), task.k))
    for chunk in task.blocks.chunks(held_out):
        proba[place[chunk]] = fitted.outputs(task.blocks.read(chunk))
    return proba


def _out_of_fold(spec: ModelSpec, scores: Floats, task: BlockTask) -> Floats:
    to_proba = probabilities_by(spec, scores, task.rows.y_train, task.options)
    proba = np.empty((len(scores), task.k), dtype=np.float32)
    for start in range(0, len(proba), BLOCK):
        proba[start : start + BLOCK] = to_proba(scores[start : start + BLOCK])
    return proba


def _with_row_steps(task: BlockTask, fitted: Fitted) -> Fitted:
    """Put what looks at one image at a time, which the blocks did, before the other steps."""
    from sklearn.pipeline import Pipeline

    before = task.options.steps.row_steps()
    if not before:
        return fitted
    few = task.blocks.read(task.training[:1])
    return replace(fitted, steps=Pipeline([*((name, step.fit(few)) for name, step in before), *fitted.steps.steps]))
