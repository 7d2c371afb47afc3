"""``models/<name>/promotions.jsonl``: the committed promotions of a name, for the day when the catalog is lost.

A line is added after the transaction that it tells of, so that every line was committed. One that a kill kept from
being written is added by the next promotion; one that was cut off in the middle does not fit its checksum and is left.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .contract import canonical_json
from .durable import fsync_folder

__all__ = ["LEDGER", "Entry", "append_entries", "ledgers", "read_entries"]

LEDGER = "promotions.jsonl"
FORMAT = "icecore.promotion"
_SEAL = "line_sha256"


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
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    read = [_entry(line) for line in lines if line.strip()]
    found = {entry.number: entry for entry in read if entry is not None}
    return [found[number] for number in sorted(found)], sum(entry is None for entry in read)


def append_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Add what a ledger lacks, durably; the folder is there."""
    there = {entry.number for entry in read_entries(path)[0]}
    lines = [_line(entry) for entry in entries if entry.number not in there]
    if not lines:
        return
    is_new = not path.exists()
    # One write behind a line break: two writers at once do not tear each other's lines, nor does a line cut off.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        data = b"\n" + b"\n".join(lines) + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        fsync_folder(path.parent)


def ledgers(folder: Path) -> Iterator[Path]:
    """Give the ledgers of a store, in order of the names."""
    yield from sorted((folder / "models").glob(f"*/{LEDGER}"))


def _line(entry: Entry) -> bytes:
    body = {"format": FORMAT, "format_version": 1, **asdict(entry)}
    return canonical_json({**body, _SEAL: _seal(body)})


def _entry(line: bytes) -> Entry | None:
    try:
        body = json.loads(line)
        seal = body.pop(_SEAL)
        if seal != _seal(body) or (body.pop("format"), body.pop("format_version")) != (FORMAT, 1):
            return None
        return Entry(**body)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()
