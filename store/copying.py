"""Rows on their way from segments to a new one, some MiB at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .layout import layout_of, read_digests
from .places import Places
from .segment import map_column

__all__ = ["blocks_of", "digests_of"]

BLOCK = 8 << 20
"""Bytes copied at a time."""


def digests_of(places: Places) -> list[bytes]:
    """Give the sha256 digest of the image file of each row, from the segments themselves."""
    digests = [b""] * places.n
    for number, extent in enumerate(places.extents):
        taken = np.flatnonzero(places.which == number)
        if taken.size:
            held = read_digests(extent.path, layout_of(extent.path))
            for at, row in zip(taken.tolist(), places.row[taken].tolist(), strict=True):
                digests[at] = held[row]
    return digests


def blocks_of(places: Places) -> Iterator[np.ndarray]:
    """Yield the rows in their stored dtype, ``(k, D)`` at a time."""
    column = places.column
    maps = [map_column(e.path, column, e.rows, e.offset) for e in places.extents]
    step = max(1, BLOCK // (column.width * np.dtype(column.dtype).itemsize))
    for top in range(0, places.n, step):
        which, row = places.which[top : top + step], places.row[top : top + step]
        block = np.empty((row.size, column.width), dtype=np.dtype(column.dtype).newbyteorder("<"))
        for number in np.unique(which).tolist():
            taken = which == number
            block[taken] = maps[number][row[taken]]
        yield block
