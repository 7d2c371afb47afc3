"""Which columns the contents of a generation have already: what a writer asks before each row."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .buffers import NONE
from .commit import Entered, find_contents
from .contract import Column
from .holdings import load_held, load_refused

__all__ = ["Known"]


class Known:
    """The committed columns of every content of a generation, stored and refused ones."""

    def __init__(self, db: sqlite3.Connection, generation_id: int, column_ids: Mapping[Column, int]) -> None:
        self._db = db
        self._held = load_held(db, generation_id, list(column_ids.values()))
        self._refused = load_refused(db, list(column_ids.values()))
        self._bits = {column: 1 << position for position, column in enumerate(column_ids)}
        self._sets: dict[int, frozenset[Column]] = {0: NONE}
        self.asked: dict[bytes, int | None] = {}
        """ids of the contents asked for since the last commit, None where the catalog has none: nobody else writes"""

    def of_all(self, contents: Sequence[bytes], *, refused: bool) -> dict[bytes, frozenset[Column]]:
        """Give the columns of those contents that the store knows; ``refused`` counts those that cannot hold them."""
        new = [content for content in contents if content not in self.asked]
        if new:
            self.asked.update(dict.fromkeys(new))
            self.asked.update(find_contents(self._db, new))
        found = [(content, self.asked[content]) for content in contents]
        return {
            content: self._columns(self._mask(content_id, refused=refused))
            for content, content_id in found
            if content_id is not None
        }

    def of(self, content: bytes, *, refused: bool = False) -> frozenset[Column]:
        """Give the columns of one content."""
        return self.of_all([content], refused=refused).get(content, NONE)

    def note(self, entered: Entered) -> None:
        """Take in what a commit has entered."""
        self.asked.clear()
        for ids, columns in entered.segments:
            self._held.add(ids, self._mask_of(columns))
        for content_id, column in entered.refused:
            self._refused.add(np.array([content_id]), self._bits[column])

    def _mask(self, content_id: int, *, refused: bool) -> int:
        return self._held.mask(content_id) | (self._refused.mask(content_id) if refused else 0)

    def _mask_of(self, columns: Iterable[Column]) -> int:
        return sum(self._bits[column] for column in columns)

    def _columns(self, mask: int) -> frozenset[Column]:
        if mask not in self._sets:
            self._sets[mask] = frozenset(column for column, bit in self._bits.items() if mask & bit)
        return self._sets[mask]
