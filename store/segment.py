"""Segments: immutable HDF5 files of rows, as FORMAT.md specifies them.

A segment is written in one go under a temporary name and never changed. This module knows one file at a time;
which rows of it are alive is the catalog's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from .contract import Column, Contract, canonical_json
from .errors import StoreDamagedError
from .sink import write_hdf5

__all__ = [
    "BLOCK",
    "COLUMNS",
    "CONTENT",
    "FORMAT",
    "FORMAT_VERSION",
    "IDS",
    "STORED",
    "SegmentHeader",
    "array_checksum",
    "file_checksum",
    "map_column",
    "write_segment",
]

FORMAT = "icecore-segment"
FORMAT_VERSION = 1
ALIGNMENT = 4096
"""Datasets start at multiples of this many bytes, so that a memory map of one is page-aligned."""

BLOCK = 4 << 20
"""Bytes read at a time to check them."""
IDS, CONTENT, COLUMNS = "ids", "content", "columns"
"""Names of the datasets, and of the group that holds one a column."""
STORED: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
"""Name of a stored dtype -> how it lies in the file."""


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment says of itself, without its rows."""

    uuid: str
    """name of the segment, 32 hex digits"""
    set_name: str
    """feature set it belongs to"""
    generation: str
    """generation it belongs to, 32 hex digits"""
    contract: Contract
    """base contract of that generation"""
    columns: tuple[Column, ...]
    """columns it holds, in the order of their names"""
    rows: int
    """number of rows"""
    created: str
    """when it was written, ISO 8601, UTC"""
    versions: Mapping[str, str]
    """library versions that computed it; recorded, not part of the contract"""
    source: Mapping[str, Any]
    """where images and weights came from; recorded, not part of the contract"""


def write_segment(
    path: Path,
    header: SegmentHeader,
    ids: Sequence[bytes],
    content: np.ndarray,
    features: Mapping[Column, np.ndarray | Iterable[np.ndarray]],
) -> dict[Column, int]:
    """Write a whole segment, a block of rows at a time; the caller syncs and renames it.

    Parameters
    ----------
    path
        File to make; one that exists is replaced.
    header
        What to record; ``header.columns`` and ``features`` name the same columns.
    ids
        Image id of each row, without NUL bytes.
    content
        ``(rows, 32)`` uint8, the sha256 of each image file's bytes.
    features
        ``(rows, D)`` of each column, already in its stored dtype: whole, or in ``(k, D)`` blocks, top to bottom.

    Returns
    -------
    dict
        Byte offset of each column's data in the file.
    """

    def build(file: h5py.File) -> dict[Column, int]:
        _write_attributes(file, header)
        _write_array(file, IDS, np.frombuffer(b"".join(i + b"\0" for i in ids), dtype=np.uint8))
        _write_array(file, CONTENT, content)
        group = file.create_group(COLUMNS)
        for column in header.columns:
            given = features[column]
            dataset = _write_blocks(group, column, header.rows, [given] if isinstance(given, np.ndarray) else given)
            dataset.attrs["column"] = _text(column.to_json())
        return {column: int(group[column.name].id.get_offset()) for column in header.columns}

    return write_hdf5(path, build, alignment_threshold=ALIGNMENT, alignment_interval=ALIGNMENT)


def map_column(path: Path, column: Column, rows: int, offset: int) -> np.ndarray:
    """Memory-map one column without opening HDF5: ``(rows, D)`` in its stored dtype, read-only.

    Raises
    ------
    StoreDamagedError
        When the file is missing or shorter than the catalog says.
    """
    try:
        return np.memmap(path, dtype=STORED[column.dtype], mode="r", offset=offset, shape=(rows, column.width))
    except (OSError, ValueError) as exc:
        raise StoreDamagedError(
            f"{path}: segment is missing or cut short ({exc}); `icecore store verify` lists what is damaged"
        ) from exc


def array_checksum(array: np.ndarray) -> str:
    """XXH3-128, in hex, of an array's bytes in C order."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)


def file_checksum(path: Path) -> str:
    """XXH3-128, in hex, of a whole file; 4 MiB at a time."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write_array(group: h5py.Group, name: str, array: np.ndarray) -> h5py.Dataset:
    dataset = group.create_dataset(name, data=array, track_times=False)
    dataset.attrs["xxh3_128"] = array_checksum(array)
    return dataset


def _write_blocks(group: h5py.Group, column: Column, rows: int, blocks: Iterable[np.ndarray]) -> h5py.Dataset:
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte is about to be written
    layout.set_obj_track_times(False)
    space = h5py.h5s.create_simple((rows, column.width))
    kind = h5py.h5t.py_create(STORED[column.dtype])
    dataset = h5py.Dataset(h5py.h5d.create(group.id, column.name.encode(), kind, space, layout))
    digest, top = xxhash.xxh3_128(), 0
    for block in blocks:
        assert block.dtype == STORED[column.dtype]
        block = np.ascontiguousarray(block)
        dataset[top : top + len(block)] = block
        digest.update(block.data)
        top += len(block)
    assert top == rows
    dataset.attrs["xxh3_128"] = digest.hexdigest()
    return dataset


def _write_attributes(file: h5py.File, header: SegmentHeader) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["uuid"] = header.uuid
    file.attrs["set"] = header.set_name
    file.attrs["generation"] = header.generation
    file.attrs["contract"] = _text(header.contract.to_json())
    file.attrs["contract_hash"] = header.contract.hash
    file.attrs["rows"] = header.rows
    file.attrs["created"] = header.created
    file.attrs["versions"] = _text(dict(header.versions))
    file.attrs["source"] = _text(dict(header.source))


def _text(value: Mapping[str, Any]) -> str:
    return canonical_json(value).decode()
