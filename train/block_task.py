"""What the models that learn from blocks share: rows, parts, the inputs of each fold, and how much memory there is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, Positions
from .folds import Fold
from .frames import Frame, as_moments, fold_frame, gram_of, moments_by_part, turned_frame
from .models import BuildOptions
from .rows import LabelledRows

__all__ = ["BlockTask"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockTask:
    """A selection of layers to learn from, in the store."""

    blocks: Blocks
    """its rows"""
    rows: LabelledRows
    """labels and split"""
    folds: Sequence[Fold]
    """positions among the training rows"""
    options: BuildOptions
    """seed, class weight and steps"""
    left: int
    """bytes that a model may work with"""
    threads: int
    """cores to use at most"""
    folder: Path
    """where temporary files go; the caller removes it"""

    @cached_property
    def training(self) -> Positions:
        """The training rows, (m,) positions among all labelled rows."""
        return np.flatnonzero(self.rows.train)

    @cached_property
    def place(self) -> NDArray[np.intp]:
        """Where each labelled row stands among the training rows, (n,)."""
        return np.cumsum(self.rows.train) - 1

    @cached_property
    def part(self) -> NDArray[np.intp]:
        """The fold that validates each training row, (n,); after those, a part for rows that none does."""
        part = np.full(len(self.rows.train), len(self.folds), dtype=np.intp)
        for which, (_, test) in enumerate(self.folds):
            part[self.training[test]] = which
        return part

    @property
    def k(self) -> int:
        """Classes."""
        return len(self.rows.classes)

    def counts(self, without: int) -> NDArray[np.int64]:
        """Count the training rows of each class, (k,), without those of a part."""
        kept = self.training[self.part[self.training] != without]
        return np.bincount(self.rows.y[kept], minlength=self.k)

    @cached_property
    def scaled(self) -> tuple[Frame, ...]:
        """What scales the features of each fold, and last of all training rows; one pass."""
        parts = len(self.folds) + 1
        shift, sums = moments_by_part(self.blocks, self.training, self.part, parts)
        whole = as_moments(sums.sum(axis=0))
        kept = [whole.less(as_moments(sums[which])) for which in range(len(self.folds))]
        return tuple(fold_frame(found, shift, self.options.steps) for found in (*kept, whole))

    def frames(self, components: int, *, whiten: bool = False) -> tuple[Frame, ...]:
        """Give the inputs of each fold, and last of all training rows, with so many components; 0 for none.

        Every row goes into one Gram matrix, that of its part; those of the folds are the sum of all less one. Memory:
        two matrices (D, D) float32; those of the parts are kept in files.
        """
        if not components:
            return self.scaled
        whole, paths = self.scaled[-1], []
        total = np.zeros((len(whole.mean), len(whole.mean)), dtype=np.float32)
        with ExitStack() as stack:
            for which in range(len(self.folds) + 1):
                rows = self.training[self.part[self.training] == which]
                gram = gram_of(self.blocks, rows, whole, self.threads)
                total += gram
                paths.append(self.folder / f"gram-{which}.npy")
                stack.callback(paths[-1].unlink)
                np.save(paths[-1], gram)
                del gram
            found = []
            for frame, path in zip(self.scaled, paths, strict=True):
                gram = np.load(path)
                np.subtract(total, 0 if frame is whole else gram, out=gram)
                found.append(turned_frame(frame, gram, whole, components, whiten=whiten))
                del gram
        return tuple(found)
