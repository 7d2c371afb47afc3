"""The installed command as a shell and a scheduler see it: signals and pipes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore, verify_store
from PIL import Image

ICECORE = str(Path(sys.executable).with_name("icecore"))
# A shell that starts a job in the background makes it ignore SIGINT: the job's children must not inherit that here.
AS_IN_A_TERMINAL = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from icecore.cli import main\n"
    "main()\n"
)
MANY = 4000


@pytest.fixture
def many(project: Any, noisy: Callable[..., Image.Image], encoded: Callable[..., bytes]) -> Any:
    """A project with so many images that a run takes long: some bytes after a PNG's end make each content new."""
    png = encoded(noisy(0), "PNG")
    for number in range(MANY):
        (project.photos / f"{number:05}.png").write_bytes(png + number.to_bytes(4, "big"))
    return project


def committed(store: Path) -> bool:
    """Say whether readers see anything yet."""
    if not list(store.rglob("*.h5")):
        return False
    with FeatureStore.open(store) as opened:
        return opened.sets() == ("photos",)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        pytest.param(signal.SIGTERM, [ICECORE], id="SIGTERM"),
        pytest.param(signal.SIGINT, [sys.executable, "-c", AS_IN_A_TERMINAL], id="SIGINT", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_extraction_ends_with_130_and_keeps_what_was_done(
    many: Any, kind: signal.Signals, command: list[str]
) -> None:
    result = many.folder / "result.json"
    options = ["--set", "compute.batch_size=1", "--set", "compute.threads=1", "--result-file", str(result), "--json"]
    with subprocess.Popen(
        [*command, "extract", str(many.config), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as run:
        deadline = time.monotonic() + 120
        while not committed(many.store):  # the first commit comes long before the last image
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(kind)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err == b"icecore extract: interrupted, what was committed is kept\n"
    outcome = json.loads(out)
    assert json.loads(result.read_text()) == outcome
    assert (outcome["exit_code"], outcome["retryable"]) == (130, True)
    with FeatureStore.open(many.store) as store:
        ids = store["photos"].ids()
    assert 256 <= len(ids) < MANY
    assert ids == [f"{number:05}.png" for number in range(len(ids))]  # a prefix of the work
    assert verify_store(many.store).ok
    assert not list(many.store.rglob("*.tmp"))


# Interrupted once after some batches, and again inside the last commit, at a step of it.
INTERRUPTED_TWICE = """
import os, signal, sys
from icecore.cli import main
from icecore.extract import passes
from icecore.store import publishing, writer

first, module, step, *words = sys.argv[1:]
module = {"publishing": publishing, "writer": writer}[module]
signal.signal(signal.SIGINT, signal.default_int_handler)
record, leave, act = passes.record_batch, writer.Writer.__exit__, getattr(module, step)
batches = 0

def record_and_interrupt(*args):
    global batches
    record(*args)
    batches += 1
    if batches == 33:
        os.kill(os.getpid(), getattr(signal, first))

def leave_interrupted(self, kind, *rest):
    if kind is KeyboardInterrupt:
        setattr(module, step, interrupt_and_act)
    return leave(self, kind, *rest)

def interrupt_and_act(*args, **kwargs):
    setattr(module, step, act)
    print("again", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGINT)
    return act(*args, **kwargs)

passes.record_batch, writer.Writer.__exit__ = record_and_interrupt, leave_interrupted
main(words)
"""


@pytest.mark.parametrize(
    ("first", "module", "step"),
    [
        ("SIGINT", "publishing", "write_segment"),
        pytest.param("SIGTERM", "writer", "apply_commit", marks=pytest.mark.slow),
    ],
)
def test_a_second_interrupt_during_the_last_commit_ends_with_130_and_loses_what_was_not_committed_only(
    project: Any,
    noisy: Callable[..., Image.Image],
    encoded: Callable[..., bytes],
    icecore: Callable[..., Any],
    first: str,
    module: str,
    step: str,
) -> None:
    png = encoded(noisy(0), "PNG")
    for number in range(300):
        (project.photos / f"{number:05}.png").write_bytes(png + number.to_bytes(4, "big"))
    words = ["extract", str(project.config), "--json"]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE, first, module, step, *words], capture_output=True, check=False
    )
    assert ended.stderr == b"again\nicecore extract: interrupted, what was committed is kept\n"
    assert ended.returncode == 130
    assert json.loads(ended.stdout)["retryable"] is True
    with FeatureStore.open(project.store) as store:
        assert store["photos"].ids() == [f"{number:05}.png" for number in range(256)]
    report = verify_store(project.store)
    assert report.ok
    assert not report.leftovers
    again = icecore(*words)
    assert (again.code, again.outcome["to_read"]) == (0, 44)
    assert verify_store(project.store).ok


def test_a_reader_that_leaves_early_is_no_traceback(trained: Any) -> None:
    """``icecore store show ... | head -0``."""
    result = trained.folder / "result.json"
    with subprocess.Popen(
        [ICECORE, "store", "show", str(trained.store), "photos", "--result-file", str(result)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        err = run.stderr.read()
    assert run.returncode == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert json.loads(result.read_text())["images"] == 18


def test_the_installed_command_and_the_module_are_the_same() -> None:
    ends = [
        subprocess.run([*command, "store", "ls", "nosuch"], capture_output=True, check=False)
        for command in ([ICECORE], [sys.executable, "-m", "icecore.cli"])
    ]
    assert {end.returncode for end in ends} == {3}
    assert ends[0].stderr == ends[1].stderr
    assert ends[0].stderr.startswith(b"icecore store ls: nosuch: no feature store here")
