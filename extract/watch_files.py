"""The files of a watched run: JSON lines that are appended, and a small file that is kept fresh."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import WatchError

__all__ = ["FORMAT", "STDERR", "EventLog", "HeartbeatFile", "Warnings"]

logger = logging.getLogger(__name__)

STDERR = "-"
"""In place of a log file: standard error."""
FORMAT = 1
"""Version of the heartbeat's keys and of the log's; new keys may come without another one."""


class Warnings(logging.Handler):
    """Passes on what any part of icecore warns of."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        self._warn(record.getMessage())


class EventLog:
    """JSON lines at the end of a file, each written by one call."""

    def __init__(self, place: Path | str) -> None:
        self._place = place
        self._descriptor: int | None = None
        self._torn = self._warned = False

    @property
    def is_stderr(self) -> bool:
        """Whether its lines go to standard error."""
        return str(self._place) == STDERR

    def open(self) -> None:
        """Open the file, or raise WatchError."""
        if self.is_stderr:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(self._place, flags, 0o666)
        except OSError as exc:
            raise WatchError("log", self._place, exc) from exc

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line; where that fails, warn once."""
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
        """Close the file."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


class HeartbeatFile:
    """A small file that is there whole or not at all; not synced, because after a power cut it means nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()  # a link stays a link
        self._warned = False

    def require_regular(self) -> None:
        """Refuse what must not be replaced: a folder, a device, a pipe."""
        if self._path.exists() and not self._path.is_file():
            raise WatchError("heartbeat", self._path, OSError(0, "is no regular file"))

    def write(self, state: Mapping[str, Any], *, first: bool = False) -> None:
        """Replace the file; where that fails, raise WatchError the first time, and later warn once."""
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
