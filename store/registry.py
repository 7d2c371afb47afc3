"""What a writer enters before its first row: feature set, generation, columns; and the sweep of what was left."""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import catalog
from .catalog import Generation
from .contract import Column, Contract, Difference
from .durable import fsync_folder
from .errors import ContractMismatchError

__all__ = ["ensure_columns", "ensure_generation", "ensure_set", "sweep"]


def ensure_set(db: sqlite3.Connection, name: str) -> int:
    """Give the row of a feature set, made if it is new."""
    db.execute("INSERT OR IGNORE INTO sets (name) VALUES (?)", (name,))
    set_id = catalog.set_id_of(db, name)
    assert set_id is not None
    return set_id


def ensure_generation(
    db: sqlite3.Connection, set_id: int, contract: Contract, source: Mapping[str, Any], versions: Mapping[str, str]
) -> Generation:
    """Give the generation of a set that holds this contract, made if there is none; readers do not see it yet."""
    found = catalog.find_generation(db, set_id, contract)
    if found is not None:
        return found
    head = catalog.head_of(db, set_id)
    db.execute(
        "INSERT INTO generations (set_id, uuid, contract_hash, contract, parent_id, created, source, versions) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            set_id,
            uuid.uuid4().hex,
            contract.hash,
            json.dumps(contract.to_json()),
            head.generation_id if head else None,
            catalog.now(),
            json.dumps(dict(source)),
            json.dumps(dict(versions)),
        ),
    )
    made = catalog.find_generation(db, set_id, contract)
    assert made is not None
    return made


def ensure_columns(db: sqlite3.Connection, generation_id: int, columns: Sequence[Column]) -> dict[Column, int]:
    """Give the rows of all columns of a generation, these included; readers see one once a segment holds it.

    Raises
    ------
    ContractMismatchError
        When a column of this name means something else there.
    """
    held = {column.name: column for column in catalog.columns_of(db, generation_id)}
    for column in columns:
        twin = held.get(column.name)
        if twin is None:
            db.execute(
                "INSERT INTO columns (generation_id, name, hash, spec, width) VALUES (?, ?, ?, ?, ?)",
                (generation_id, column.name, column.hash, json.dumps(column.to_json()), column.width),
            )
        elif (twin.hash, twin.width) != (column.hash, column.width):
            raise ContractMismatchError(f"column {column.name}", _column_diff(column, twin))
    return catalog.columns_of(db, generation_id)


def sweep(folder: Path, db: sqlite3.Connection) -> int:
    """Delete the files that ``intents`` names and no segment is: of a run that was cut off, or taken out by gc.

    Nothing else; folders left empty go with them. Gives the number of files deleted.
    """
    noted = db.execute("SELECT uuid, path FROM intents WHERE uuid NOT IN (SELECT uuid FROM segments)").fetchall()
    swept = 0
    for _, relative in noted:
        final = folder / relative
        for leftover in (final, final.with_suffix(".h5.tmp")):
            if leftover.exists():
                leftover.unlink()
                swept += 1
    for held in {(folder / relative).parent for _, relative in noted}:
        if not held.is_dir():
            continue
        is_empty = not any(held.iterdir())
        if is_empty:
            held.rmdir()
        fsync_folder(held.parent if is_empty else held)  # a file must not come back after its note has gone
    if noted:
        with catalog.transaction(db):
            db.executemany("DELETE FROM intents WHERE uuid = ?", [(name,) for name, _ in noted])
    return swept


def _column_diff(ours: Column, theirs: Column) -> list[Difference]:
    pairs = {**ours.to_json(), "width": ours.width}, {**theirs.to_json(), "width": theirs.width}
    return [Difference(key, pairs[0][key], pairs[1][key]) for key in pairs[0] if pairs[0][key] != pairs[1][key]]
