"""How much memory a cell takes: in memory, and at the least out of core. Estimates, on the safe side.

What counts is what training adds to the resident memory of the process, at its peak: rows with their ids and labels,
features and their copies, models, scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .blocks import BlockPlan
from .boosting_out_of_core import LEAST_CUT, LEAST_ROWS, working_bytes
from .linear_out_of_core import COPIES
from .models import ModelSpec
from .settings import grid_points, params_of
from .steps import Steps

__all__ = ["SHARE", "Size", "base_bytes", "in_memory_bytes", "least_bytes", "plan_blocks"]

SHARE = 0.75
"""Part of what the rows leave that is given out: allocators keep some of what is freed."""
ROW_BYTES = 450
"""An image id with its label and its places in lists, tables and splits."""
SCORE_BYTES = 44
"""A training row's score of a class: for the value tried and the best one, as probabilities of three cells, and
in float64 while a metric looks at them."""
HELD_OUT_BYTES = 56
"""The same of a held-out row, in float64."""
BLOCK_SHARE = 0.35
"""Part of the memory that blocks at work may take."""
BLOCK_BYTES = 4 << 20
"""Bytes of a block of features at most: larger ones are no faster."""
FEWEST_ROWS = 32
"""Rows of a block at the least."""


@dataclass(frozen=True)
class Size:
    """How large a selection is."""

    rows: int
    """labelled rows"""
    training: int
    """training rows among them"""
    features: int
    """features of a row"""
    classes: int
    """classes"""
    folds: int
    """folds of the cross-validation"""

    @property
    def columns(self) -> int:
        """Scores of a row."""
        return 1 if self.classes == 2 else self.classes


def base_bytes(size: Size) -> int:
    """Give what the rows take whatever the model: ids, labels, and scores that are kept."""
    held_out = size.rows - size.training
    return size.rows * ROW_BYTES + size.training * size.classes * SCORE_BYTES + held_out * size.classes * HELD_OUT_BYTES


def in_memory_bytes(spec: ModelSpec, size: Size, steps: Steps, grid: Any, threads: int) -> int:
    """Give what a cell takes when all features are in memory, with what is looked at for the report."""
    n, m, D = size.rows, size.training, size.features
    at_work = min(threads, size.folds)
    values = len(grid_points(spec, grid))
    copies = 4 * m * D * (4 + at_work * (2 if spec.name == "xgboost" or steps.pca else 1))
    scores = 4 * m * size.columns * (values + 6 * at_work + 16)
    squares = {"rbf_svm": 3 * at_work * m * m, "knn": 3 * at_work * m * 1024, "ridge": 2 * (size.folds + 2) * D * D}
    wide = 4 * D * D * at_work * (4 if steps.pca or spec.name in {"linear_svm", "xgboost"} else 1)
    few = 48 * m * D * at_work if m < D else 0  # of fewer rows than features a basis is made, in float64
    work = max(copies, 16 * n * D) + few + scores + 4 * squares.get(spec.name, 0) + wide
    return base_bytes(size) + 4 * n * D + work


def least_bytes(spec: ModelSpec, size: Size, steps: Steps, grid: Any) -> int:
    """Give what a cell takes out of core at the least: small blocks, one at a time."""
    D, m = size.features, size.training
    points = [params_of(spec, point) for point in grid_points(spec, grid)]
    blocks = FEWEST_ROWS * _row_bytes(size, 8)
    gram = 9 * D * D
    if spec.name == "xgboost":
        width = min(steps.pca or D, D)
        turned = 4 * D * width * (size.folds + 2) + gram if steps.pca else 0
        depth = int(max(point["max_depth"] for point in points))
        run = working_bytes(m, width, size.classes, depth, LEAST_ROWS, LEAST_CUT)
        work = max(run, turned)
    else:
        width = min(steps.pca or D, D)
        turned = 4 * D * width * (size.folds + 2) + gram if steps.pca else 0
        work = COPIES * 4 * width * size.columns + 12 * D * size.columns + 64 * 8 * D + turned
    return base_bytes(size) + int((blocks + work) / 0.9)


def plan_blocks(left: int, size: Size, itemsize: int, threads: int) -> BlockPlan:
    """Say how many rows are read at once, and how many such blocks are worked on.

    Parameters
    ----------
    left
        Bytes that a model may work with.
    size
        Of the selection.
    itemsize
        Bytes of a stored feature.
    threads
        Cores to use at most.
    """
    of_row, room = _row_bytes(size, 4 + itemsize), BLOCK_SHARE * left
    rows = int(min(room / 2 / of_row, BLOCK_BYTES / (4 * size.features)))
    rows = max(rows, FEWEST_ROWS)
    sums = 12 * size.features * size.columns * size.folds
    return BlockPlan(rows, int(max(1, min(threads, room // (rows * of_row + sums)))))


def _row_bytes(size: Size, item: int) -> int:
    """Give what a row of a block at work takes: as stored, as float32, and its scores for all folds."""
    return size.features * (4 + item) + 24 * size.columns * size.folds
