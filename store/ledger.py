"""``models/<name>/promotions.jsonl``: the committed promotions of a name, for the day when the catalog is lost.

A line is added after the transaction that it tells of, so that every line was committed. One that a kill kept from
being written is added by the next promotion; one that was cut off in the middle does not fit its checksum and is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .sealed_lines import append_sealed, read_sealed

__all__ = ["LEDGER", "Entry", "append_entries", "ledgers", "read_entries"]

LEDGER = "promotions.jsonl"
FORMAT = "icecore.promotion"


@dataclass(frozen=True)
class Entry:
    """One promotion as it stands in the catalog and in the ledger."""

    name: str
    """name of the model"""
    number: int
    """counts the promotions of a name, from 1"""
    kind: str
    """promote or rollback"""
    bundle: str
    """folder of the bundle under ``models/<name>/``"""
    card_sha256: str
    """checksum of the bundle's card"""
    created: str
    """when, ISO 8601, UTC"""
    who: str
    """user@host"""
    why: str
    """reason given"""
    forced: int
    """1 where the gate had said no"""
    restores: int | None
    """number of the promotion that a rollback goes back to"""
    metrics: str
    """what was measured, JSON"""
    config: str
    """resolved configuration, JSON"""


def read_entries(path: Path) -> tuple[list[Entry], int]:
    """Read a ledger.

    Returns
    -------
    entries
        Each number once, in order.
    damaged
        Number of lines that do not fit their checksum; one that a kill cut off among them.
    """
    bodies, damaged = read_sealed(path, FORMAT)
    found = {}
    for body in bodies:
        try:
            entry = Entry(**body)
        except TypeError:
            damaged += 1
        else:
            found[entry.number] = entry
    return [found[number] for number in sorted(found)], damaged


def append_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Add what a ledger lacks, durably; the folder is there."""
    there = {entry.number for entry in read_entries(path)[0]}
    append_sealed(path, FORMAT, [asdict(entry) for entry in entries if entry.number not in there])


def ledgers(folder: Path) -> Iterator[Path]:
    """Give the ledgers of a store, in order of the names."""
    yield from sorted((folder / "models").glob(f"*/{LEDGER}"))
