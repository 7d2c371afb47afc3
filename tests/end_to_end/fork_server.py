"""Runs jobs of icecore, each in a process of its own that can be killed, without paying torch's import every time.

It reads one JSON task a line on stdin and answers in JSON lines on stdout: ``{"pid": ...}``, then whatever the job
reports, then ``{"status": ...}``. A job is a fork of this process, which imports the libraries and computes nothing:
with one thread there is no thread pool that a fork would lose.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from icecore.extract import extract_images
from icecore.store import writer
from icecore.store.writer import Writer

torch.set_num_threads(1)

COUNTED = tuple(str(Path(writer.__file__).parents[1] / part) for part in ("store", "extract/job", "extract/pipeline"))
"""Calls made by this code, and to it, are the moments at which a job can be told to kill itself."""


def say(**facts: Any) -> None:
    os.write(1, json.dumps(facts).encode() + b"\n")


class Moments:
    """Counts calls and returns of the store and of the job around it, from the taking of the lock to the end.

    ``kill_at`` is the number of the one at which the process dies by SIGKILL. With ``in_commit`` n, only those inside
    the n-th commit count, from before the first byte of a segment to after the transaction, and its end is the last.
    """

    def __init__(self, kill_at: int | None, in_commit: int) -> None:
        self.kill_at, self.in_commit = kill_at, in_commit
        self.all, self.commits, self.inside, self.longest = 0, 0, 0, 0
        self.committing = False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if not frame.f_code.co_filename.startswith(COUNTED):
            return
        is_commit = frame.f_code is Writer._commit.__code__
        if is_commit and event == "call":
            self.committing, self.inside, self.commits = True, 0, self.commits + 1
        self.all += 1
        self.inside += 1
        ends = is_commit and event == "return"
        if self._is_it(ends):
            say(killed_in=frame.f_code.co_name, committing=self.committing)
            os.kill(os.getpid(), signal.SIGKILL)
        if ends:
            self.committing, self.longest = False, max(self.longest, self.inside)

    def _is_it(self, ends: bool) -> bool:
        if self.in_commit:
            here = self.committing and self.commits == self.in_commit
            return here and (ends or self.inside == self.kill_at)
        return self.all == self.kill_at


def count_moments(moments: Moments) -> None:
    """Start counting when the lock is taken, which is before the first change to the store."""
    enter = Writer.__enter__

    def entering(self: Writer) -> Writer:
        sys.setprofile(moments)
        return enter(self)

    Writer.__enter__ = entering  # type: ignore[method-assign, assignment]


def count_convolutions() -> dict[str, int]:
    """Count the calls of every convolution, as torch itself sees them: a witness of what is computed and what not."""
    calls: dict[str, int] = {}

    def count(module: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        if isinstance(module, torch.nn.Conv2d) and output.device.type != "meta":  # meta: shapes only, no numbers
            name = f"{module.in_channels}-{module.out_channels}-{module.kernel_size[0]}"
            calls[name] = calls.get(name, 0) + 1

    torch.nn.modules.module.register_module_forward_hook(count)
    return calls


def run_extraction(task: dict[str, Any]) -> None:
    convolutions = count_convolutions()
    moments = Moments(task["kill_at"], task["in_commit"])
    count_moments(moments)
    report = extract_images(
        **task["options"], device="cpu", progress=lambda done, total: say(done=done) if task["tell"] else None
    )
    sys.setprofile(None)
    failures = [[failure.id, failure.kind, failure.reason] for failure in report.failures]
    say(forwarded=report.forwarded, linked=report.linked, removed=report.removed, failures=failures)
    say(convolutions=convolutions)
    say(moments=moments.all, commits=moments.commits, longest_commit=moments.longest)


def run_command(task: dict[str, Any]) -> None:
    """Run the command line as the installed ``icecore`` does, its output in files; count what the network computes."""
    from icecore.cli import main

    convolutions = count_convolutions()
    answers = os.dup(1)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(task["folder"])
    try:
        main(task["arguments"])
    finally:
        sys.stdout.flush()
        os.dup2(answers, 1)
        say(convolutions=convolutions)


def run_job(task: dict[str, Any]) -> int:
    # At 256 rows a small test would commit once, at its end; with segments of 6 rows a kill finds many commits.
    writer.FIRST_ROWS = writer.MOST_ROWS = task.get("rows", writer.FIRST_ROWS)
    try:
        {"extract": run_extraction, "command": run_command}[task["job"]](task)
    except SystemExit as exc:
        return int(exc.code or 0)
    except BaseException:  # noqa: BLE001 - a fork must end here and never go on in the server's loop
        traceback.print_exc()
        return 70
    return 0


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = run_job(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        say(pid=pid)
        say(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
