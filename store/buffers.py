"""What a writer holds between two commits: rows, links, failures and removals, one verdict an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .contract import Column
from .scan import SourceImage

__all__ = ["Buffers", "Failed", "Row", "cast_rows", "require_shapes"]


@dataclass(frozen=True)
class Row:
    """An image that has features."""

    image: SourceImage
    """the image"""
    content: bytes
    """sha256 digest of its bytes"""


@dataclass(frozen=True)
class Failed:
    """An image that gave none."""

    image: SourceImage
    """the image"""
    kind: str
    """class of the failure: read, decode, too-large, unsupported, value, transient"""
    reason: str
    """what was found"""


class Buffers:
    """Rows not yet committed. The last word on an image counts; a content is stored once."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.failures: dict[bytes, Failed] = {}
        self.gone: set[bytes] = set()
        self.refusals: dict[bytes, dict[Column, str]] = {}
        self.bytes = 0
        self._vectors: dict[bytes, dict[Column, np.ndarray]] = {}
        self._first: dict[bytes, SourceImage] = {}

    @property
    def entries(self) -> int:
        """Images with a verdict."""
        return len(self.rows) + len(self.failures)

    def add(
        self, image: SourceImage, content: bytes, vectors: Mapping[Column, np.ndarray], refusals: Mapping[Column, str]
    ) -> None:
        """Take an image, with the ``(D,)`` vectors, or the reasons for having none, that its content lacked."""
        self.failures.pop(image.key, None)
        self.gone.discard(image.key)
        self.rows[image.key] = Row(image, content)
        if refusals:
            self.refusals.setdefault(content, {}).update(refusals)
        if vectors:
            self._vectors.setdefault(content, {}).update(vectors)
            self._first.setdefault(content, image)
            self.bytes += sum(vector.nbytes for vector in vectors.values())

    def fail(self, image: SourceImage, kind: str, reason: str) -> None:
        """Take a failure."""
        self.rows.pop(image.key, None)
        self.gone.discard(image.key)
        self.failures[image.key] = Failed(image, kind, reason)

    def columns_of(self, content: bytes) -> set[Column]:
        """Give the columns that a content has here, as vectors or refusals."""
        return {*self._vectors.get(content, ()), *self.refusals.get(content, ())}

    def prune(self, committed: Callable[[bytes], set[Column]]) -> None:
        """Drop vectors that are committed already: of a commit that was cut off just behind its transaction."""
        for content, vectors in list(self._vectors.items()):
            for column in committed(content).intersection(vectors):
                del vectors[column]
            if not vectors:
                del self._vectors[content]

    def segments(self) -> Iterator[tuple[tuple[Column, ...], list[Row], dict[Column, np.ndarray]]]:
        """Yield what each segment takes: its columns by name, its rows, and ``(rows, D)`` of each column.

        One segment a set of columns: contents that lack the same columns stand together, in order of arrival.
        """
        groups: dict[tuple[Column, ...], list[bytes]] = {}
        for content, vectors in self._vectors.items():
            columns = tuple(sorted(vectors, key=lambda column: column.name))
            groups.setdefault(columns, []).append(content)
        for columns, contents in groups.items():
            rows = [Row(self._first[content], content) for content in contents]
            yield columns, rows, {c: np.stack([self._vectors[content][c] for content in contents]) for c in columns}


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
            stored[column] = np.ascontiguousarray(array, dtype=np.dtype(column.dtype).newbyteorder("<"))
        for position in np.flatnonzero(~np.isfinite(stored[column]).all(axis=1)).tolist():
            worst = array[position][~np.isfinite(stored[column][position])][0]
            reason = f"{column.name}: {worst:g} does not fit {column.dtype}{_cure(column, float(worst))}"
            refused.setdefault(position, {})[column] = reason
    return stored, dict(sorted(refused.items()))


def _cure(column: Column, value: float) -> str:
    fits = np.isfinite(value) and column.dtype == "float16"
    return "; store this layer as float32" if fits else ""
