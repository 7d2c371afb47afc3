"""What a segment says of itself and where its arrays lie, as HDF5 tells it; no row is read.

HDF5 may crash, or never come back, on a file in which one byte of its own structures has changed (15 of 12,040 bytes
of a small segment did so with HDF5 2.0). So ``describe`` is for files that are known to be as they were written, by
the checksum of the whole file; all others are described by ``apart``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .contract import Column, Contract
from .errors import StoreDamagedError
from .measure import read_bytes
from .segment import COLUMNS, CONTENT, FORMAT, FORMAT_VERSION, IDS, STORED, SegmentHeader
from .undisturbed import undisturbed

__all__ = ["Layout", "StoredArray", "describe", "layout_of", "parse_layout", "read_digests", "read_ids"]

_CHECKSUM = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class StoredArray:
    """One dataset of a segment."""

    offset: int
    """where its bytes begin in the file"""
    shape: tuple[int, ...]
    """its shape"""
    dtype: str
    """its type, as NumPy writes it: ``<f2``"""
    checksum: str
    """XXH3-128 of its bytes, as stored beside it"""

    @property
    def nbytes(self) -> int:
        """Number of its bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """A segment as it describes itself."""

    header: SegmentHeader
    """what it says of itself"""
    ids: StoredArray
    """image ids, each followed by a NUL byte"""
    content: StoredArray
    """``(rows, 32)`` uint8: content of each row"""
    columns: Mapping[Column, StoredArray]
    """``(rows, D)`` of each column"""


def describe(path: Path) -> dict[str, Any]:
    """Read attributes and places of a segment's arrays as plain JSON values, unchecked; ``parse_layout`` checks them.

    What h5py raises on a file that is no segment is as various as what can be wrong with it.
    """

    def read() -> dict[str, Any]:
        with h5py.File(path, "r", locking=False) as file:
            group = file[COLUMNS]
            arrays = {IDS: file[IDS], CONTENT: file[CONTENT], **{f"{COLUMNS}/{name}": group[name] for name in group}}
            return {
                "attributes": {name: _plain(value) for name, value in file.attrs.items()},
                "arrays": {name: _array(dataset) for name, dataset in arrays.items()},
            }

    return undisturbed(read)


def layout_of(path: Path) -> Layout:
    """Describe a segment that is known to be as it was written.

    Raises
    ------
    StoreDamagedError
        When it is not a segment after all; says why, without the file's name.
    """
    try:
        raw = describe(path)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, AttributeError) as exc:
        raise StoreDamagedError(f"HDF5 cannot read it ({exc})") from exc
    return parse_layout(raw)


def read_ids(path: Path, layout: Layout) -> list[bytes]:
    """Read the image id of each row."""
    return read_bytes(path, layout.ids.offset, layout.ids.nbytes).split(b"\0")[:-1]


def read_digests(path: Path, layout: Layout) -> list[bytes]:
    """Read the content of each row: the sha256 digest of its image file."""
    data = read_bytes(path, layout.content.offset, layout.content.nbytes)
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def parse_layout(raw: Mapping[str, Any]) -> Layout:
    """Check what ``describe`` gave.

    Raises
    ------
    StoreDamagedError
        When it is not a segment as FORMAT.md has it; says why, without the file's name.
    """
    try:
        return _layout(raw["attributes"], raw["arrays"])
    except KeyError as exc:
        raise StoreDamagedError(f"its header has no {exc}") from exc
    except (TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise StoreDamagedError(f"its header is not that of a segment ({exc})") from exc


def _layout(attributes: Mapping[str, Any], arrays: Mapping[str, Any]) -> Layout:
    if (attributes["format"], attributes["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"format {attributes['format']!r}, version {attributes['format_version']!r}")
    contract = Contract.from_json(json.loads(attributes["contract"]))
    if contract.hash != attributes["contract_hash"]:
        raise ValueError("the hash of its contract is another")
    rows = attributes["rows"]
    if not isinstance(rows, int) or rows < 1:
        raise ValueError(f"{rows!r} rows")
    columns = dict(_column(name, array, rows) for name, array in sorted(arrays.items()) if name not in (IDS, CONTENT))
    ids, content = _stored(IDS, arrays[IDS], "|u1"), _stored(CONTENT, arrays[CONTENT], "|u1")
    if len(ids.shape) != 1 or content.shape != (rows, 32):
        raise ValueError(f"ids {ids.shape} and contents {content.shape} for {rows:,} rows")
    header = SegmentHeader(
        uuid=_text(attributes, "uuid"),
        set_name=_text(attributes, "set"),
        generation=_text(attributes, "generation"),
        contract=contract,
        columns=tuple(columns),
        rows=rows,
        created=_text(attributes, "created"),
        versions=json.loads(attributes["versions"]),
        source=json.loads(attributes["source"]),
    )
    return Layout(header, ids, content, columns)


def _column(name: str, array: Mapping[str, Any], rows: int) -> tuple[Column, StoredArray]:
    shape = array["shape"]
    if len(shape) != 2 or shape[0] != rows:
        raise ValueError(f"{name} has shape {tuple(shape)} for {rows:,} rows")
    column = Column.from_json(json.loads(array["column"]), shape[1])
    if name != f"{COLUMNS}/{column.name}":
        raise ValueError(f"{name} is said to be {column.name}")
    return column, _stored(name, array, STORED[column.dtype].str)


def _stored(name: str, array: Mapping[str, Any], dtype: str) -> StoredArray:
    if array["dtype"] != dtype or not isinstance(array["offset"], int) or not _CHECKSUM.fullmatch(array["checksum"]):
        raise ValueError(f"{name} is not stored as contiguous {dtype} with a checksum")
    return StoredArray(array["offset"], tuple(array["shape"]), dtype, array["checksum"])


def _text(attributes: Mapping[str, Any], name: str) -> str:
    value = attributes[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}")
    return value


def _array(dataset: h5py.Dataset) -> dict[str, Any]:
    plain = dataset.chunks is None and dataset.compression is None and dataset.external is None
    return {
        "offset": dataset.id.get_offset() if plain else None,
        "shape": list(dataset.shape),
        "dtype": dataset.dtype.str,
        "checksum": _plain(dataset.attrs["xxh3_128"]),
        "column": _plain(dataset.attrs.get("column")),
    }


def _plain(value: Any) -> Any:
    """Give a value that JSON takes; further attributes that a file may have are of no interest."""
    if isinstance(value, np.integer):
        return int(value)
    return value if isinstance(value, str) else None
