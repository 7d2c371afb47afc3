"""A run watched from outside: one JSON line an event, and a heartbeat file that tells a monitor that it is alive.

What cannot be written before the run begins is an error; later it is one warning, and the run goes on.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from .errors import WatchError
from .events import Counts, Event, EventKind, identity, now

__all__ = ["EVERY", "STDERR", "State", "Watch"]

logger = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds between two heartbeats, and between two lines of progress."""
STDERR = "-"
"""In place of a log file: standard error."""
FORMAT = 1
"""Version of the heartbeat's keys and of the log's; new keys may come without another one."""

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
        self._log = None if log is None else _Log(log)
        self._beat = None if heartbeat is None else _Beat(Path(heartbeat))
        self._every, self._facts, self._exit_code_of = every, dict(facts or {}), exit_code_of
        self._last = Event("started", now(), "", "", Counts(), None, None)
        self._started = self._progressed = self._last.time
        self._told: Mapping[str, Any] = {}
        self._next_line = self._next_beat = 0.0
        self._warnings = _Warnings(self._warn)

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


class _Warnings(logging.Handler):
    """Passes on what any part of icecore warns of."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self._warn(record.getMessage())


class _Log:
    """JSON lines at the end of a file, each written by one call."""

    def __init__(self, place: Path | str) -> None:
        self._place = place
        self._descriptor: int | None = None
        self._torn = self._warned = False

    @property
    def is_stderr(self) -> bool:
        return str(self._place) == STDERR

    def open(self) -> None:
        if self.is_stderr:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(self._place, flags, 0o666)
        except OSError as exc:
            raise WatchError("log", self._place, exc) from exc

    def write(self, line: Mapping[str, Any]) -> None:
        try:
            trouble = self._put(json.dumps(line) + "\n")
        except (OSError, ValueError) as exc:  # the latter of a stream that was closed
            trouble = (isinstance(exc, OSError) and exc.strerror) or str(exc)
        if trouble and not self._warned:
            self._warned = True
            logger.warning("%s: events cannot be written there for now (%s); the run goes on", self._place, trouble)

    def _put(self, line: str) -> str:
        """Write a line; a disk that is nearly full takes a part, and the next line then begins anew."""
        if self.is_stderr:
            sys.stderr.write(line)
            sys.stderr.flush()
            return ""
        assert self._descriptor is not None, "a Watch listens inside its with block only"
        data = b"\n" * self._torn + line.encode()
        written = os.write(self._descriptor, data)
        self._torn = written != len(data)
        return "a part of a line was written" if self._torn else ""

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


class _Beat:
    """A small file that is there whole or not at all; not synced, because after a power cut it means nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # a link stays a link
        self._warned = False

    def require_regular(self) -> None:
        """Refuse what must not be replaced: a folder, a device, a pipe."""
        if self._path.exists() and not self._path.is_file():
            raise WatchError("heartbeat", self._path, OSError(0, "is no regular file"))

    def write(self, state: Mapping[str, Any], *, first: bool = False) -> None:
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(json.dumps(state, indent=2).encode() + b"\n")
            temporary.replace(self._path)
        except OSError as exc:
            with suppress(OSError):
                temporary.unlink()
            if first:
                raise WatchError("heartbeat", self._path, exc) from exc
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s: the heartbeat cannot be written for now (%s); the run goes on", self._path, exc.strerror
                )
