"""What readers of a set saw and when: its log, its tags, and the way back. No row of features is touched here."""

from __future__ import annotations

import logging
import re
import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .bundles import card_paths, read_card
from .catalog import printable
from .commit import Target, add_version, next_version, set_head
from .difference import ImageDiff, diff_images
from .errors import FormatError, RefusedError
from .session import writing
from .versions import head_at, tagged_version, tags_of

__all__ = ["Revert", "Version", "read_log", "revert", "set_tag", "unset_tag"]

log = logging.getLogger(__name__)

_TAG = re.compile(r"[A-Za-z][\w.-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class Version:
    """One commit of a set."""

    number: int
    """versions count through the store, so that a set's have gaps"""
    created: str
    """when, ISO 8601, UTC"""
    kind: str
    """sync (a run of extract), compact, revert, repair"""
    command: str
    """what ran"""
    run: str
    """names the run: its commits share it; empty in stores written before runs had names"""
    added: int
    """images that are new"""
    changed: int
    """images whose content is another"""
    removed: int
    """images that are no longer there"""
    failed: int
    """images that have failed anew"""
    generation: str
    """uuid of the generation written to"""
    as_of: int | None
    """version whose state readers see from here on: this one, or an earlier one after a revert; None where readers
    stayed where they were"""
    collected: str | None
    """when gc took away what only this version needs"""
    tags: tuple[str, ...]
    """its tags"""
    bundles: tuple[str, ...]
    """bundles of this store that were trained on it: ``NAME/BUNDLE``"""

    @property
    def readable(self) -> bool:
        """Whether it can be read as it was."""
        return self.as_of is not None and self.collected is None


@dataclass(frozen=True)
class Revert:
    """What going back to an earlier version has changed, or would change."""

    set_name: str
    """feature set"""
    to: int
    """the earlier version"""
    version: int | None
    """the new version; None on a dry run, and where readers see that state already"""
    images: ImageDiff
    """images that come, go and change with it"""


def read_log(db: sqlite3.Connection, folder: Path, set_id: int, set_name: str) -> tuple[Version, ...]:
    """Read every version of a set, the newest first."""
    tags: defaultdict[int, list[str]] = defaultdict(list)
    for name, version in tags_of(db, set_id).items():
        tags[version].append(name)
    bundles = _bundles_by_version(db, folder, set_id, set_name)
    rows = db.execute(
        "SELECT v.id, v.created, v.kind, v.command, v.run, v.added, v.changed, v.removed, v.failed, g.uuid, h.as_of, "
        "h.collected FROM versions v JOIN generations g ON g.id = v.generation_id "
        "LEFT JOIN heads h ON h.set_id = v.set_id AND h.version = v.id WHERE v.set_id = ? ORDER BY v.id DESC",
        (set_id,),
    )
    return tuple(Version(*row, *(tuple(names.get(row[0], ())) for names in (tags, bundles))) for row in rows)


def set_tag(folder: Path, set_name: str, name: str, version: int | str | None, *, move: bool, command: str) -> int:
    """Give a version a name; see ``FeatureSet.tag``."""
    if not _TAG.fullmatch(name):
        raise RefusedError(f"tag {name!r}: begin with a letter; then letters, digits, '.', '_' and '-', 128 in all")
    with writing(folder, command=command) as db:
        set_id = catalog.set_id_of(db, set_name)
        assert set_id is not None
        number = head_at(db, set_id, set_name, version).version
        held = tags_of(db, set_id).get(name)
        if held not in (None, number) and not move:
            raise RefusedError(f"set {set_name!r}: tag {name!r} stands at version {held}; move it there with --move")
        if held != number:
            with catalog.transaction(db):
                db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?, ?)", (set_id, name, number, catalog.now()))
        return number


def unset_tag(folder: Path, set_name: str, name: str, *, command: str) -> int:
    """Take a tag away; see ``FeatureSet.untag``."""
    with writing(folder, command=command) as db:
        set_id = catalog.set_id_of(db, set_name)
        assert set_id is not None
        number = tagged_version(db, set_id, set_name, name)
        with catalog.transaction(db):
            db.execute("DELETE FROM tags WHERE set_id = ? AND name = ?", (set_id, name))
        return number


def revert(folder: Path, set_name: str, version: int | str, *, dry_run: bool, command: str) -> Revert:
    """Let readers see an earlier state again, as a new version; see ``FeatureSet.revert``."""
    with closing(catalog.connect(folder)) if dry_run else writing(folder, command=command) as db:
        set_id = catalog.set_id_of(db, set_name)
        assert set_id is not None
        now, then = head_at(db, set_id, set_name), head_at(db, set_id, set_name, version)
        change = diff_images(db, set_id, now, then)
        if dry_run or (now.generation_id, now.as_of) == (then.generation_id, then.as_of):
            return Revert(set_name, then.version, None, change)
        target = Target(set_id, then.generation_id, {}, printable(command), uuid.uuid4().hex, 0, moves_head=True)
        with catalog.transaction(db):
            new = next_version(db)
            add_version(db, target, new, "revert", change.counts)
            set_head(db, target, new, then.as_of)
    return Revert(set_name, then.version, new, change)


def _bundles_by_version(db: sqlite3.Connection, folder: Path, set_id: int, set_name: str) -> Mapping[int, list[str]]:
    found: defaultdict[int, list[str]] = defaultdict(list)
    for path in card_paths(folder):
        try:
            card = read_card(path)
        except FormatError as exc:
            log.warning("left out of the log, and in the way of gc: %s", exc)
            continue
        head = catalog.head_of(db, set_id, card.version) if card.set_name == set_name else None
        if head is not None:
            found[head.version].append(card.name)
    return found
