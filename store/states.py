"""A state of a store by its name: a set, one of its versions, or a generation that some version reads."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from . import catalog
from .contract import Contract
from .difference import find_generation_id
from .errors import SetNotFoundError, VersionNotFoundError
from .versions import head_at

__all__ = ["find_generations", "locate_state"]

_UUID_PART = re.compile(r"[0-9a-f]{6,32}")


def locate_state(db: sqlite3.Connection, folder: Path, name: str) -> tuple[str, int]:
    """Give the set and the version that a name stands for; see ``FeatureStore.at``."""
    set_name, at, version = name.rpartition("@")
    sets = [row[0] for row in db.execute("SELECT name FROM sets WHERE id IN (SELECT set_id FROM heads) ORDER BY name")]
    if name in sets:
        return name, _version(db, name, None)
    if at and set_name in sets:
        return set_name, _version(db, set_name, version)
    if _UUID_PART.fullmatch(name):
        return _last_read(db, find_generation_id(db, folder, name))
    raise SetNotFoundError(folder, set_name if at else name, sets)


def find_generations(db: sqlite3.Connection, contract: Contract) -> tuple[tuple[str, str], ...]:
    """Give set and uuid of the generations that hold this base contract, the newest first."""
    rows = db.execute(
        "SELECT s.name, g.uuid FROM generations g JOIN sets s ON s.id = g.set_id WHERE g.contract_hash = ? "
        "ORDER BY g.id DESC",
        (contract.hash,),
    )
    return tuple((str(name), str(uuid)) for name, uuid in rows)


def _version(db: sqlite3.Connection, set_name: str, version: str | None) -> int:
    set_id = catalog.set_id_of(db, set_name)
    assert set_id is not None
    return head_at(db, set_id, set_name, version).version


def _last_read(db: sqlite3.Connection, generation_id: int) -> tuple[str, int]:
    """Give the newest version that shows readers a generation, and that can still be read."""
    uuid, set_name = db.execute(
        "SELECT g.uuid, s.name FROM generations g JOIN sets s ON s.id = g.set_id WHERE g.id = ?", (generation_id,)
    ).fetchone()
    version, shown = db.execute(
        "SELECT max(CASE WHEN collected IS NULL THEN version END), count(*) FROM heads WHERE generation_id = ?",
        (generation_id,),
    ).fetchone()
    if version is None:
        why = "gc has collected every version that showed it" if shown else "no version shows it to readers yet"
        cure = "name another" if shown else "run `icecore extract` to its end, or name another"
        raise VersionNotFoundError(f"generation {uuid} of set {set_name!r} cannot be read: {why}; {cure}")
    return str(set_name), int(version)
