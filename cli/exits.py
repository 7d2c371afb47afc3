"""Exit codes, and the one value from which both the code and the JSON object come."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from icecore.store import DiskError, ExportError, LockedError, MissingExtraError, RefusedError, SourceError, StoreError

__all__ = ["Exit", "Outcome", "outcome_of_error"]


class Exit(IntEnum):
    """What a command's exit code means; the same in every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    STORE_INVALID = 3
    CONFIG_INVALID = 4
    SOME_IMAGES_FAILED = 5
    CHALLENGER_KEPT_BACK = 6
    LOCKED = 7
    DRIFTED = 8
    INTERRUPTED = 130


MEANING = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "usage",
    Exit.STORE_INVALID: "store invalid",
    Exit.CONFIG_INVALID: "config invalid",
    Exit.SOME_IMAGES_FAILED: "done, but some images failed",
    Exit.CHALLENGER_KEPT_BACK: "challenger kept back",
    Exit.LOCKED: "locked by another run",
    Exit.DRIFTED: "done, but new images have drifted from those that the model was trained on",
    Exit.INTERRUPTED: "interrupted, what was committed is kept",
}

# The same command may end otherwise later without anybody changing anything.
RETRYABLE = frozenset({Exit.LOCKED, Exit.INTERRUPTED})

# The store is sound: what was asked of it, or what it was asked with, is not.
_NOT_THE_STORE = (ExportError, MissingExtraError, RefusedError, SourceError)

# What is refused because of what the config says; named here so that extract and train stay unimported.
_CONFIG_FAULTS = frozenset(
    {
        "AmbiguousLayerError",
        "LayerNotFoundError",
        "SetNotFoundError",
        "ConfigError",
        "BackboneNotFoundError",
        "UnknownLayerError",
        "UnpoolableLayerError",
        "WeightsError",
        "UnknownModelError",
        "PreprocessError",
        "TuningError",
    }
)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: Exit
    """its exit code"""
    data: Mapping[str, Any] = field(default_factory=dict)
    """facts for machines, plain JSON values"""
    text: str = ""
    """the result for people, printed on stdout"""
    error: str = ""
    """what went wrong, printed on stderr"""
    transient: bool = False
    """a failure that may pass by itself: a disk that did not answer"""

    @property
    def meaning(self) -> str:
        """The exit code in words."""
        return MEANING[self.code]

    def to_json(self, command: str) -> dict[str, Any]:
        """Give the object that ``--json`` prints and ``--result-file`` keeps."""
        result: dict[str, Any] = {
            "command": command,
            "exit_code": int(self.code),
            "outcome": self.meaning,
            "retryable": self.code in RETRYABLE or self.transient,
        }
        if self.error:
            result["error"] = self.error
        return {**result, **self.data}


def outcome_of_error(exc: BaseException) -> Outcome | None:
    """Give the outcome that an exception stands for; None for one that is a defect of ours."""
    if isinstance(exc, KeyboardInterrupt):
        return Outcome(Exit.INTERRUPTED, error=MEANING[Exit.INTERRUPTED])
    if isinstance(exc, LockedError):
        return Outcome(Exit.LOCKED, error=str(exc))
    if isinstance(exc, DiskError):
        return Outcome(Exit.FAILED, error=str(exc), transient=exc.transient)
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    if kinds & _CONFIG_FAULTS:
        return Outcome(Exit.CONFIG_INVALID, error=str(exc))
    if isinstance(exc, StoreError) and not isinstance(exc, _NOT_THE_STORE):
        return Outcome(Exit.STORE_INVALID, error=str(exc))
    if kinds & {"SourceLostError", "ProcessLostError"}:
        return Outcome(Exit.FAILED, error=str(exc), transient=True)
    if "RemovalRefusedError" in kinds:
        facts = {name: getattr(exc, name) for name in ("gone", "total", "limit")}
        return Outcome(Exit.FAILED, facts, error=str(exc))
    if isinstance(exc, StoreError) or kinds & {"ExtractError", "TrainError"}:
        return Outcome(Exit.FAILED, error=str(exc))
    if isinstance(exc, sqlite3.OperationalError):  # full, busy, read-only
        return Outcome(Exit.FAILED, error=f"catalog.sqlite: {exc}")
    if isinstance(exc, sqlite3.DatabaseError):
        return Outcome(Exit.STORE_INVALID, error=f"catalog.sqlite is damaged ({exc}); icecore store verify tells more")
    if isinstance(exc, OSError):
        plain = exc.filename is not None and exc.strerror
        return Outcome(Exit.FAILED, error=f"{exc.filename}: {exc.strerror}" if plain else str(exc))
    return None
