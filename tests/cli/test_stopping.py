"""A limit of time stops a command as SIGTERM does: at a commit, with 130, and the next run goes on."""

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
from icecore.cli.stopping import stops, undisturbed
from icecore.store import FeatureStore, list_runs, verify_store
from PIL import Image

Icecore = Callable[..., Any]
ICECORE = str(Path(sys.executable).with_name("icecore"))


def test_a_limit_ends_the_block_and_says_who_did() -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stops(0.05 / 60) as stop:
        time.sleep(30)
    assert stop.by == "max-minutes"
    assert time.monotonic() - began < 25
    time.sleep(0.06)  # nothing rings later
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    with stops(0.05 / 60) as stop:
        pass
    time.sleep(0.1)
    assert stop.by is None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_named(kind: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is deaf to it
    try:
        _signalled(kind)
    finally:
        signal.signal(signal.SIGINT, before)


def _signalled(kind: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), stops(None) as stop:
        try:
            signal.raise_signal(kind)
        finally:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    assert stop.by == kind.name


def test_what_is_written_at_the_end_is_not_cut_off() -> None:
    with undisturbed():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_an_extraction_stops_at_its_limit_keeps_what_was_committed_and_goes_on(
    project: Any, icecore: Icecore, noisy: Callable[..., Image.Image], encoded: Callable[..., bytes]
) -> None:
    png = encoded(noisy(0), "PNG")
    for number in range(3000):
        (project.photos / f"{number:05}.png").write_bytes(png + number.to_bytes(4, "big"))
    slow = ["--set", "compute.batch_size=1", "--set", "compute.threads=1", "--set", "compute.compilation='never'"]
    warm = icecore("extract", project.config, "--dry-run")  # torch is loaded now: the limit is all the run's own
    assert warm.code == 0
    for seconds in (1.5, 6, 24):  # the first that lets anything be done on this machine
        done = icecore("extract", project.config, *slow, "--max-minutes", seconds / 60, "--json")
        assert done.code == 130
        told = f"stopped at its limit of {seconds / 60:g} minutes; what was committed is kept"
        assert done.told == f"icecore extract: {told}\n"
        assert (done.outcome["stopped_by"], done.outcome["retryable"]) == ("max-minutes", True)
        with FeatureStore.open(project.store) as store:
            ids = store["photos"].ids() if "photos" in store.sets() else []
        if ids:
            break
    assert 0 < len(ids) < 3000
    assert ids == [f"{number:05}.png" for number in range(len(ids))]
    assert verify_store(project.store).ok
    assert not verify_store(project.store).leftovers
    run = list_runs(project.store)[0]
    assert (run.state, run.exit_code) == ("interrupted", 130)
    again = icecore("extract", project.config, "--dry-run", "--json").outcome
    assert again["added"] == 3000 - len(ids)


def test_a_limit_that_is_a_success_ends_with_0(
    project: Any, icecore: Icecore, write_photos: Callable[..., None]
) -> None:
    write_photos(project.photos)
    options = ("--max-minutes", 1e-6, "--success-on", "130", "--json")
    done = icecore("extract", project.config, *options)
    assert (done.code, done.outcome["outcome_code"], done.outcome["stopped_by"]) == (0, 130, "max-minutes")


def test_a_training_that_is_stopped_leaves_no_half_bundle_and_a_sweep_keeps_its_cells(
    icecore: Icecore, trained: Any
) -> None:
    before = sorted(path.name for path in (trained.store / "models" / "default").iterdir())
    assert icecore("train", trained.config, "--max-minutes", 1e-6).code == 130
    assert sorted(path.name for path in (trained.store / "models" / "default").iterdir()) == before
    models = "train.models=['logistic_regression', 'ridge', 'knn', 'mlp']"
    with subprocess.Popen(
        [ICECORE, "sweep", str(trained.config), "--set", models, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("[2/"):
                run.send_signal(signal.SIGTERM)
                break
        out, _ = run.communicate(timeout=60)
    outcome = json.loads(out.splitlines()[-1])
    assert (run.returncode, outcome["stopped_by"]) == (130, "SIGTERM")
    again = icecore("sweep", trained.config, "--set", models, "--json").outcome
    assert again["reused"] >= 2


@pytest.mark.parametrize("minutes", ["0", "-1", "x"])
def test_a_limit_that_is_none_is_refused(icecore: Icecore, trained: Any, minutes: str) -> None:
    assert icecore("extract", trained.config, "--max-minutes", minutes).code == 2
