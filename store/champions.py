"""Which bundle of a name is in use, since when, by whose word and why. A promotion is one row of the catalog.

The champion of a name is the bundle of its highest number, so that at every moment there is the old one or the new one.
Promotions take no writer's lock: an extraction may run for hours meanwhile, and SQLite orders the transactions.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import catalog
from .errors import RefusedError, StoreDamagedError
from .ledger import Entry
from .promoting import read_promotions, record
from .sqlite_file import readable

__all__ = [
    "Promotion",
    "champion_of",
    "champions",
    "default_who",
    "find_bundle",
    "promote",
    "promotions",
    "rollback",
]

_NAME = re.compile(r"\w[\w.-]{0,127}")


@dataclass(frozen=True)
class Promotion:
    """A bundle that was put in use."""

    name: str
    """name of the model"""
    number: int
    """counts the promotions of the name, from 1"""
    kind: str
    """promote or rollback"""
    bundle: str
    """the bundle's folder under ``models/<name>/``"""
    path: Path
    """the bundle's folder"""
    card_sha256: str
    """checksum of the bundle's card, 64 hex digits"""
    created: str
    """when, ISO 8601, UTC"""
    who: str
    """user@host by default"""
    why: str
    """reason given"""
    forced: bool
    """whether it was put in use against the gate"""
    restores: int | None
    """number of the promotion that a rollback went back to"""
    metrics: Mapping[str, Any]
    """what was measured"""
    config: Mapping[str, Any]
    """resolved configuration of the run that asked for it"""


def promote(
    store_path: Path | str,
    name: str,
    bundle: str | Path,
    *,
    why: str,
    who: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    forced: bool = False,
    expected: int | None = None,
) -> Promotion:
    """Put a bundle in use: from the return on, for every reader, and through a power cut.

    Parameters
    ----------
    store_path
        Folder of the store.
    name
        Name of the model: the folder of its bundles under ``models/``.
    bundle
        The bundle: its id, the first letters of it, ``NAME/ID``, or its folder.
    why
        Reason, kept in the history.
    who
        User and host by default.
    metrics, config
        Plain JSON values, kept in the history.
    forced
        Whether it goes against the gate.
    expected
        Number of the promotion that must still be the champion's, 0 for none; not looked at by default.

    Returns
    -------
    Promotion
        What was recorded.

    Raises
    ------
    RefusedError
        When there is no such bundle, a file of it is missing or altered, it is the champion already, or another
        promotion came first. The champion stays.
    DiskError
        When the catalog cannot be written. The champion stays.

    Examples
    --------
    >>> promote("features", "photos", "20300101T000000Z-0123abcd", why="first model")  # doctest: +SKIP
    """
    folder = Path(store_path)
    path = find_bundle(folder, name, bundle)
    entry = Entry(
        name, 0, "promote", path.name, "", catalog.now(), who or default_who(), why, int(forced), None,
        _to_json(metrics), _to_json(config),
    )  # fmt: skip
    return _promotion(folder, record(folder, entry, expected=expected))


def rollback(
    store_path: Path | str, name: str, *, why: str, who: str | None = None, to: str | Path | None = None
) -> Promotion:
    """Put the bundle in use that was so before the champion; rolled back again, the one before that.

    Parameters
    ----------
    store_path, name, why, who
        As for ``promote``.
    to
        Go back to this bundle, which was the champion once, instead of the last one before.

    Raises
    ------
    RefusedError
        When there is none before, or its bundle is missing or altered. The champion stays.
    DiskError
        When the catalog cannot be written. The champion stays.
    """
    folder = Path(store_path)
    history = promotions(folder, name)
    if not history:
        raise RefusedError(f"{folder}: {name!r} has no champion to go back from; `icecore models promote` makes one")
    current = history[0]
    target = _before(folder, name, history) if to is None else _once(folder, name, history, to)
    entry = Entry(
        name, 0, "rollback", target.bundle, "", catalog.now(), who or default_who(), why, 0, target.number,
        _to_json(target.metrics), _to_json(target.config),
    )  # fmt: skip
    return _promotion(folder, record(folder, entry, expected=current.number))


def champion_of(store_path: Path | str, name: str) -> Promotion | None:
    """Give the promotion whose bundle is in use under a name; None where none ever was.

    Nothing is written, no lock is needed, and the bundle's files are not looked at.

    Raises
    ------
    StoreError
        When the store is not there or cannot be read.
    """
    found = promotions(store_path, name, limit=1)
    return found[0] if found else None


def champions(store_path: Path | str) -> dict[str, Promotion]:
    """Give the promotion of the champion of every name that has one, in the order of the names."""
    return {promotion.name: promotion for promotion in reversed(_read(Path(store_path), None, None))}


def promotions(store_path: Path | str, name: str, *, limit: int | None = None) -> list[Promotion]:
    """Give the history of a name, the champion's promotion first; empty where nothing was promoted."""
    return _read(Path(store_path), name, limit)


def find_bundle(folder: Path, name: str, bundle: str | Path) -> Path:
    """Give the folder of a bundle of a name, told by its id, the first letters of it, ``NAME/ID`` or a path.

    Raises
    ------
    RefusedError
        When the name cannot be one, or there is no such bundle under it, or several.
    """
    if not _NAME.fullmatch(name):
        raise RefusedError(f"name {name!r}: a letter, digit or '_', then also '.' and '-', 128 in all")
    home = folder / "models" / name
    known = sorted(card.parent.name for card in home.glob("*/card.json") if not card.parent.name.startswith("."))
    asked = str(bundle).rstrip("/")
    if Path(asked).resolve().parent == home.resolve():
        asked = Path(asked).name
    asked = asked.removeprefix(f"{name}/")
    found = [one for one in known if one == asked] or [one for one in known if asked and one.startswith(asked)]
    if len(found) != 1:
        several = f"{len(found)} bundles of {name!r} begin so" if found else f"no bundle of {name!r}"
        listed = ", ".join((found or known)[-5:]) or "none yet; `icecore train` makes one"
        raise RefusedError(f"{home}: {several}: {asked!r}; there are {listed}")
    return home / found[0]


def default_who() -> str:
    """Give user@host."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number that has no name
        user = f"uid{os.getuid()}" if os.name == "posix" else "unknown"
    return f"{user}@{socket.gethostname()}"


def _read(folder: Path, name: str | None, limit: int | None) -> list[Promotion]:
    with closing(catalog.connect(folder)) as db, readable(folder / catalog.CATALOG):
        return [_promotion(folder, entry) for entry in read_promotions(db, name, limit)]


def _promotion(folder: Path, entry: Entry) -> Promotion:
    try:
        metrics, config = json.loads(entry.metrics), json.loads(entry.config)
    except ValueError as exc:
        raise StoreDamagedError(
            f"{folder / catalog.CATALOG}: promotion {entry.number} of {entry.name!r} cannot be read ({exc}); "
            f"{catalog.CURE}"
        ) from exc
    return Promotion(
        entry.name, entry.number, entry.kind, entry.bundle, folder / "models" / entry.name / entry.bundle,
        entry.card_sha256, entry.created, entry.who, entry.why, bool(entry.forced), entry.restores, metrics, config,
    )  # fmt: skip


def _before(folder: Path, name: str, history: list[Promotion]) -> Promotion:
    """Give the promotion whose bundle was in use before the champion's, rollbacks undone."""
    by_number = {promotion.number: promotion for promotion in history}
    at = history[0]
    while True:
        base = at.restores or at.number
        earlier = [number for number in by_number if number < base]
        if not earlier:
            raise RefusedError(f"{folder}: {name!r} had no champion before {history[0].bundle}; name one with --to")
        at = by_number[max(earlier)]
        if at.bundle != history[0].bundle:
            return by_number.get(at.restores or at.number, at)


def _once(folder: Path, name: str, history: list[Promotion], bundle: str | Path) -> Promotion:
    path = find_bundle(folder, name, bundle)
    for promotion in history:
        if promotion.bundle == path.name and promotion.kind == "promote":
            return promotion
    raise RefusedError(f"{path}: was never the champion of {name!r}; `icecore models promote` puts it in use")


def _to_json(value: Mapping[str, Any] | None) -> str:
    return json.dumps(value or {}, sort_keys=True, allow_nan=False, default=str)
