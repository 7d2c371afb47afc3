"""The contents that a catalog numbers, all at once: 33 bytes each."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import numpy as np

__all__ = ["Contents", "load_contents"]

AT_A_TIME = 65_536
"""Contents read by one query, as one value."""


@dataclass(frozen=True, eq=False)
class Contents:
    """Contents by their numbers."""

    digests: np.ndarray
    """``(m, 32)`` uint8: sha256 of content number i in row i; zeros where there is none"""
    known: np.ndarray
    """``(m,)`` bool: numbers that are given"""


def load_contents(db: sqlite3.Connection) -> Contents:
    """Read all contents: a million in the third of a second."""
    (size,) = db.execute("SELECT coalesce(max(id), 0) + 1 FROM contents").fetchone()
    digests, known = np.zeros((size, 32), dtype=np.uint8), np.zeros(size, dtype=bool)
    query = (
        "SELECT max(sha256), CAST(group_concat(sha256, '') AS BLOB), group_concat(id) FROM "
        f"(SELECT sha256, id FROM contents WHERE sha256 > ? ORDER BY sha256 LIMIT {AT_A_TIME})"
    )
    last = b""
    while True:
        last, joined, listed = db.execute(query, (last,)).fetchone()
        if last is None:
            return Contents(digests, known)
        ids = np.fromstring(listed, dtype=np.int64, sep=",")
        digests[ids] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)
        known[ids] = True
