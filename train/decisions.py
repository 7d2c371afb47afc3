"""``models/<name>/decisions.jsonl``: what retraining decided of which inputs: equal ones get the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from icecore.store.disk_errors import disk_errors
from icecore.store.sealed_lines import append_sealed, read_sealed

__all__ = ["DECISIONS", "Decided", "Decision", "find_decision", "record_decision"]

DECISIONS = "decisions.jsonl"
FORMAT = "icecore.decision"
Decided = Literal["promoted", "kept", "undecided"]


@dataclass(frozen=True)
class Decision:
    """What a retraining decided."""

    key: str
    """sha256, in hex, of all inputs"""
    decided: Decided
    """whether the challenger was promoted, kept back, or no decision could be made"""
    why: str
    """in a line"""
    challenger: str
    """its bundle's folder"""
    champion: str | None
    """bundle that was in use before; None for a first model"""
    forced: bool
    """whether it was promoted against the gate"""
    created: str
    """when, ISO 8601, UTC"""
    who: str
    """user@host"""
    numbers: Mapping[str, Any]
    """what was measured"""
    rules: tuple[Mapping[str, Any], ...]
    """each rule of the gate with its numbers"""
    notes: tuple[str, ...]
    """what a reader should know"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return asdict(self)


def find_decision(folder: Path, key: str) -> Decision | None:
    """Give the last decision on these inputs, or None; lines that cannot be read decide nothing."""
    for body in reversed(read_sealed(folder / DECISIONS, FORMAT)[0]):
        if body.get("key") == key:
            return Decision(**{**body, "rules": tuple(body["rules"]), "notes": tuple(body["notes"])})
    return None


def record_decision(folder: Path, decision: Decision) -> None:
    """Add a decision, durably. Raises DiskError when it cannot be written."""
    with disk_errors(folder / DECISIONS):
        append_sealed(folder / DECISIONS, FORMAT, [decision.to_json()])
