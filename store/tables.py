"""Features as Arrow and pandas tables; those libraries come with ``icecore[arrow]`` and are imported only here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MissingExtraError
from .gather import OpenColumn, gather
from .names import RowNames

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["to_arrow", "to_pandas"]

LONG_STRETCH = 1024
"""Rows a stretch, on average, from which on stretches are worth a chunk each in an Arrow table."""


def to_arrow(columns: Sequence[OpenColumn], names: RowNames, dtype: np.dtype[Any] | None) -> pa.Table:
    """Give a table of ids and columns, each in its stored dtype unless one is given: see ``FeatureArray.to_arrow``."""
    try:
        import pyarrow as pa
    except ImportError as exc:
        raise MissingExtraError("to_arrow", "pyarrow", "arrow") from exc

    def as_lists(chunk: np.ndarray) -> pa.FixedSizeListArray:
        buffers = [None, pa.py_buffer(chunk.reshape(-1))]
        values = pa.Array.from_buffers(pa.from_numpy_dtype(chunk.dtype), chunk.size, buffers)
        return pa.FixedSizeListArray.from_arrays(values, chunk.shape[1])

    ids = _id_array(pa, names.ids)
    lists = [pa.chunked_array([as_lists(chunk) for chunk in _chunks(column, dtype)]) for column in columns]
    return pa.table([ids, *lists], names=["id", *(column.places.column.name for column in columns)])


def to_pandas(columns: Sequence[OpenColumn], names: RowNames, dtype: np.dtype[Any]) -> pd.DataFrame:
    """Give a frame of the features, with the ids as index: see ``FeatureArray.to_pandas``."""
    try:
        import pandas as pd
    except ImportError as exc:
        raise MissingExtraError("to_pandas", "pandas", "arrow") from exc

    # Plain objects: pandas' own strings must be UTF-8, which file names need not be.
    index = pd.Index(names.ids, dtype=object, name="id")
    labels = [f"{c.places.column.name}/{number}" for c in columns for number in range(c.places.column.width)]
    return pd.DataFrame(gather(columns, slice(None), dtype), index=index, columns=labels, copy=False)


def _id_array(pa: Any, ids: Sequence[str]) -> Any:
    try:
        return pa.array(ids, pa.string())
    except UnicodeEncodeError:
        return pa.array([image_id.encode("utf-8", "surrogateescape") for image_id in ids], pa.binary())


def _chunks(column: OpenColumn, dtype: np.dtype[Any] | None) -> list[np.ndarray]:
    """Give ``(k, D)`` pieces: views of the memory maps where rows lie in long stretches, else one copy."""
    which, rows = column.places.which, column.places.row
    stored = np.dtype(column.places.column.dtype)
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(which) != 0)) + 1
    in_stretches = column.places.is_whole or (breaks.size + 1) * LONG_STRETCH <= rows.size
    if dtype not in (None, stored) or not in_stretches:
        return [gather([column], slice(None), stored if dtype is None else dtype)]
    return [
        column.maps[which[start]].array[rows[start] : rows[start] + stop - start]
        for start, stop in pairwise([0, *breaks.tolist(), rows.size])
    ]
