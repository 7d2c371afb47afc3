"""Rows of a store read block by block, in the order of its files, for training in less memory than they take.

Blocks are worked on side by side, and what comes of them is given in their order: sums do not depend on how many cores
there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
from icecore.store import Column, FeatureArray, FeatureSet
from numpy.typing import NDArray

from .data import check_finite
from .errors import DatasetError, first_few
from .rows import LabelledRows
from .steps import Steps

__all__ = ["BlockPlan", "Blocks", "open_blocks"]

Floats = NDArray[np.float32]
Positions = NDArray[np.intp]
T = TypeVar("T")
SPREAD = 4
"""Rows of a file that a block reaches over, in multiples of its own: pages between wanted rows are read too."""


@dataclass(frozen=True)
class BlockPlan:
    """How much is held at once."""

    rows: int
    """rows of a block, at least 1"""
    workers: int
    """blocks worked on at once, at least 1"""


@dataclass(frozen=True)
class Blocks:
    """The features of labelled rows, in the store."""

    array: FeatureArray
    """float32, of one pinned version"""
    places: NDArray[np.int64]
    """(n,) row in ``array`` of each labelled row"""
    rank: NDArray[np.int64]
    """(n,) where each labelled row lies in the files, ascending as the files are read"""
    ids: Sequence[str]
    """n image ids"""
    steps: Steps
    """those that look at one image at a time are done to each block"""
    plan: BlockPlan
    """how much is held at once"""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns side by side."""
        return self.array.columns

    @property
    def n_features(self) -> int:
        """Features of a row."""
        return self.array.shape[1]

    def chunks(self, positions: Positions) -> list[Positions]:
        """Cut labelled rows, (m,) positions, into blocks in the order of the files."""
        order = positions[np.argsort(self.rank[positions], kind="stable")]
        rank, chunks, start = self.rank[order], [], 0
        while start < len(order):
            end = int(np.searchsorted(rank, rank[start] + SPREAD * self.plan.rows))
            stop = min(start + self.plan.rows, max(end, start + 1))
            chunks.append(order[start:stop])
            start = stop
        return chunks

    def read(self, positions: Positions) -> Floats:
        """Read labelled rows: (b, D) float32, new, in this order.

        Raises
        ------
        DatasetError
            When a feature is not finite.
        """
        X = self.array[self.places[positions]]  # (b, D)
        self.array.forget()
        check_finite(X, [self.ids[i] for i in positions], self.columns)
        return self.steps.by_row(X)

    def map(self, work: Callable[[Positions, Floats], T], positions: Positions) -> Iterator[T]:
        """Work on each block of these rows, (positions (b,), features (b, D)), and give the results in order."""

        def read_and_work(chunk: Positions) -> T:
            return work(chunk, self.read(chunk))

        waiting: deque[Future[T]] = deque()
        with _algebra().limit(limits=1), ThreadPoolExecutor(self.plan.workers) as pool:
            for chunk in self.chunks(positions):
                if len(waiting) == self.plan.workers:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(read_and_work, chunk))
            while waiting:
                yield waiting.popleft().result()


@cache
def _algebra() -> Any:
    """Give the hold on the threads of linear algebra; to find its libraries costs milliseconds, and a pass is short."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def open_blocks(
    feature_set: FeatureSet, layers: str | Sequence[str], rows: LabelledRows, *, steps: Steps, plan: BlockPlan
) -> Blocks:
    """Find the features of rows that ``read_rows`` gave for these layers, or for more, of the same pinned set.

    Raises
    ------
    DatasetError
        When a row has no features.
    """
    selectors = [layers] if isinstance(layers, str) else list(layers)
    array = feature_set.array(selectors, dtype="float32", missing="drop")
    first = array.places[0]
    sizes = np.array([extent.rows for extent in first.extents], dtype=np.int64)
    rank = first.row + (np.cumsum(sizes) - sizes)[first.which]
    places = _places(array, rows, feature_set.name)
    return Blocks(array, places, rank[places], rows.ids, steps, plan)


def _places(array: FeatureArray, rows: LabelledRows, set_name: str) -> NDArray[np.int64]:
    ids = array.ids
    if tuple(ids) == rows.ids:
        return np.arange(len(ids), dtype=np.int64)
    place = {image: i for i, image in enumerate(ids)}
    if absent := [image for image in rows.ids if image not in place]:
        raise DatasetError(f"set {set_name!r}: no features of {first_few(absent)}; run `icecore extract` again")
    return np.array([place[image] for image in rows.ids], dtype=np.int64)
