"""What a command that is no extraction tells while it runs: the same log and heartbeat, without images."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icecore.extract.events import identity, now
from icecore.extract.watch_files import FORMAT, EventLog, HeartbeatFile, Warnings
from icecore.store.runs import RunState

from .exits import Outcome

__all__ = ["Journal"]


class Journal:
    """A log of JSON lines and a heartbeat file of one command.

    Parameters
    ----------
    log
        Lines are appended to it; ``-`` for standard error. None: no log.
    heartbeat
        File that is replaced, whole, at the beginning, with progress, and at the end. None: none.
    every
        Seconds between two lines of progress, and between two heartbeats.
    facts
        Told by the first line and by every heartbeat.
    run
        Names the run.
    """

    def __init__(
        self, log: Path | None, heartbeat: Path | None, *, every: float, facts: Mapping[str, Any], run: str
    ) -> None:
        self._log = None if log is None else EventLog(log)
        self._beat = None if heartbeat is None else HeartbeatFile(heartbeat)
        self._every, self._facts, self._run = every, dict(facts), run
        self._began = self._progressed = now()
        self._counts = {"done": 0, "total": 0}
        self._next = 0.0
        self._warnings = Warnings(lambda message: self._tell("warning", message=message))

    def open(self) -> None:
        """Write the first line and the first heartbeat.

        Raises
        ------
        WatchError
            When one of the files cannot be written.
        """
        if self._beat is not None:
            self._beat.require_regular()
        if self._log is not None:
            self._log.open()
        if self._beat is not None:
            self._beat.write(self._state("running"), first=True)
        logging.getLogger("icecore").addHandler(self._warnings)
        self._tell("started", format_version=FORMAT, **identity(), **self._facts)

    def progress(self, done: int, total: int) -> None:
        """Tell how far the command is, now and then."""
        self._counts, self._progressed = {"done": done, "total": total}, now()
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._tell("progress")
            if self._beat is not None:
                self._beat.write(self._state("running"))

    def end(self, state: RunState, outcome: Outcome) -> None:
        """Tell how it ended, and close the log."""
        logging.getLogger("icecore").removeHandler(self._warnings)
        ending: dict[str, Any] = {"exit_code": outcome.exit_code, "outcome": outcome.meaning}
        if outcome.error:
            ending["error"] = outcome.error
        self._tell(state, **ending)
        if self._log is not None:
            self._log.close()
        if self._beat is not None:
            self._beat.write({**self._state(state), **ending})

    def _tell(self, event: str, **facts: Any) -> None:
        if self._log is not None:
            self._log.write({"time": now(), "event": event, "run": self._run, **self._counts, **facts})

    def _state(self, state: RunState) -> dict[str, Any]:
        return {
            "format": "icecore-heartbeat",
            "format_version": FORMAT,
            "state": state,
            "time": now(),
            "started": self._began,
            "last_progress": self._progressed,
            **identity(),
            "run": self._run,
            **self._facts,
            **self._counts,
            "exit_code": None,
        }
