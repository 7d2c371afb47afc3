"""A selection of layers under a memory limit: which models train in memory, which out of core, and which cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from icecore.store import Column, FeatureSet

from .block_task import BlockTask
from .blocks import Blocks, Positions, open_blocks
from .data import Dataset, read_dataset
from .folds import Fold
from .footprint import SHARE, Size, base_bytes, in_memory_bytes, least_bytes, plan_blocks
from .models import BuildOptions, ModelSpec
from .out_of_core import OUT_OF_CORE, repeated_held_out
from .rows import LabelledRows
from .sampled_evidence import draw_sample
from .settings import Grid
from .solving import usable_threads
from .steps import STANDARD, Steps

__all__ = ["Selection", "Way", "in_words"]

Way = Literal["in memory", "out of core", "skipped"]
SHARES = tuple(0.8**i for i in range(1, 60))
"""Shares of the rows that a sample may have."""


@dataclass(frozen=True)
class Selection:
    """The features of one layer, or of several joined, which may not fit the limit."""

    feature_set: FeatureSet
    """pinned"""
    layers: str | Sequence[str]
    """selectors"""
    rows: LabelledRows
    """labels and split"""
    divisions: Sequence[Sequence[Fold]]
    """divisions of the training rows into folds"""
    memory: int | None
    """bytes that training may add to the process; None for no limit"""

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Columns side by side."""
        selectors = [self.layers] if isinstance(self.layers, str) else self.layers
        return tuple(self.feature_set.resolve(selector) for selector in selectors)

    @cached_property
    def size(self) -> Size:
        """How large it is."""
        width = sum(column.width for column in self.columns)
        return self._size(len(self.rows.ids), int(self.rows.train.sum()), width)

    def way(self, spec: ModelSpec, steps: Steps, grid: Grid | None) -> Way:
        """Say how a model trains on it."""
        if self.memory is None or in_memory_bytes(spec, self.size, steps, grid, usable_threads()) <= self.memory:
            return "in memory"
        if spec.name in OUT_OF_CORE and least_bytes(spec, self.size, steps, grid) <= self.memory:
            return "out of core"
        return "skipped"

    def why_skipped(self, spec: ModelSpec, steps: Steps, grid: Grid | None) -> str:
        """Say why a model cannot train on it within the limit, and with what limit it could."""
        assert self.memory is not None
        needs = in_memory_bytes(spec, self.size, steps, grid, usable_threads())
        told = f"{spec.name} needs some {in_words(needs)} of memory for {self._named}"
        if spec.name in OUT_OF_CORE:
            told += f", or {in_words(least_bytes(spec, self.size, steps, grid))} out of core"
            told += ", and less on fewer components (train.steps.pca)" if spec.name == "xgboost" else ""
        else:
            told += f", and cannot train out of core ({', '.join(OUT_OF_CORE)} can)"
        return f"{told}; the limit is {in_words(self.memory)}"

    def load(self) -> Dataset:
        """Read all of it."""
        return read_dataset(self.feature_set, self.layers, self.rows)

    @cached_property
    def blocks(self) -> Blocks:
        """Its rows, to be read block by block as they are stored."""
        plan = plan_blocks(self._left, self.size, self._itemsize, usable_threads())
        return open_blocks(self.feature_set, self.layers, self.rows, steps=STANDARD, plan=plan)

    def tasks(self, options: BuildOptions, folder: Path) -> list[BlockTask]:
        """Give what a model learns from out of core, one a division; temporary files go to the folder."""
        blocks = replace(self.blocks, steps=options.steps)
        return [
            BlockTask(blocks, self.rows, folds, options, self._left, usable_threads(), folder)
            for folds in self.divisions
        ]

    def repeated_held_out(self) -> tuple[str, ...]:
        """Give held-out images whose features equal those of a training image, found block by block."""
        return repeated_held_out(self.blocks, self.rows)

    def sample(self, spec: ModelSpec, steps: Steps, grid: Grid | None) -> Positions | None:
        """Draw as many rows as can be looked at in memory; None where all can."""
        if self.way(spec, steps, grid) == "in memory":
            return None
        assert self.memory is not None
        size, base = self.size, base_bytes(self.size)
        for share in SHARES:
            few = replace(size, rows=int(size.rows * share) + 1, training=int(size.training * share) + 1)
            needs = base - base_bytes(few) + in_memory_bytes(spec, few, steps, grid, usable_threads())
            if needs <= self.memory:
                break
        return draw_sample(self.rows, self.divisions[0], share)

    @property
    def _left(self) -> int:
        assert self.memory is not None
        return int(SHARE * (self.memory - base_bytes(self.size)))

    @property
    def _itemsize(self) -> int:
        return max(np.dtype(column.dtype).itemsize for column in self.columns)

    @property
    def _named(self) -> str:
        return " + ".join(column.name for column in self.columns)

    def _size(self, rows: int, training: int, width: int) -> Size:
        return Size(rows, training, width, len(self.rows.classes), len(self.divisions[0]))


def in_words(count: int) -> str:
    """Give a number of bytes in MiB."""
    return f"{count / 2**20:,.0f} MiB"
