"""Read a segment file's bytes once, without HDF5: its checksum, its columns' checksums, values that are not finite.

Where each column's data lies comes from the catalog, so that nothing in a damaged file has to be understood. That a
column's bytes are as they were written is then proven by their checksum, which stands in the file as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from .contract import Column
from .segment import BLOCK, STORED

__all__ = ["Extents", "Measured", "OnBytes", "find_texts", "measure", "read_bytes"]

_EXPONENTS: dict[str, tuple[np.dtype[Any], int]] = {
    "float16": (np.dtype("<u2"), 0x7C00),
    "float32": (np.dtype("<u4"), 0x7F800000),
}
"""Integers to see a dtype's values as, and the bits that are all set in infinities and NaN only."""
TEXT = 32
"""Characters of a checksum or uuid."""

OnBytes = Callable[[int], None]
"""Told the number of bytes read since the last call."""


@dataclass(frozen=True)
class Extents:
    """Where the data of a segment's columns lies."""

    rows: int
    """rows of the segment"""
    offsets: Mapping[Column, int]
    """where each column begins"""

    def pieces(self, size: int) -> Iterator[tuple[int, int, Column | None]]:
        """Cut a file into columns and what lies between, as (start, stop, column); what cannot be lies between."""
        at = 0
        for offset, column in sorted(((o, c) for c, o in self.offsets.items()), key=lambda item: item[0]):
            stop = offset + self.rows * _row_bytes(column)
            if at <= offset and stop <= size:
                yield at, offset, None
                yield offset, stop, column
                at = stop
        yield at, size, None


@dataclass(frozen=True)
class Measured:
    """What was read."""

    size: int
    """bytes of the file"""
    checksum: str
    """XXH3-128 of the file"""
    columns: Mapping[Column, str]
    """XXH3-128 of each column's data; a column that does not lie within the file is left out"""
    not_finite: Mapping[Column, int]
    """first row of each column that has an infinity or NaN"""


def measure(path: Path, extents: Extents, on_bytes: OnBytes) -> Measured:
    """Read a file from end to end, some MiB at a time."""
    whole, digests, not_finite = xxhash.xxh3_128(), {}, {}
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        for start, stop, column in extents.pieces(size):
            part, at = xxhash.xxh3_128(), start
            for block in _blocks(file, stop - start):
                on_bytes(len(block))
                whole.update(block)
                if column is not None:
                    part.update(block)
                    if column not in not_finite and (found := _first_not_finite(block, column)) is not None:
                        not_finite[column] = (at - start + found) // _row_bytes(column)
                at += len(block)
            if column is not None:
                digests[column] = part.hexdigest()
    return Measured(size, whole.hexdigest(), digests, not_finite)


def find_texts(path: Path, extents: Extents, size: int, texts: Sequence[str]) -> set[str]:
    """Find which texts of 32 characters stand somewhere outside the columns' data."""
    found: set[str] = set()
    with path.open("rb", buffering=0) as file:
        for start, stop, column in extents.pieces(size):
            if column is None:
                for at in range(start, stop, BLOCK):
                    first = max(start, at - TEXT + 1)  # a text may begin in the block before
                    file.seek(first)
                    block = b"".join(bytes(part) for part in _blocks(file, min(stop, at + BLOCK) - first))
                    found.update(text for text in texts if text.encode() in block)
    return found


def read_bytes(path: Path, offset: int, nbytes: int) -> bytes:
    """Read some bytes of a file; fewer where it ends before."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return b"".join(bytes(block) for block in _blocks(file, nbytes))


def _blocks(file: FileIO, nbytes: int) -> Iterator[memoryview]:
    """Read on, in blocks that are full but for the last; each is overwritten by the next."""
    buffer = memoryview(bytearray(min(BLOCK, nbytes)))
    while nbytes > 0:
        wanted, done = min(len(buffer), nbytes), 0
        while done < wanted and (n := file.readinto(buffer[done:wanted])):
            done += n
        if not done:
            return
        yield buffer[:done]
        nbytes -= done


def _first_not_finite(block: memoryview, column: Column) -> int | None:
    """Give where in a block of values the first infinity or NaN is, in bytes."""
    kind, mask = _EXPONENTS[column.dtype]
    values = np.frombuffer(block[: len(block) // kind.itemsize * kind.itemsize], dtype=kind)
    wrong = (values & mask) == mask
    return int(wrong.argmax()) * kind.itemsize if wrong.any() else None


def _row_bytes(column: Column) -> int:
    return column.width * STORED[column.dtype].itemsize
