"""Which images have lost features, and are to be extracted again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from . import catalog
from .catalog import Generation
from .contract import Column
from .holdings import Holdings, load_held
from .reading import alive_images, names_of
from .scan import decode_id

__all__ = ["Losses", "Lost"]


@dataclass(frozen=True)
class Lost:
    """Images that lack the same columns since a repair."""

    set_name: str
    """feature set"""
    generation: str
    """generation, by its uuid"""
    is_read: bool
    """whether readers of the set see this generation"""
    columns: tuple[str, ...]
    """names of the columns that are lacking"""
    ids: tuple[str, ...]
    """images of the set that lack them, in the order of their ids; the next ``icecore extract`` computes them"""


class Losses:
    """Collects what segments have lost."""

    def __init__(self) -> None:
        self._generations: dict[int, tuple[int, str, Generation]] = {}
        self._lost: dict[int, list[tuple[frozenset[Column], np.ndarray]]] = {}

    def add(
        self, set_id: int, set_name: str, generation: Generation, columns: Iterable[Column], contents: np.ndarray
    ) -> None:
        """Take contents that have lost columns, by their numbers."""
        self._generations[generation.id] = (set_id, set_name, generation)
        self._lost.setdefault(generation.id, []).append((frozenset(columns), contents))

    def find(self, db: sqlite3.Connection) -> Iterator[Lost]:
        """Name the live images that lack now what was lost, unless another segment has it."""
        for generation_id, (set_id, set_name, generation) in self._generations.items():
            head, column_ids = catalog.head_of(db, set_id), catalog.columns_of(db, generation.id)
            bits = {column: 1 << position for position, column in enumerate(column_ids)}
            lost = Holdings()
            for columns, contents in self._lost[generation_id]:
                lost.add(contents, sum(bits[column] for column in columns))
            held = load_held(db, generation.id, list(column_ids.values()))
            for mask, ids in _lacking(db, set_id, lost, held).items():
                names = tuple(column.name for column in bits if mask & bits[column])
                is_read = head is not None and head.generation_id == generation.id
                yield Lost(set_name, generation.uuid, is_read, names, tuple(map(decode_id, sorted(ids))))


def _lacking(db: sqlite3.Connection, set_id: int, lost: Holdings, held: Holdings) -> dict[int, list[bytes]]:
    """Group the live images by the columns that they have lost and have not."""
    found: dict[int, list[bytes]] = {}
    for joined, contents in alive_images(db, set_id):
        names: list[bytes] = []
        for mask, places in lost.groups(contents).items():
            for missing, some in held.lacking(contents[places], mask).items():
                names = names or names_of(joined)
                found.setdefault(missing, []).extend(names[place] for place in places[some].tolist())
    return found
