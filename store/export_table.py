"""Exports that are one table: ``.npy`` with its ids beside it, and Parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from .array import FeatureArray
from .contract import canonical_json
from .errors import MissingExtraError
from .names import portable_names

__all__ = ["Progress", "blocks_of_rows", "write_npy", "write_parquet"]

Progress = Callable[[int, int], None]
"""called with rows done and rows in all"""

BLOCK = 16 << 20
"""Bytes of rows read and written at a time, and of a Parquet row group: to encode one takes six times as much."""
MOST_ROWS = 1 << 20
"""Rows at a time, however few bytes they are: their ids count too."""


def blocks_of_rows(array: FeatureArray, progress: Progress) -> Iterator[slice]:
    """Cut the rows into pieces of some bytes; each is told as done when the next one is asked for."""
    step = min(max(1, BLOCK // (array.shape[1] * array.dtype.itemsize)), MOST_ROWS)
    for top in range(0, len(array), step):
        part = slice(top, min(top + step, len(array)))
        yield part
        progress(part.stop, len(array))


def write_npy(
    temporaries: Sequence[Path], path: Path, array: FeatureArray, facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write the matrix as NumPy's own format, version 1.0, and what its rows and columns are as JSON."""
    sidecar, matrix = temporaries
    ids, escaped = portable_names(array.ids)
    starts = accumulate((column.width for column in array.columns), initial=0)
    columns = [
        {"name": column.name, "first": first, "width": column.width, "column": column.to_json()}
        for column, first in zip(array.columns, starts, strict=False)
    ]
    told = {**facts, "matrix": path.name, "columns": columns, "ids_escaped": escaped, "ids": ids}
    sidecar.write_text(json.dumps(told), "ascii")
    dtype = array.dtype.newbyteorder("<")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
    with matrix.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in blocks_of_rows(array, progress):
            file.write(np.ascontiguousarray(array[part], dtype=dtype).data)


def write_parquet(
    temporaries: Sequence[Path], path: Path, array: FeatureArray, facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write a column ``id`` and one of fixed-size lists for each column, by row groups."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingExtraError("an export as Parquet", "pyarrow", "arrow") from exc

    parts = array.parts()
    kinds = [pa.list_(pa.from_numpy_dtype(part.dtype), part.shape[1]) for part in parts]
    ids, id_type = _arrow_ids(pa, array.ids)
    fields = [("id", id_type), *((part.columns[0].name, kind) for part, kind in zip(parts, kinds, strict=True))]
    told = {"icecore": canonical_json({**facts, "columns": [column.to_json() for column in array.columns]})}
    schema = pa.schema(fields, metadata=told)
    # Features share neither values nor bytes, but their exponents do: split by byte they shrink by a fifth.
    split = [f"{part.columns[0].name}.list.element" for part in parts]
    with parquet.ParquetWriter(
        temporaries[0], schema, compression="zstd", use_dictionary=False, use_byte_stream_split=split
    ) as writer:
        for rows in blocks_of_rows(array, progress):
            lists = [
                pa.FixedSizeListArray.from_arrays(pa.array(part[rows].reshape(-1)), part.shape[1]) for part in parts
            ]
            writer.write_table(pa.table([pa.array(ids[rows], id_type), *lists], schema=schema))


def _arrow_ids(pa: Any, ids: Sequence[str]) -> tuple[Sequence[str] | Sequence[bytes], Any]:
    """Give ids as strings; where one is not UTF-8, all as the bytes of their file names."""
    if not portable_names(ids)[1]:
        return ids, pa.string()
    return [image_id.encode("utf-8", "surrogateescape") for image_id in ids], pa.binary()
