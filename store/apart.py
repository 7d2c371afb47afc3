"""Let another process open files that may be damaged, because HDF5 may crash or never come back on them.

The other process gets one path a line and answers with one line each. When it dies or is silent for too long, that is
the answer, and a new one goes on with the next path.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from .errors import StoreDamagedError, StoreError
from .layout import Layout, describe, parse_layout

__all__ = ["layouts_of"]

PATIENCE = 30.0
"""Seconds that HDF5 may take for the header of one file, which is a few reads of some kilobytes."""

CODE = "from icecore.store.apart import answer; answer()"
"""What the other process runs."""
_READY = "ready"


def layouts_of(paths: Iterable[Path]) -> Iterator[Layout | StoreDamagedError]:
    """Describe segments whose bytes nothing vouches for, in the order given.

    Yields
    ------
    Layout or StoreDamagedError
        What is wrong is given, not raised, and without the file's name: one bad file does not end the work.
    """
    helper: _Helper | None = None
    try:
        for path in paths:
            helper = helper or _Helper()
            answer = helper.ask(path)
            if isinstance(answer, str):
                helper.stop()
                helper = None
                yield StoreDamagedError(answer)
            else:
                yield _parsed(answer)
    finally:
        if helper is not None:
            helper.stop()


def _parsed(answer: dict[str, Any]) -> Layout | StoreDamagedError:
    if "error" in answer:
        return StoreDamagedError(f"HDF5 cannot read it ({answer['error']})")
    try:
        return parse_layout(answer)
    except StoreDamagedError as exc:
        return exc


class _Helper:
    """The other process."""

    def __init__(self) -> None:
        searched = os.pathsep.join(entry for entry in sys.path if entry)
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, on code of ours
            [sys.executable, "-P", "-c", CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": searched},
            text=True,
        )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._lines: SimpleQueue[str] = SimpleQueue()
        Thread(target=self._listen, daemon=True).start()
        if self._lines.get() != _READY:
            self.stop()
            raise StoreError(f"{sys.executable} cannot be started to look into segments (exit {self._process.poll()})")

    def ask(self, path: Path) -> dict[str, Any] | str:
        """Give the description of a file, or in words how HDF5 failed on it."""
        try:
            self._stdin.write(json.dumps(os.fspath(path)) + "\n")
            self._stdin.flush()
            line = self._lines.get(timeout=PATIENCE)
        except Empty:
            return f"HDF5 does not come back from it within {PATIENCE:g} s"
        except BrokenPipeError:
            line = ""
        if not line:
            return f"HDF5 crashes on it (exit {self._process.wait()})"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process and close what leads to it."""
        self._process.kill()
        self._process.wait()
        self._stdin.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put("")


def answer() -> None:
    """Be the other process: read paths from stdin, describe each on stdout."""
    sys.stdout.write(f"{_READY}\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            answer = json.dumps(describe(Path(json.loads(line))))
        except Exception as exc:  # noqa: BLE001 - whatever a damaged file makes h5py raise is the answer
            answer = json.dumps({"error": str(exc.args[0] if exc.args else exc)})
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
