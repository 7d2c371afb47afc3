"""Who is told how a command ended: a command that reads the outcome, and a file that is dropped in a folder.

Nothing here changes how the command itself ends: what fails is told on stderr and kept in the record of the run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icecore.store.durable import make_folder, write_bytes

from .exits import Exit, Outcome
from .watch_config import HookEvent, Hooks

__all__ = ["Told", "call_hooks", "events_of"]


@dataclass(frozen=True)
class Told:
    """One that was told, or should have been."""

    event: HookEvent
    """what it waited for"""
    to: str
    """command line, or the file that was dropped"""
    error: str = ""
    """why it did not go well"""


def events_of(outcome: Outcome) -> tuple[HookEvent, ...]:
    """Give the events that an outcome stands for."""
    if outcome.code is Exit.CHALLENGER_KEPT_BACK:
        return ("keep",)
    if outcome.is_failure:
        return ("fail",)
    return ("promote", "success") if outcome.promoted else ("success",)


def call_hooks(
    hooks: Hooks, outcome: Outcome, told: Mapping[str, Any], *, folder: Path, name: str, facts: Mapping[str, str]
) -> list[Told]:
    """Drop a file and run a command for each event that an outcome stands for.

    Parameters
    ----------
    outcome
        How the command ended.
    told
        Its JSON object, which files hold and commands read.
    folder
        Where commands run.
    name
        Begins the names of the files.
    facts
        Variables that commands find in their environment.

    Returns
    -------
    list of Told
        In the order of the events, files first.
    """
    text = json.dumps(told, indent=2).encode() + b"\n"
    found: list[Told] = []
    for event in events_of(outcome):
        if hooks.drop is not None and event in hooks.drop_on:
            path = hooks.drop / f"{name}-{event}.json"
            found.append(Told(event, str(path), _drop(path, text)))
        if argv := hooks.command_for(event):
            environment = {**os.environ, **facts, "ICECORE_EVENT": event}
            error = _run(argv, text, folder=folder, environment=environment, seconds=hooks.timeout)
            found.append(Told(event, subprocess.list2cmdline(argv), error))
    return found


def _drop(path: Path, text: bytes) -> str:
    try:
        make_folder(path.parent)
        write_bytes(path, text)
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


def _run(argv: Sequence[str], text: bytes, *, folder: Path, environment: Mapping[str, str], seconds: float) -> str:
    """Run a command with the outcome on its standard input; give why it failed, or nothing.

    Its output goes to our stderr. It has a session of its own, so that Ctrl-C does not reach it and whatever it began
    ends with it when its time is over.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - the config names the program, and no shell reads it
            argv, stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), cwd=folder, env=environment, start_new_session=True
        )
    except OSError as exc:
        return f"cannot be started ({exc.strerror})"
    try:
        process.communicate(text, timeout=seconds)
    except subprocess.TimeoutExpired:
        _kill(process)
        return f"killed: it was not done after {seconds:g} seconds"
    except KeyboardInterrupt:
        _kill(process)
        return "killed: this run was told to stop"
    return f"ended with exit code {process.returncode}" if process.returncode else ""


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):  # it has ended by itself meanwhile
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
