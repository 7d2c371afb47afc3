"""Exports as HDF5: a plain file that holds the values, or a virtual one that shows those of the store's segments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .array import FeatureArray
from .contract import canonical_json
from .copying import digests_of
from .errors import ExportError
from .export_table import Progress, blocks_of_rows
from .names import portable_names
from .places import Places

__all__ = ["MOST_RUNS", "write_hdf5", "write_vds"]

MOST_RUNS = 10_000
"""Runs of consecutive rows that a virtual file may be pieced together from, all columns together. So many take 0.3 s
and 240 MiB to write, and whoever opens a column of them 0.05 s and 70 MiB; HDF5 keeps 24 KiB for each. Irregular
selections of many rows in one piece would be smaller, but to read them takes time by the square of their number: two
minutes for 50,000 rows."""

_COMPATIBLE = ("earliest", "v110")
"""Any HDF5 from 1.10 on, the first that knows virtual datasets, reads what is written."""


def write_hdf5(
    temporaries: Sequence[Path], path: Path, array: FeatureArray, facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write ids, content hashes and a contiguous dataset for each column."""
    with h5py.File(temporaries[0], "w", libver=_COMPATIBLE) as file:
        _write_identity(file, array, facts)
        parts = array.parts()
        datasets = [_create(file, part) for part in parts]
        for rows in blocks_of_rows(array, progress):
            for part, dataset in zip(parts, datasets, strict=True):
                dataset[rows] = part[rows]


def write_vds(
    temporaries: Sequence[Path], path: Path, array: FeatureArray, facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write ids and content hashes, and map each column onto the rows of the segments, in their places.

    Raises
    ------
    ExportError
        When the rows lie too scattered.
    """
    runs = [list(_runs(places)) for places in array.places]
    if (n := sum(map(len, runs))) > MOST_RUNS:
        raise ExportError(
            f"{path}: the rows lie in {n:,} pieces, a virtual file takes {MOST_RUNS:,}; "
            f"merge them by `icecore store compact`, or write hdf5"
        )
    with h5py.File(temporaries[0], "w", libver=_COMPATIBLE) as file:
        _write_identity(file, array, facts)
        for places, pieces in zip(array.places, runs, strict=True):
            _map(file, places, pieces, path)
    progress(len(array), len(array))


def _write_identity(file: h5py.File, array: FeatureArray, facts: Mapping[str, Any]) -> None:
    ids, escaped = portable_names(array.ids)
    for name, value in {**facts, "ids_escaped": escaped}.items():
        file.attrs[name] = canonical_json(value).decode() if isinstance(value, dict) else value
    file.create_dataset("ids", data=ids, shape=(len(ids),), dtype=h5py.string_dtype(), track_times=False)
    content = np.frombuffer(b"".join(digests_of(array.places[0])), dtype=np.uint8).reshape(-1, 32)
    file.create_dataset("content", data=content, track_times=False)
    file.create_group("columns")


def _create(file: h5py.File, part: FeatureArray) -> h5py.Dataset:
    (column,) = part.columns
    kind = part.dtype.newbyteorder("<")
    dataset = file["columns"].create_dataset(column.name, shape=part.shape, dtype=kind, track_times=False)
    dataset.attrs["column"] = canonical_json(column.to_json()).decode()
    return dataset


def _runs(places: Places) -> Iterator[tuple[int, int, int, int]]:
    """Cut the rows into runs that lie one behind the other in one segment: (first row, segment, row there, rows)."""
    if not places.n:
        return
    breaks = np.flatnonzero((np.diff(places.row) != 1) | (np.diff(places.which) != 0)) + 1
    starts = np.append(0, breaks)
    lengths = np.diff(np.append(starts, places.n))
    yield from zip(
        starts.tolist(), places.which[starts].tolist(), places.row[starts].tolist(), lengths.tolist(), strict=True
    )


def _map(file: h5py.File, places: Places, runs: Sequence[tuple[int, int, int, int]], path: Path) -> None:
    column = places.column
    kind = np.dtype(column.dtype).newbyteorder("<")
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_obj_track_times(False)
    layout.set_fill_value(np.array(np.nan, dtype=kind))  # what is shown where a segment is gone: never a number
    sources = [_source(extent.path, path) for extent in places.extents]
    spaces = [h5py.h5s.create_simple((extent.rows, column.width)) for extent in places.extents]
    inner = _literal(f"/columns/{column.name}".encode())
    shown = h5py.h5s.create_simple((places.n, column.width))
    for first, segment, row, rows in runs:
        shown.select_hyperslab((first, 0), (1, 1), block=(rows, column.width))
        spaces[segment].select_hyperslab((row, 0), (1, 1), block=(rows, column.width))
        layout.set_virtual(shown, sources[segment], inner, spaces[segment])
    shown.select_all()
    made = h5py.h5d.create(file["columns"].id, column.name.encode(), h5py.h5t.py_create(kind), shown, layout)
    h5py.Dataset(made).attrs["column"] = canonical_json(column.to_json()).decode()


def _source(segment: Path, path: Path) -> bytes:
    """Name a segment as it is seen from the file's folder, which is where HDF5 looks first."""
    return _literal(os.fsencode(os.path.relpath(segment.resolve(), path.parent.resolve())))


def _literal(name: bytes) -> bytes:
    """Keep HDF5 from taking ``%b`` in a name for a number of a series."""
    return name.replace(b"%", b"%%")
