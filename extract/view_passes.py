"""Several views of each image through one network: a pass a view, all of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from icecore.store import Column
from icecore.store.contract import FULL
from torch import Tensor

from .views import crop_of, crops_for, is_mirrored

__all__ = ["ViewPasses"]


class ViewPasses:
    """What a pass computes, and how the passes over the views make the columns asked for.

    Parameters
    ----------
    averaged
        Views whose features are averaged; only ``full`` where each column says its own view.
    columns
        What is asked for.
    """

    def __init__(self, averaged: Sequence[str], columns: Sequence[Column]) -> None:
        self._columns = tuple(columns)
        self._averaged = tuple(averaged) if tuple(averaged) != (FULL,) else ()
        own = dict.fromkeys(column.view for column in columns)
        if self._averaged and list(own) != [FULL]:
            raise ValueError(f"features averaged over {', '.join(self._averaged)} have no views {', '.join(own)}")
        self._views = self._averaged or tuple(own)
        self.crops = crops_for(averaged, columns)
        """crops of each image, in the order in which ``run`` takes them"""
        self.computed = tuple(dict.fromkeys(replace(column, view=FULL) for column in columns))
        """what each pass computes"""

    def shape(self, side: int) -> tuple[int, ...]:
        """Give the shape of an image's pixels: (3, side, side), or (crops, 3, side, side)."""
        return (3, side, side) if self.crops == (FULL,) else (len(self.crops), 3, side, side)

    def run(self, forward: Callable[[np.ndarray], Sequence[Tensor]], pixels: np.ndarray) -> list[Tensor]:
        """Compute the columns asked for, in their order.

        Parameters
        ----------
        forward
            From pixels of one view, uint8 (n, 3, S, S), to ``computed``: float32 (rows, D) each.
        pixels
            uint8 (n, 3, S, S) or (n, crops, 3, S, S), as ``shape`` says.
        """
        if not self._averaged:
            found = {view: forward(self._view(pixels, view)) for view in self._views}
            place = {column: index for index, column in enumerate(self.computed)}
            return [found[column.view][place[replace(column, view=FULL)]] for column in self._columns]
        first, *others = self._views
        sums = [rows.clone() for rows in forward(self._view(pixels, first))]
        for view in others:
            for total, rows in zip(sums, forward(self._view(pixels, view)), strict=True):
                total += rows
        return [total / len(self._views) for total in sums]

    def _view(self, pixels: np.ndarray, view: str) -> np.ndarray:
        shown = pixels if self.crops == (FULL,) else pixels[:, self.crops.index(crop_of(view))]  # (n, 3, S, S)
        return shown[..., ::-1] if is_mirrored(view) else shown
