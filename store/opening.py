"""From a question (which layers, as of when) to the places of the rows, all of one commit; and their files, opened.

Between the two a collection may delete a file: then the question is asked again, and the answer is of a later commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from . import reading
from .array import FeatureArray
from .catalog import Head
from .contract import Column
from .errors import IncompleteColumnError, StoreDamagedError, StoreError, VersionNotFoundError
from .places import Places

__all__ = ["Located", "Snapshot", "locate_columns", "open_located", "require_layers"]

Snapshot = Callable[[], AbstractContextManager[sqlite3.Connection]]
"""opens the catalog for a few queries that all see the same commit"""


@dataclass(frozen=True, eq=False)
class Located:
    """Where the rows of some columns lie, and whose they are."""

    places: list[Places]
    """of each column, of the same images"""
    set_id: int
    """feature set"""
    as_of: int
    """version as of which its images are alive"""
    names: list[str]
    """id of each image alive then, where they were asked for"""
    contents: np.ndarray
    """content of each: ``(n,)`` int64"""
    kept: np.ndarray
    """``(n,)`` bool: images that every column has"""

    def choose(self, names: list[str]) -> list[str]:
        """Give the names of the rows among those of all images."""
        return names if self.kept.all() else [names[i] for i in self.kept.nonzero()[0].tolist()]


def locate_columns(
    db: sqlite3.Connection,
    folder: Path,
    set_name: str,
    set_id: int,
    head: Head,
    columns: Sequence[tuple[Column, int]],
    *,
    refuse_missing: bool,
    with_ids: bool,
) -> Located:
    """Find the rows of some columns as of what readers see; the queries must see one commit.

    Raises
    ------
    IncompleteColumnError
        When images lack a value and that is to be refused.
    """
    names, contents = reading.images_as_of(db, set_id, head.as_of, names=with_ids)
    found = [reading.locate(db, folder, contents, column, row, head.as_of) for column, row in columns]
    if refuse_missing:
        for (column, row), (_, present) in zip(columns, found, strict=True):
            lacking = reading.find_lacking(db, set_id, head, row, contents, present)
            if lacking:
                n = int(present.sum())
                raise IncompleteColumnError(set_name, column.name, n, n + lacking)
    kept = np.logical_and.reduce([present for _, present in found])
    places = [one if kept.sum() == one.n else one.select(kept[present]) for one, present in found]
    return Located(places, set_id, head.as_of, names, contents, kept)


def open_located(
    snapshot: Snapshot, locate: Callable[[sqlite3.Connection], Located], *, dtype: DTypeLike | None
) -> FeatureArray:
    """Open the segments of what ``locate`` finds in a snapshot, again where one was collected meanwhile.

    Ids that were not found with the rows are read when they are first asked for.
    """
    paths: Sequence[object] = ()
    while True:
        with snapshot() as db:
            located = locate(db)
        try:
            return FeatureArray(located.places, partial(_names_of, snapshot, located), dtype)
        except StoreDamagedError as exc:
            before, paths = paths, [extent.path for places in located.places for extent in places.extents]
            if not isinstance(exc.__cause__, FileNotFoundError) or paths == before:
                raise


def _names_of(snapshot: Snapshot, located: Located) -> list[str]:
    if located.names or not located.contents.size:
        return located.choose(located.names)
    with snapshot() as db:
        names, contents = reading.images_as_of(db, located.set_id, located.as_of)
    if not np.array_equal(contents, located.contents):
        raise VersionNotFoundError(
            f"version {located.as_of} was collected by gc before the ids of an open array were asked for; open it again"
        )
    return located.choose(names)


def require_layers(set_name: str, layer: str | Sequence[str], missing: str) -> list[str]:
    """Give the selectors asked for as a list.

    Raises
    ------
    StoreError
        When there is none, or ``missing`` is neither ``refuse`` nor ``drop``.
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not layers or missing not in ("refuse", "drop"):
        raise StoreError(f"set {set_name!r}: ask for a layer, and missing='refuse' or 'drop', found {missing!r}")
    return layers
