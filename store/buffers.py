"""What a writer holds between two commits: rows, links, failures and removals, one verdict an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .contract import Column
from .scan import SourceImage

__all__ = ["NONE", "Block", "Buffers", "Failed", "Row", "cast_rows", "require_shapes"]

NONE: frozenset[Column] = frozenset()
"""No columns."""


class Row(NamedTuple):
    """An image that has features."""

    key: bytes
    """its id, as stored"""
    image: SourceImage
    """the image"""
    content: bytes
    """sha256 digest of its bytes"""


class Failed(NamedTuple):
    """An image that gave none."""

    image: SourceImage
    """the image"""
    kind: str
    """class of the failure: read, decode, too-large, unsupported, value, transient"""
    reason: str
    """what was found"""


@dataclass(frozen=True)
class Block:
    """Vectors that came together."""

    rows: list[Row]
    """the first image of each content"""
    features: Mapping[Column, np.ndarray]
    """``(n, D)`` of each column, in its stored dtype"""

    def select(self, kept: list[int]) -> Block:
        """Give some of its rows."""
        return Block([self.rows[i] for i in kept], {column: X[kept] for column, X in self.features.items()})


class Buffers:
    """Rows not yet committed. The last word on an image counts; a content is stored once a column."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.failures: dict[bytes, Failed] = {}
        self.gone: set[bytes] = set()
        self.refusals: dict[bytes, dict[Column, str]] = {}
        self.bytes = 0
        self._blocks: list[Block] = []
        self._columns: dict[bytes, frozenset[Column]] = {}

    @property
    def entries(self) -> int:
        """Images with a verdict."""
        return len(self.rows) + len(self.failures)

    def enter(self, rows: Sequence[Row]) -> None:
        """Take images that have features, here or in the store."""
        for row in rows:
            self.rows[row.key] = row
            if self.failures:
                self.failures.pop(row.key, None)
            if self.gone:
                self.gone.discard(row.key)

    def add(self, block: Block) -> None:
        """Take vectors that their contents lacked."""
        self._blocks.append(block)
        columns = frozenset(block.features)
        for row in block.rows:
            before = self._columns.get(row.content)
            self._columns[row.content] = columns if before is None else before | columns
        self.bytes += sum(X.nbytes for X in block.features.values())

    def refuse(self, content: bytes, reasons: Mapping[Column, str]) -> None:
        """Take the reasons for which columns cannot hold a content."""
        self.refusals.setdefault(content, {}).update(reasons)

    def fail(self, image: SourceImage, kind: str, reason: str) -> None:
        """Take a failure."""
        key = image.key
        self.rows.pop(key, None)
        self.gone.discard(key)
        self.failures[key] = Failed(image, kind, reason)

    def columns_of(self, content: bytes) -> frozenset[Column]:
        """Give the columns that a content has here, as vectors or refusals."""
        stored, refused = self._columns.get(content, NONE), self.refusals.get(content)
        return stored.union(refused) if refused else stored

    def prune(self, committed: Callable[[bytes], frozenset[Column]]) -> None:
        """Drop vectors that are committed already: of a commit that was cut off just behind its transaction."""
        blocks, self._blocks, self._columns = self._blocks, [], {}
        for block in blocks:
            kept = [i for i, row in enumerate(block.rows) if not committed(row.content).intersection(block.features)]
            if kept:
                self.add(block.select(kept))

    def segments(self) -> Iterator[tuple[tuple[Column, ...], list[Row], dict[Column, list[np.ndarray]]]]:
        """Yield what each segment takes: its columns by name, its rows, and the ``(k, D)`` blocks of each column.

        One segment a set of columns: contents that lacked the same columns stand together, in order of arrival.
        """
        groups: dict[tuple[Column, ...], list[Block]] = {}
        for block in self._blocks:
            columns = tuple(sorted(block.features, key=lambda column: column.name))
            groups.setdefault(columns, []).append(block)
        for columns, blocks in groups.items():
            rows = [row for block in blocks for row in block.rows]
            yield columns, rows, {column: [block.features[column] for block in blocks] for column in columns}


def require_shapes(n: int, contents: Sequence[bytes], features: Mapping[Column, np.ndarray]) -> None:
    """Refuse arrays that have not one row an image, or not their column's width.

    Raises
    ------
    ValueError
        Naming the column, the shape found and the one expected.
    """
    if len(contents) != n or any(len(content) != 32 for content in contents):
        raise ValueError(f"append: {n} images need {n} sha256 digests of 32 bytes, found {len(contents)}")
    for column, array in features.items():
        if array.shape != (n, column.width):
            raise ValueError(
                f"append: {column.name} has shape {array.shape}, expected {(n, column.width)} (one row an image)"
            )


def cast_rows(
    features: Mapping[Column, np.ndarray],
) -> tuple[dict[Column, np.ndarray], dict[int, dict[Column, str]]]:
    """Cast every column to its stored dtype.

    Returns
    -------
    stored : dict
        ``(n, D)`` arrays in little-endian stored dtype, C order.
    refused : dict
        Row number -> column -> reason, for each row with a value that the dtype cannot hold.
    """
    stored: dict[Column, np.ndarray] = {}
    refused: dict[int, dict[Column, str]] = {}
    for column, array in features.items():
        with np.errstate(over="ignore"):
            stored[column] = np.array(array, dtype=np.dtype(column.dtype).newbyteorder("<"), order="C")
        if np.isfinite(stored[column]).all():
            continue
        for position in np.flatnonzero(~np.isfinite(stored[column]).all(axis=1)).tolist():
            worst = array[position][~np.isfinite(stored[column][position])][0]
            reason = f"{column.name}: {worst:g} does not fit {column.dtype}{_cure(column, float(worst))}"
            refused.setdefault(position, {})[column] = reason
    return stored, dict(sorted(refused.items()))


def _cure(column: Column, value: float) -> str:
    fits = np.isfinite(value) and column.dtype == "float16"
    return "; store this layer as float32" if fits else ""
