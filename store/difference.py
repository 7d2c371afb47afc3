"""What differs between two states: versions, generations, bundles. Contracts field by field, columns, images."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import catalog, reading
from .bundles import CARD, read_card
from .catalog import Head
from .contract import Column, Contract, Difference
from .errors import GenerationNotFoundError, SetNotFoundError
from .holdings import load_held
from .scan import decode_id
from .versions import head_at

__all__ = ["ImageDiff", "StoreDiff", "diff_images", "diff_states", "find_generation_id"]

_UUID_PART = re.compile(r"[0-9a-f]{6,32}")


@dataclass(frozen=True)
class ImageDiff:
    """Images that differ between two versions of a set; each in the order of their ids."""

    added: tuple[str, ...]
    """in the second only"""
    removed: tuple[str, ...]
    """in the first only"""
    changed: tuple[str, ...]
    """in both, with another content"""

    @property
    def counts(self) -> dict[str, int]:
        """The number of each, by name."""
        return {"added": len(self.added), "removed": len(self.removed), "changed": len(self.changed)}


@dataclass(frozen=True)
class StoreDiff:
    """What differs between two states, ``a`` and ``b``."""

    a: str
    """the first one, named in full"""
    b: str
    """the second one"""
    contract: tuple[Difference, ...]
    """fields of the base contract: ``ours`` is the first one's value, ``theirs`` the second one's"""
    only_a: tuple[Column, ...]
    """columns of the first only"""
    only_b: tuple[Column, ...]
    """columns of the second only"""
    images: ImageDiff | None
    """images with features; None unless both are versions of one set"""

    @property
    def is_empty(self) -> bool:
        """True when nothing differs."""
        images = self.images is not None and any(self.images.counts.values())
        return not (self.contract or self.only_a or self.only_b or images)


@dataclass(frozen=True)
class _State:
    label: str
    contract: Contract
    columns: tuple[Column, ...]
    set_id: int | None = None
    head: Head | None = None


def diff_states(db: sqlite3.Connection, folder: Path, a: str | Path, b: str | Path) -> StoreDiff:
    """Compare two states of a store; see ``FeatureStore.diff``."""
    one, other = _state(db, folder, a), _state(db, folder, b)
    images = None
    if one.head is not None and other.head is not None and one.set_id == other.set_id:
        assert one.set_id is not None
        images = diff_images(db, one.set_id, one.head, other.head)
    return StoreDiff(
        one.label,
        other.label,
        one.contract.diff(other.contract),
        tuple(column for column in one.columns if column not in other.columns),
        tuple(column for column in other.columns if column not in one.columns),
        images,
    )


def diff_images(db: sqlite3.Connection, set_id: int, a: Head, b: Head) -> ImageDiff:
    """Compare the images that have features at two versions of a set."""
    before, after = _contents(db, set_id, a), _contents(db, set_id, b)
    return ImageDiff(
        tuple(decode_id(key) for key in after if key not in before),
        tuple(decode_id(key) for key in before if key not in after),
        tuple(decode_id(key) for key, content in after.items() if before.get(key, content) != content),
    )


def find_generation_id(db: sqlite3.Connection, folder: Path, part: str) -> int:
    """Give the row of the generation whose uuid begins so.

    Raises
    ------
    GenerationNotFoundError
        When there is none, or several; names them.
    """
    rows = db.execute(
        "SELECT g.id, g.uuid, s.name FROM generations g JOIN sets s ON s.id = g.set_id ORDER BY g.id"
    ).fetchall()
    found = [row for row in rows if _UUID_PART.fullmatch(part) and row[1].startswith(part)]
    if len(found) == 1:
        return int(found[0][0])
    listed = ", ".join(f"{uuid} of {name!r}" for _, uuid, name in found or rows)
    if found:
        raise GenerationNotFoundError(f"{folder}: {part!r} begins the names of several generations: {listed}")
    raise GenerationNotFoundError(
        f"{folder}: no generation {part!r} (6 or more hex digits of its name); it has {listed or 'none'}"
    )


def _contents(db: sqlite3.Connection, set_id: int, head: Head) -> Mapping[bytes, int]:
    """Give the content of each image that has a feature, in the order of the ids."""
    held = load_held(db, head.generation_id, list(catalog.columns_of(db, head.generation_id).values()), head.as_of)
    found: dict[bytes, int] = {}
    for names, contents in reading.alive_images(db, set_id, head.as_of):
        has = ~held.is_empty(contents)
        found.update(
            (key, content)
            for key, content, there in zip(reading.names_of(names), contents.tolist(), has.tolist(), strict=True)
            if there
        )
    return found


def _state(db: sqlite3.Connection, folder: Path, name: str | Path) -> _State:
    """Find what a name stands for: a set, ``SET@VERSION``, a bundle's folder, or a generation, in this order."""
    text = str(name)
    set_name, at, version = text.rpartition("@")
    sets = [row[0] for row in db.execute("SELECT name FROM sets WHERE id IN (SELECT set_id FROM heads) ORDER BY name")]
    if text in sets:
        return _version(db, text, None)
    if at and set_name in sets:
        return _version(db, set_name, version)
    for path in (Path(name), folder / "models" / name):
        if path.name == CARD or (path / CARD).exists():
            card = read_card(path)
            return _State(f"bundle {card.name}", card.contract, card.columns)
    if _UUID_PART.fullmatch(text):
        return _generation(db, find_generation_id(db, folder, text))
    raise SetNotFoundError(folder, set_name if at else text, sets)


def _version(db: sqlite3.Connection, set_name: str, version: str | None) -> _State:
    set_id = catalog.set_id_of(db, set_name)
    assert set_id is not None
    head = head_at(db, set_id, set_name, version)
    contract = catalog.generation_by_id(db, head.generation_id).contract
    columns = tuple(reading.columns_as_of(db, head))
    return _State(f"{set_name}@{head.version}", contract, columns, set_id, head)


def _generation(db: sqlite3.Connection, generation_id: int) -> _State:
    """Take a generation with all the columns that any of its segments holds."""
    found = catalog.generation_by_id(db, generation_id)
    (set_name,) = db.execute(
        "SELECT name FROM sets WHERE id = (SELECT set_id FROM generations WHERE id = ?)", (generation_id,)
    ).fetchone()
    filled = {row[0] for row in db.execute("SELECT DISTINCT column_id FROM segment_columns")}
    columns = tuple(column for column, row in catalog.columns_of(db, generation_id).items() if row in filled)
    return _State(f"generation {found.uuid} of {set_name}", found.contract, columns)
