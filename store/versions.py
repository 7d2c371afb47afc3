"""Which state of a set a number or a tag means."""

from __future__ import annotations

import sqlite3

from .catalog import Head, head_of
from .errors import VersionNotFoundError, suggest

__all__ = ["head_at", "tagged_version", "tags_of"]


def head_at(db: sqlite3.Connection, set_id: int, set_name: str, version: int | str | None = None) -> Head:
    """Give what readers of a set see now, or saw at a version, given by its number or by a tag.

    Raises
    ------
    VersionNotFoundError
        When there is no such version or tag, or the version was collected.
    """
    number = _number(db, set_id, set_name, version)
    latest = head_of(db, set_id)
    is_later = latest is not None and number is not None and number > latest.version  # SQLite takes no number at all
    head = None if is_later else head_of(db, set_id, number)
    if head is None:
        has = f"its latest is {latest.version}" if latest else "it has none"
        raise VersionNotFoundError(f"set {set_name!r} has no version {number}; {has}")
    if head.collected:
        raise VersionNotFoundError(
            f"set {set_name!r}: version {version} was collected by gc at {head.collected}; "
            f"`icecore store log` lists those that are kept"
        )
    return head


def tags_of(db: sqlite3.Connection, set_id: int) -> dict[str, int]:
    """Give the tags of a set with their versions, by name."""
    return dict(db.execute("SELECT name, version FROM tags WHERE set_id = ? ORDER BY name", (set_id,)).fetchall())


def tagged_version(db: sqlite3.Connection, set_id: int, set_name: str, name: str) -> int:
    """Give the version that a tag names.

    Raises
    ------
    VersionNotFoundError
        When the set has no such tag; names those it has.
    """
    tags = tags_of(db, set_id)
    if name not in tags:
        has = f"it has {', '.join(tags)}" if tags else "it has none"
        raise VersionNotFoundError(f"set {set_name!r} has no tag {name!r}; {has}{suggest(name, tags)}")
    return tags[name]


def _number(db: sqlite3.Connection, set_id: int, set_name: str, version: int | str | None) -> int | None:
    if not isinstance(version, str):
        return version
    return int(version) if version.isdecimal() else tagged_version(db, set_id, set_name, version)
