"""Processes named so that a later one can tell whether they still run, on the machine that they ran on."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "is_running", "peak_memory", "this_process"]

_KIB = 1024


@dataclass(frozen=True)
class Process:
    """One process of one machine, and of no later one that is given its number."""

    pid: int
    """process id"""
    host: str
    """host name"""
    boot: str | None = None
    """names the start of the system; None where the system has no such name"""
    began: int | None = None
    """clock ticks from the start of the system to that of the process; None where the system does not tell"""
    space: str | None = None
    """names the container, or what else gives numbers to processes; None where the system has none"""


def this_process() -> Process:
    """Name this process."""
    return Process(os.getpid(), socket.gethostname(), _boot(), _began(os.getpid()), _space())


def is_running(process: Process) -> bool | None:
    """Say whether a process still runs; None where this machine cannot know."""
    if process.host != socket.gethostname() or sys.platform == "win32":
        return None
    if process.boot is not None and process.boot != _boot():
        return False
    if process.space != _space():
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is there, and another user's
    return process.began is None or process.began == _began(process.pid)


def peak_memory() -> int | None:
    """Give the most bytes of memory that this process has held at once; None where the system does not tell."""
    with suppress(OSError):  # which the calls below ask next
        for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIB
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else _KIB)


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _began(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return int(fields[19])  # the 22nd of all: see proc(5)
    except (OSError, IndexError, ValueError):
        return None


def _space() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
