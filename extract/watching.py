"""A run watched from outside: one JSON line an event, and a heartbeat file that tells a monitor that it is alive.

What cannot be written before the run begins is an error; later it is one warning, and the run goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from .errors import WatchError
from .events import Counts, Event, EventKind, identity, now
from .watch_files import FORMAT, STDERR, EventLog, HeartbeatFile, Warnings

__all__ = ["EVERY", "STDERR", "State", "Watch"]

EVERY = 10.0
"""Seconds between two heartbeats, and between two lines of progress."""

Ending = Literal["finished", "failed", "interrupted"]
State = Literal["running"] | Ending
"""What a heartbeat says of its run."""


class Watch:
    """Listens to a run and writes down what it tells; a context manager around the run.

    On entering, the log is opened and the first heartbeat written. On leaving, both tell how the run ended: by
    the exception that passes, or as ``finished``. Give it to ``extract_images`` as ``events``.

    Parameters
    ----------
    log
        JSON lines are appended to it; ``-`` for standard error. None: no log.
    heartbeat
        File that is replaced, whole, at most every ``every`` seconds, and at the beginning and end. None: none.
    every
        Seconds, above 0.
    facts
        Plain JSON values told by every heartbeat and by the first line: command, store.
    exit_code_of
        Gives the exit code of a command that ends with this exception, where a command is watched.

    Raises
    ------
    WatchError
        On entering, when one of the files cannot be written.

    Examples
    --------
    >>> with Watch(heartbeat=Path("beat.json")) as watch:  # doctest: +SKIP
    ...     extract_images("features", "photos", "photos", events=watch, **settings)
    """

    def __init__(
        self,
        *,
        log: Path | str | None = None,
        heartbeat: Path | str | None = None,
        every: float = EVERY,
        facts: Mapping[str, Any] | None = None,
        exit_code_of: Callable[[BaseException], int | None] = lambda exc: None,
    ) -> None:
        if not every > 0:
            raise ValueError(f"expected every to be above 0 seconds, found {every}")
        self.exit_code: int | None = None
        """exit code of a command that ends without an exception"""
        self._log = None if log is None else EventLog(log)
        self._beat = None if heartbeat is None else HeartbeatFile(Path(heartbeat))
        self._every, self._facts, self._exit_code_of = every, dict(facts or {}), exit_code_of
        self._last = Event("started", now(), "", "", Counts(), None, None)
        self._started = self._progressed = self._last.time
        self._told: Mapping[str, Any] = {}
        self._next_line = self._next_beat = 0.0
        self._warnings = Warnings(self._warn)

    @property
    def is_on_stderr(self) -> bool:
        """Whether the log goes to standard error, where nothing else should then be shown."""
        return self._log is not None and self._log.is_stderr

    def __enter__(self) -> Self:
        if self._beat is not None:
            self._beat.require_regular()
        if self._log is not None:
            self._log.open()
        if self._beat is not None:
            try:
                self._beat.write(self._state("running"), first=True)
            except WatchError:
                if self._log is not None:
                    self._log.close()
                raise
        logging.getLogger("icecore").addHandler(self._warnings)
        return self

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if event.counts.done > self._last.counts.done:
            self._progressed = event.time
        self._last = event
        if event.kind == "finished":
            self._told = event.facts  # written on leaving, when the exit code is known
            return
        if self._log is not None and self._is_line(event.kind):
            more = {"format_version": FORMAT, **identity(), **self._facts} if event.kind == "started" else {}
            self._log.write({**event.to_json(), **more})
        if self._beat is not None and (event.kind in ("started", "planned") or time.monotonic() >= self._next_beat):
            self._next_beat = time.monotonic() + self._every
            self._beat.write(self._state("running"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger("icecore").removeHandler(self._warnings)
        interrupted = isinstance(error, KeyboardInterrupt)
        state: Ending = "finished" if error is None else "interrupted" if interrupted else "failed"
        code = self.exit_code if error is None else self._exit_code_of(error)
        ending: dict[str, Any] = {"exit_code": code}
        if error is not None:
            ending["error"] = str(error) or type(error).__name__
        if self._log is not None:
            last = replace(self._last, kind=state, time=now(), eta_seconds=None, facts={**self._told, **ending})
            self._log.write(last.to_json())
            self._log.close()
        if self._beat is not None:
            self._beat.write({**self._state(state), **ending})

    def _warn(self, message: str) -> None:
        self(replace(self._last, kind="warning", time=now(), facts={"message": message}))

    def _is_line(self, kind: EventKind) -> bool:
        """Say whether an event is written; progress only now and then."""
        if kind != "progress":
            return True
        if time.monotonic() < self._next_line:
            return False
        self._next_line = time.monotonic() + self._every
        return True

    def _state(self, state: State) -> dict[str, Any]:
        last = self._last.to_json()
        numbers = {key: last[key] for key in (*vars(self._last.counts), "images_per_second", "eta_seconds")}
        if state != "running":
            numbers["eta_seconds"] = None
        return {
            "format": "icecore-heartbeat",
            "format_version": FORMAT,
            "state": state,
            "time": now(),
            "started": self._started,
            "last_progress": self._progressed,
            **identity(),
            "run": self._last.run,
            "set": self._last.set_name,
            **self._facts,
            **numbers,
            "exit_code": None,
        }
