"""The command that is at work: what is known of it, its record in the store, and what it tells while it runs.

Every command has one, made by ``app.command``. It learns where the store is from the option ``store`` or from the
first config that is read, so that no command has to tell it.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from icecore.store.runs import Run, RunState, begin_run, end_run, ended, new_run
from icecore.store.sqlite_file import CATALOG

from .exits import DONE_SOMEHOW, Asked, Exit, Outcome
from .journal import Journal
from .output import jsonable

if TYPE_CHECKING:
    from .watch_config import Hooks, Watch

__all__ = ["Running", "current", "exit_code_of", "progressed"]

_KEY = "icecore.cli.running"
_LIBRARIES = ("h5py", "numpy", "pyarrow", "sklearn", "torch", "torchvision", "xgboost")
"""Modules whose versions a record names, where the command has imported them."""


class Running:
    """One command at work.

    Parameters
    ----------
    command
        Its words, such as ``store gc``.
    words
        The whole command line.
    store
        The store that it is about, where its options say so.
    changes
        Whether it changes something, and so leaves a record and calls hooks.
    tells
        Whether events are written here; ``extract`` tells its own, with images and rates, once it has begun.
    asked
        Exit codes that a scheduler wants in place of ours.
    log, heartbeat
        What its options say; the config's are taken otherwise.
    """

    def __init__(
        self,
        command: str,
        words: Sequence[str],
        *,
        store: Path | None,
        changes: bool,
        tells: bool,
        asked: Asked,
        log: Path | None,
        heartbeat: Path | None,
    ) -> None:
        self.command, self.store, self.asked = command, store, asked
        self.log, self.heartbeat = log, heartbeat
        self.folder = Path()
        """where hooks run: the folder of the config"""
        self.hooks: Hooks | None = None
        self.watch: Watch | None = None
        self.trouble = ""
        """why the record of the run cannot be kept"""
        self._changes = self._records = changes
        self._tells = tells
        self._began = time.monotonic()
        self._facts: dict[str, Any] = {}
        self._run = new_run(command, words)
        self._is_written = False
        self._journal: Journal | None = None

    def __enter__(self) -> Running:
        click.get_current_context().meta[_KEY] = self
        return self

    def __exit__(self, *exc: object) -> None:
        click.get_current_context().meta.pop(_KEY, None)

    def begin(self) -> None:
        """Write the record and the first event, where options alone say where to."""
        self._open_record()
        self._open_journal()

    def learn(self, config: Any, path: Path) -> None:
        """Take what a config says of store, hooks and watching; the first config counts."""
        if "config" in self._facts:
            return
        told = json.dumps(config.model_dump(), sort_keys=True, default=str)
        self._facts = {"config": str(path), "config_digest": hashlib.sha256(told.encode()).hexdigest()}
        self.folder = path.parent
        self.store = getattr(config, "store", None) or self.store
        self.hooks, self.watch = getattr(config, "hooks", None), getattr(config, "watch", None)
        if self.watch is not None and self._changes:
            self.log, self.heartbeat = self.log or self.watch.log, self.heartbeat or self.watch.heartbeat
        self._open_record()
        self._open_journal()

    def hand_over(self) -> None:
        """Leave log and heartbeat, and the word of how it ended, to the command itself."""
        self.log = self.heartbeat = None

    def progressed(self, done: int, total: int) -> None:
        """Take note of how far the command is."""
        self._open_record()
        if self._journal is not None:
            self._journal.progress(done, total)

    @property
    def new_id(self) -> str:
        """Names the run, whether or not a record is kept of it."""
        return self._run.id

    @property
    def run_id(self) -> str | None:
        """Names the run; None where no record is kept of it."""
        return self._run.id if self._is_written else None

    def end(self, outcome: Outcome) -> Outcome:
        """Take note of how it ended; give the outcome as it is to be told, with the name of the run."""
        self._open_record()
        if self.run_id is not None:
            outcome = replace(outcome, data={**outcome.data, "run": self.run_id})
        self._tells = True
        with suppress(OSError):  # told before, or of no consequence beside what the command itself came to
            self._open_journal()
        if self._journal is not None:
            self._journal.end(state_of(outcome), outcome)
        return outcome

    def close_record(self, outcome: Outcome, hooks: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write how it ended over what was written at its beginning."""
        if not self._is_written:
            return
        told = jsonable(outcome.to_json(self.command))
        run = ended(self._run, told, state=state_of(outcome), seconds=time.monotonic() - self._began)
        self._try_to(end_run, replace(run, hooks=tuple(hooks), versions={**run.versions, **_libraries()}))

    def _open_record(self) -> None:
        """Begin the record as soon as there is a store to keep it."""
        if self._is_written or not self._records or self.store is None:
            return
        if not (self.store / CATALOG).exists():
            return  # the command makes it, perhaps
        self._run = replace(self._run, **self._facts, versions=_versions())
        self._is_written = self._try_to(begin_run, self._run)

    def _try_to(self, write: Callable[[Path, Run], None], run: Run) -> bool:
        """Write the record; a job that is done stays done where that cannot be."""
        assert self.store is not None
        try:
            write(self.store, run)
        except OSError as exc:
            self._records = False
            self.trouble = f"{self.store}: the record of this run cannot be kept ({exc.strerror or exc})"
            return False
        return True

    def _open_journal(self) -> None:
        if self._journal is not None or not self._tells or (self.log is None and self.heartbeat is None):
            return
        facts = {"command": f"icecore {self.command}", "store": None if self.store is None else str(self.store)}
        every = 10.0 if self.watch is None else self.watch.every
        journal = Journal(self.log, self.heartbeat, every=every, facts=facts, run=self._run.id)
        journal.open()
        self._journal = journal


def current() -> Running | None:
    """Give the command that is at work; None outside the command line."""
    context = click.get_current_context(silent=True)
    return None if context is None else context.meta.get(_KEY)


def exit_code_of(outcome: Outcome) -> int:
    """Give what the process will end with after an outcome, as the command line asks."""
    running = current()
    return outcome.exit_code if running is None else running.asked.applied(outcome).exit_code


def progressed(done: int, total: int) -> None:
    """Tell the command that is at work how far it is."""
    if (running := current()) is not None:
        running.progressed(done, total)


def state_of(outcome: Outcome) -> RunState:
    """Give the word for how a command ended."""
    if outcome.code is Exit.INTERRUPTED:
        return "interrupted"
    return "finished" if outcome.code in DONE_SOMEHOW else "failed"


def _versions() -> dict[str, str]:
    return {"icecore": metadata.version("icecore"), "python": platform.python_version()}


def _libraries() -> dict[str, str]:
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _LIBRARIES}
    return {name: str(version) for name, version in found.items() if version is not None}
