"""What was run on a store, when, and how it ended: a JSON file a command below ``runs/``, written twice.

The first writing says who is at work, the second how it ended. A run that was killed leaves the first alone, and its
process is gone. Nothing that reads or writes features looks at these files; they may be deleted at any time.
"""

from __future__ import annotations

import getpass
import json
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from .durable import make_folder, write_bytes
from .errors import RunNotFoundError, StoreNotFoundError
from .processes import Process, is_running, peak_memory, this_process
from .sqlite_file import CATALOG

__all__ = ["RUNS", "Run", "RunState", "begin_run", "end_run", "ended", "find_run", "list_runs", "new_run"]

log = logging.getLogger(__name__)

RUNS = "runs"
FORMAT, FORMAT_VERSION = "icecore-run", 1
KEPT = 1_000
"""Records that stay; the oldest go."""
LONGEST = 50
"""Items of a list in an outcome that a record keeps."""
_STALE = 86_400.0
"""Seconds after which a temporary file belongs to nobody."""
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")

RunState = Literal["running", "finished", "failed", "interrupted", "died"]
"""``died``: it says that it runs, and its process is gone."""


@dataclass(frozen=True)
class Run:
    """One command on a store."""

    id: str
    """when it began and 8 hex digits, which name it"""
    command: str
    """words of the command, such as ``store gc``"""
    words: tuple[str, ...]
    """the whole command line, without the program"""
    state: RunState
    """how it stands, as its record says"""
    process: Process
    """who"""
    user: str
    """whose process it is"""
    started: str
    """ISO 8601, UTC, to the millisecond"""
    ended: str | None = None
    """likewise; None while it runs"""
    seconds: float | None = None
    """from beginning to end"""
    peak_memory: int | None = None
    """most bytes of memory that its main process held"""
    exit_code: int | None = None
    """what the process ended with"""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    """the object of ``--json``, lists of more than 50 items cut short"""
    config: str | None = None
    """its config file"""
    config_digest: str | None = None
    """sha256, in hex, of what that file and the options said, defaults included"""
    versions: Mapping[str, str] = field(default_factory=dict)
    """icecore, Python, and libraries that it used"""
    hooks: tuple[Mapping[str, Any], ...] = ()
    """what was told after it, and how that went"""

    def to_json(self) -> dict[str, Any]:
        """Give the object that the record holds."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}


def begin_run(store: Path, run: Run) -> None:
    """Write the record of a run that has begun, and let go of the oldest records.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    make_folder(store / RUNS)
    _write(store, run)
    _forget(store / RUNS)


def new_run(command: str, words: Sequence[str]) -> Run:
    """Give the record of a run that begins now in this process."""
    began = datetime.now(UTC)
    return Run(
        id=f"{began:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
        command=command,
        words=tuple(words),
        state="running",
        process=this_process(),
        user=_user(),
        started=began.isoformat(timespec="milliseconds"),
    )


def ended(run: Run, outcome: Mapping[str, Any], *, state: RunState, seconds: float) -> Run:
    """Give the record of a run that has ended."""
    return replace(
        run,
        state=state,
        ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 3),
        peak_memory=peak_memory(),
        exit_code=int(outcome["exit_code"]),
        outcome=_shortened(outcome),
    )


def end_run(store: Path, run: Run) -> None:
    """Write the record of a run that has ended over that of its beginning.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    make_folder(store / RUNS)
    _write(store, run)


def list_runs(store: Path | str) -> list[Run]:
    """Give the runs of a store, the newest first; one that was killed has ``died``.

    A file that is no record is left out, with a warning.

    Raises
    ------
    StoreNotFoundError
        When there is neither a store nor a record.
    """
    folder = Path(store)
    if not (folder / CATALOG).exists() and not (folder / RUNS).is_dir():
        raise StoreNotFoundError(folder)
    found = [run for path in _records(folder / RUNS) if (run := _read(path)) is not None]
    return sorted(found, key=lambda run: (run.started, run.id), reverse=True)


def find_run(store: Path | str, run_id: str) -> Run:
    """Give the run of this name, or the only one whose name begins or ends so.

    Raises
    ------
    StoreNotFoundError
        When there is neither a store nor a record.
    RunNotFoundError
        When no run has that name, or several.
    """
    runs = list_runs(store)
    found = [run for run in runs if run.id.startswith(run_id) or run.id.endswith(run_id)] if run_id else []
    if len(found) != 1:
        raise RunNotFoundError(store, run_id, [run.id for run in found], [run.id for run in runs])
    return found[0]


def _write(store: Path, run: Run) -> None:
    write_bytes(store / RUNS / f"{run.id}.json", json.dumps(run.to_json(), indent=2).encode() + b"\n")


def _read(path: Path) -> Run | None:
    try:
        run = _run_of(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None  # another process let go of it
    except (OSError, ValueError, KeyError, TypeError) as exc:
        log.warning("%s: no record of a run (%s: %s)", path, type(exc).__name__, exc)
        return None
    return replace(run, state="died") if run.state == "running" and is_running(run.process) is False else run


def _run_of(found: Mapping[str, Any]) -> Run:
    if (found["format"], found["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise ValueError(f"{found['format']!r} of version {found['format_version']}, expected {FORMAT_VERSION}")
    known = {name: found[name] for name in Run.__dataclass_fields__ if name in found}
    as_they_were = {"process": Process(**found["process"]), "words": tuple(found["words"])}
    return Run(**{**known, **as_they_were, "hooks": tuple(found.get("hooks", ()))})


def _records(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json" and _ID.fullmatch(path.stem))
    except FileNotFoundError:
        return []


def _forget(folder: Path) -> None:
    """Delete the oldest records, and what a killed run has left half written."""
    now = time.time()
    for path in _records(folder)[:-KEPT]:
        with suppress(OSError):  # the next run tries again
            path.unlink()
    for path in folder.glob("*.tmp"):
        with suppress(OSError):
            if now - path.stat().st_mtime > _STALE:
                path.unlink()


def _shortened(value: Any) -> Any:
    """Give an outcome without the tails of its long lists."""
    if isinstance(value, Mapping):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        rest = len(value) - LONGEST
        return [*map(_shortened, value[:LONGEST]), *([f"... and {rest:,} more"] if rest > 0 else [])]
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return ""
