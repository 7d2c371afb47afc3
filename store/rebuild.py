"""Make a catalog anew from the segments alone, because there is none, or none that can be trusted.

Segments know the contents of their rows, the name that each image had when it was written, and their contract. What
they do not know is lost with the catalog: the log, tags, old versions, deletions, names given since, failures. So all
files are taken for unknown by the next run, which reads and hashes each; it computes only what is in no segment.
Promotions come back from the ledgers that lie beside the bundles.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import catalog
from .adopt import Adopter, Stranger, look_at, settle
from .aside import Movements
from .bundles import card_paths
from .catalog import CATALOG, Generation
from .commit import Target, add_version, find_contents, set_head
from .consistency import catalog_trouble
from .durable import fsync_file, fsync_folder
from .holdings import load_held
from .layout import read_digests, read_ids
from .losses import Losses, Lost
from .measure import OnBytes
from .promoting import note_promotions, restore_promotions
from .reading import alive_images
from .registry import ensure_columns, ensure_set
from .summary import refresh_summaries

__all__ = ["Rebuilt", "rebuild"]

UNFINISHED = f"{CATALOG}.rebuilt.tmp"
MOST_VERSION = 1_000_000_000
"""What a version must be below for a damaged catalog, or a card, to be believed."""


@dataclass(frozen=True)
class Rebuilt:
    """What was made."""

    segments: int
    """segments in use"""
    images: int
    """images entered"""
    ambiguous: int
    """times that a segment gives an image another content than an older one does; the newest is believed"""
    written: tuple[str, ...]
    """new segments with rows of others, relative to the store"""
    lost: tuple[Lost, ...]
    """images known to lack features, to be extracted again"""
    versions: Mapping[str, int]
    """version of each set"""
    odd_cards: tuple[str, ...]
    """cards of bundles that cannot be read, relative to the store: which versions they refer to is not known"""
    odd_ledgers: tuple[str, ...]
    """ledgers of promotions with a line that cannot be read, relative to the store: a champion may be an earlier one"""


def rebuild(
    folder: Path, names: Sequence[str], why: str, moves: Movements, *, dry_run: bool, command: str, on_bytes: OnBytes
) -> Rebuilt:
    """Build a catalog under a temporary name, and put it in the place of the one that is there.

    Versions count on from the highest that a bundle, or the old catalog where it can be read, mentions: a number never
    comes to mean something else.

    Parameters
    ----------
    folder
        The store; the caller holds the writer's lock.
    names
        Its segment files.
    why
        What is wrong with the catalog that is there.
    moves
        Moves files.
    dry_run, command
        See ``repair_store``.
    on_bytes
        Told what is read.
    """
    looked = dict(look_at(folder, names, on_bytes))
    strangers = sorted((s for s in looked.values() if isinstance(s, Stranger)), key=lambda s: s.order)
    mentioned, odd_cards = _versions_of_bundles(folder)
    first = 1 + max([0, *mentioned, *_version_of_catalog(folder)])
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        unfinished.unlink()  # of a repair that was cut off: made from what is here, and made again now
    with closing(sqlite3.connect("" if dry_run else folder / UNFINISHED, isolation_level=None)) as db:
        builder = _Builder(folder, db, strangers, first, moves)
        builder.enter_segments()
        builder.enter_images()
        builder.enter_versions(command)
        refresh_summaries(db)
        trouble = catalog_trouble(db)
        assert not trouble, trouble
        if not dry_run:
            note_promotions(folder)
        moves.aside(CATALOG, why)  # first: without it, nobody reads the rest, and nothing is promoted
        made = builder.result(odd_cards, restore_promotions(folder, db))
        db.execute("PRAGMA journal_mode=WAL")
    for ending in ("-wal", "-shm"):
        moves.aside(f"{CATALOG}{ending}", "belongs to the catalog that was here")
    if not dry_run:
        fsync_file(folder / UNFINISHED)
        (folder / UNFINISHED).rename(folder / CATALOG)
        fsync_folder(folder)
    unused = [*builder.unused, *((name, what) for name, what in looked.items() if isinstance(what, str))]
    for name, what in unused:
        moves.aside(name, what)
    return made


class _Builder:
    """Fills a catalog that nobody sees yet."""

    def __init__(
        self, folder: Path, db: sqlite3.Connection, strangers: Sequence[Stranger], first: int, moves: Movements
    ) -> None:
        """Take strangers from the oldest to the newest, and the version of the first set."""
        self._folder, self._db, self._strangers, self._moves = folder, db, strangers, moves
        names = sorted({stranger.header.set_name for stranger in strangers})
        self._versions = {name: first + number for number, name in enumerate(names)}
        self._adopter = Adopter(folder, db, dry_run=moves.dry_run)
        self._generations: dict[tuple[str, str], Generation] = {}
        self._placed: list[tuple[int, Generation, Stranger]] = []
        self._written: list[str] = []
        self._losses = Losses()
        self._ambiguous = 0
        self.unused: list[tuple[str, str]] = []
        """segment files that are not in use, and why"""
        catalog.write_schema(db)

    def enter_segments(self) -> None:
        """Enter sets and generations, the oldest first, then columns, contents and segments, the newest first."""
        newest = {(s.header.set_name, s.header.contract.hash): s for s in self._strangers}
        for stranger in sorted(newest.values(), key=self._began):
            self._place(stranger)
        for stranger in reversed(self._strangers):
            set_id, generation = self._place(stranger)
            if generation is None:
                self.unused.append((stranger.path, "has another contract than its generation"))
            elif (settled := settle(stranger, self._moves)) is not None:
                done = self._adopter.adopt(set_id, generation, settled, self._versions[settled.header.set_name])
                self._placed.append((set_id, generation, settled))
                self._written += done.written
                if not done.in_use:
                    self.unused.append((settled.path, done.what))

    def enter_images(self) -> None:
        """Enter the images that segments name, the oldest first: the last word on an image counts."""
        for set_id, generation, stranger in reversed(self._placed):
            path, version = self._folder / stranger.path, self._versions[stranger.header.set_name]
            contents = read_digests(path, stranger.layout)
            numbers = find_contents(self._db, contents)
            ids = zip(read_ids(path, stranger.layout), contents, strict=True)
            before = self._db.total_changes
            with catalog.transaction(self._db):
                self._db.executemany(
                    # No file has the size -1, so that every file is read again.
                    "INSERT INTO images VALUES (?, ?, ?, NULL, ?, -1, 0, 0, 1) ON CONFLICT DO UPDATE "
                    "SET content_id = excluded.content_id WHERE content_id != excluded.content_id",
                    ((set_id, key, version, numbers[content]) for key, content in ids),
                )
            self._ambiguous += self._db.total_changes - before
            if bad := frozenset(stranger.layout.columns) - stranger.good:
                ensure_columns(self._db, generation.id, sorted(bad, key=lambda column: column.name))
                lost = np.array([numbers[content] for content in contents], dtype=np.int64)
                self._losses.add(set_id, stranger.header.set_name, generation, bad, lost)
        self._ambiguous -= self._count("images")

    def enter_versions(self, command: str) -> None:
        """Enter one version a set, with the generation that readers see."""
        run = uuid.uuid4().hex
        names = {set_id: stranger.header.set_name for set_id, _, stranger in self._placed}
        with catalog.transaction(self._db):
            for set_id, name in names.items():
                version = self._versions[name]
                target = Target(set_id, self._read(set_id), {}, command, run, 0, moves_head=True)
                added = self._db.execute("SELECT count(*) FROM images WHERE set_id = ?", (set_id,)).fetchone()[0]
                add_version(self._db, target, version, "sync", {"added": added})
                set_head(self._db, target, version)

    def result(self, odd_cards: Sequence[str], odd_ledgers: Sequence[str]) -> Rebuilt:
        """Give what was made."""
        return Rebuilt(
            self._count("segments"),
            self._count("images"),
            self._ambiguous,
            tuple(self._written),
            tuple(self._losses.find(self._db)),
            self._versions,
            tuple(odd_cards),
            tuple(odd_ledgers),
        )

    def _read(self, set_id: int) -> int:
        """Choose the generation that readers see: the newest, unless it was rather being filled when the catalog went.

        Which one they saw is lost. One that has less than half of the images is passed over, if another has more.
        """
        generations = sorted({generation.id for owner, generation, _ in self._placed if owner == set_id}, reverse=True)
        shares = {generation_id: self._share(set_id, generation_id) for generation_id in generations}
        return next((one for one, share in shares.items() if share >= 0.5), max(generations, key=shares.__getitem__))

    def _share(self, set_id: int, generation_id: int) -> float:
        """Give the share of the set's images of which a generation has any column."""
        held = load_held(self._db, generation_id, list(catalog.columns_of(self._db, generation_id).values()))
        lacking = [held.is_empty(contents) for _, contents in alive_images(self._db, set_id, names=False)]
        return 1.0 - float(np.concatenate(lacking).mean())

    def _began(self, stranger: Stranger) -> str:
        """Say when the generation of a stranger was begun: when the oldest of its segments was written."""
        return next(s.header.created for s in self._strangers if s.header.generation == stranger.header.generation)

    def _place(self, stranger: Stranger) -> tuple[int, Generation | None]:
        """Give set and generation of a stranger, made if they are new; no generation where its uuid has another."""
        header = stranger.header
        set_id = ensure_set(self._db, header.set_name)
        key = header.set_name, header.contract.hash
        if key not in self._generations:
            if header.generation in {generation.uuid for generation in self._generations.values()}:
                return set_id, None
            self._generations[key] = self._add_generation(set_id, stranger)
        return set_id, self._generations[key]

    def _add_generation(self, set_id: int, stranger: Stranger) -> Generation:
        header = stranger.header
        row = self._db.execute(
            "INSERT INTO generations (set_id, uuid, contract_hash, contract, created, source, versions) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                set_id,
                header.generation,
                header.contract.hash,
                json.dumps(header.contract.to_json()),
                self._began(stranger),
                json.dumps(dict(header.source)),
                json.dumps(dict(header.versions)),
            ),
        )
        assert row.lastrowid is not None
        return catalog.generation_by_id(self._db, row.lastrowid)

    def _count(self, table: str) -> int:
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _versions_of_bundles(folder: Path) -> tuple[list[int], list[str]]:
    """Give the versions that bundles were trained on, and the cards that cannot be read."""
    versions, odd = [], []
    for card in card_paths(folder):
        try:
            version = int(json.loads(card.read_bytes())["version"])
        except (OSError, ValueError, TypeError, KeyError):
            version = MOST_VERSION
        if version < MOST_VERSION:
            versions.append(version)
        else:
            odd.append(card.relative_to(folder).as_posix())
    return versions, odd


def _version_of_catalog(folder: Path) -> Iterator[int]:
    """Give the last version of the old catalog, where so much of it can be read."""
    if not (folder / CATALOG).is_file():
        return
    try:
        with closing(sqlite3.connect(folder / CATALOG)) as db:
            (version,) = db.execute("SELECT max(id) FROM versions").fetchone()
    except sqlite3.Error:
        return
    if isinstance(version, int) and 0 < version < MOST_VERSION:
        yield version
