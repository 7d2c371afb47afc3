"""What the sides of store_scale.py that use icecore share: the layer, and what lies on disk."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from icecore.store import Column, Contract, Pooling

from .page_cache import files_below
from .rows import WIDTH

Run = dict[str, float]

SET, LAYER = "photos", "layer4"
COLUMN = Column(LAYER, Pooling.parse("avg"), WIDTH)
CONTRACT = Contract("torchvision.models.resnet18", {}, "0" * 64, (), "pillow", ("full",), "fp32")
LONG_AGO = 1_600_000_000 * 10**9
"""mtime of all files, nanoseconds since 1970"""


def live_segments(store: Path) -> list[tuple[Path, int]]:
    """Give path and rows of the segments alive now, as the catalog lists them."""
    with closing(sqlite3.connect(f"file:{store / 'catalog.sqlite'}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT path, rows FROM segments WHERE removed_in IS NULL ORDER BY id").fetchall()
    return [(store / path, rows) for path, rows in found]


def size_of(folder: Path) -> int:
    """Give the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in files_below(folder))
