"""Bundles that nobody needs any more: neither in use, nor among the last that were, nor new."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from . import catalog
from .disk_errors import disk_errors
from .errors import RefusedError
from .promoting import read_promotions

__all__ = ["Discarded", "discard_bundles"]

CARD = "card.json"
_DAY = 24 * 3600


@dataclass(frozen=True)
class Discarded:
    """A bundle that was deleted, or would be."""

    name: str
    """name of the model"""
    bundle: str
    """its folder under ``models/<name>/``"""
    bytes: int
    """bytes of its files"""


def discard_bundles(
    store_path: Path | str,
    name: str | None = None,
    *,
    keep_promotions: int = 3,
    keep_days: float = 30,
    dry_run: bool = False,
) -> list[Discarded]:
    """Delete bundles that were not in use lately.

    Kept are, of each name, the champion's, those of the last promotions and rollbacks, and those that were made in the
    last days. Versions of features that a deleted bundle relied on go with the next gc of the store.

    Parameters
    ----------
    store_path
        Folder of the store.
    name
        Only bundles of this name.
    keep_promotions
        How many bundles to keep that were put in use last, at least 1: the champion's.
    keep_days
        Keep what was written in the last days.
    dry_run
        Say what would go, and change nothing.

    Raises
    ------
    RefusedError
        When a limit cannot be, or there is nothing under the name.
    DiskError
        When a bundle cannot be deleted.
    """
    folder = Path(store_path)
    if keep_promotions < 1 or not 0 <= keep_days <= 36_500:
        raise RefusedError(f"1 promotion or more is kept, and 0 to 36,500 days: found {keep_promotions}, {keep_days:g}")
    models = folder / "models"
    if name is not None and not (models / name).is_dir():
        known = ", ".join(sorted(path.name for path in models.glob("*") if path.is_dir())) or "none yet"
        raise RefusedError(f"{models}: no bundles under the name {name!r}; there are {known}")
    homes = sorted(path for path in models.glob("*") if path.is_dir() and name in (None, path.name))
    with closing(catalog.connect(folder, write=not dry_run)) as db:
        if dry_run:
            return [_told(bundle) for home in homes for bundle in _doomed(db, home, keep_promotions, keep_days)]
        gone = []
        with catalog.transaction(db):  # so that nobody puts one in use that is about to go
            for home in homes:
                for bundle in _doomed(db, home, keep_promotions, keep_days):
                    with disk_errors(bundle):
                        gone.append((_told(bundle), bundle.rename(home / f".{bundle.name}.gone.tmp")))
    for _, path in gone:
        with disk_errors(path):
            shutil.rmtree(path)
    return [told for told, _ in gone]


def _doomed(db: sqlite3.Connection, home: Path, keep_promotions: int, keep_days: float) -> list[Path]:
    used = dict.fromkeys(entry.bundle for entry in read_promotions(db, home.name))  # the newest first, each once
    kept, since = set(list(used)[:keep_promotions]), time.time() - keep_days * _DAY
    bundles = (card.parent for card in sorted(home.glob(f"*/{CARD}")))
    return [path for path in bundles if path.name[0] != "." and path.name not in kept and _written(path) <= since]


def _written(bundle: Path) -> float:
    return (bundle / CARD).stat().st_mtime


def _told(bundle: Path) -> Discarded:
    size = 0
    for file in bundle.rglob("*"):
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return Discarded(bundle.parent.name, bundle.name, size)
