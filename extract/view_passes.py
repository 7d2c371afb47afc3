"""Several views of each image through one network: a pass a view, all of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

import numpy as np
from icecore.store import Column
from icecore.store.contract import FULL

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
        """crops of each image, in the order in which ``start`` takes them"""
        self.computed = tuple(dict.fromkeys(replace(column, view=FULL) for column in columns))
        """what each pass computes"""

    def shape(self, side: int) -> tuple[int, ...]:
        """Give the shape of an image's pixels: (3, side, side), or (crops, 3, side, side)."""
        return (3, side, side) if self.crops == (FULL,) else (len(self.crops), 3, side, side)

    def start(
        self, begin: Callable[[np.ndarray], Callable[[], list[np.ndarray]]], pixels: np.ndarray
    ) -> Callable[[], list[np.ndarray]]:
        """Begin a pass for each view; what is given waits for them and makes the columns asked for, in their order.

        Parameters
        ----------
        begin
            Begins a pass over pixels of one view, uint8 (n, 3, S, S); what it gives waits for ``computed``: float32
            (n, D) each.
        pixels
            uint8 (n, 3, S, S) or (n, crops, 3, S, S), as ``shape`` says.
        """
        waits = [begin(self._view(pixels, view)) for view in self._views]
        return lambda: self._combined([wait() for wait in waits])

    def _combined(self, found: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
        if self._averaged:
            count = np.float32(len(found))
            return [reduce(np.add, rows) / count for rows in zip(*found, strict=True)]
        of_view = dict(zip(self._views, found, strict=True))
        place = {column: index for index, column in enumerate(self.computed)}
        return [of_view[column.view][place[replace(column, view=FULL)]] for column in self._columns]

    def _view(self, pixels: np.ndarray, view: str) -> np.ndarray:
        shown = pixels if self.crops == (FULL,) else pixels[:, self.crops.index(crop_of(view))]  # (n, 3, S, S)
        return shown[..., ::-1] if is_mirrored(view) else shown
