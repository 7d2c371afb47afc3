"""Exit codes, and the one value from which both the code and the JSON object come."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from icecore.store import DiskError, ExportError, LockedError, MissingExtraError, RefusedError, SourceError, StoreError

__all__ = ["DONE_SOMEHOW", "MAY_BE_SUCCESS", "Asked", "Exit", "Outcome", "outcome_of_error"]


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

DONE_SOMEHOW = frozenset({Exit.DONE, Exit.SOME_IMAGES_FAILED, Exit.CHALLENGER_KEPT_BACK})
"""What was asked for has been done, whatever came of it."""

MAY_BE_SUCCESS = frozenset(Exit) - {Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.STORE_INVALID, Exit.CONFIG_INVALID}
"""Codes that a scheduler may take for 0: a failure is never one of them."""

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
    nothing_to_do: bool = False
    """it is done because there was nothing to do"""
    promoted: bool = False
    """a challenger has become the champion"""
    returned: int | None = None
    """what the process ends with in place of ``code``, where the caller asked for another; see ``Asked``"""

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return int(self.code) if self.returned is None else self.returned

    @property
    def is_failure(self) -> bool:
        """Whether what was asked for was not done, and the caller did not call that a success."""
        return self.code not in DONE_SOMEHOW and self.returned is None

    @property
    def meaning(self) -> str:
        """The outcome's own code in words."""
        return MEANING[self.code]

    def to_json(self, command: str) -> dict[str, Any]:
        """Give the object that ``--json`` prints and ``--result-file`` keeps."""
        result: dict[str, Any] = {
            "command": command,
            "exit_code": self.exit_code,
            "outcome_code": int(self.code),
            "outcome": self.meaning,
            "nothing_to_do": self.nothing_to_do,
            "retryable": self.code in RETRYABLE or self.transient,
        }
        if self.error:
            result["error"] = self.error
        return {**result, **self.data, **result}  # no fact of a command may say another code


@dataclass(frozen=True)
class Asked:
    """Exit codes that a scheduler wants in place of ours."""

    success_on: frozenset[int] = frozenset()
    """codes that end as 0"""
    skip_code: int | None = None
    """what a command that found nothing to do ends with"""

    def applied(self, outcome: Outcome) -> Outcome:
        """Give the outcome with the exit code that was asked for; its own code and its words stay."""
        if outcome.code is Exit.DONE and outcome.nothing_to_do and self.skip_code is not None:
            return replace(outcome, returned=self.skip_code)
        if int(outcome.code) in self.success_on:
            return replace(outcome, returned=0)
        return replace(outcome, returned=None)


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
