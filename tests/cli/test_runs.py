"""Every command that changes a store leaves a record, and `icecore runs` tells it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import list_runs
from PIL import Image

Icecore = Callable[..., Any]
ICECORE = str(Path(sys.executable).with_name("icecore"))


@pytest.fixture
def fresh(trained: Any) -> Any:
    """A trained project of which no run is recorded."""
    shutil.rmtree(trained.store / "runs")
    return trained


CHANGING = {
    "extract": lambda p: ["extract", p.config],
    "train": lambda p: ["train", p.config],
    "sweep": lambda p: ["sweep", p.config],
    "store backup": lambda p: ["store", "backup", p.store, p.folder / "copy"],
    "store compact": lambda p: ["store", "compact", p.store],
    "store gc": lambda p: ["store", "gc", p.store],
    "store repair": lambda p: ["store", "repair", p.store],
    "store revert": lambda p: ["store", "revert", p.store, "photos", "1"],
    "store tag": lambda p: ["store", "tag", p.store, "photos", "v1"],
}
READING = {
    "extract --dry-run": lambda p: ["extract", p.config, "--dry-run"],
    "doctor": lambda p: ["doctor", p.store],
    "metrics": lambda p: ["metrics", p.store],
    "runs ls": lambda p: ["runs", "ls", p.store],
    "store gc --dry-run": lambda p: ["store", "gc", p.store, "--dry-run"],
    "store ls": lambda p: ["store", "ls", p.store],
    "store status": lambda p: ["store", "status", p.store],
    "store verify": lambda p: ["store", "verify", p.store],
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_command_that_changes_something_leaves_one_record_with_its_outcome(
    icecore: Icecore, fresh: Any, name: str
) -> None:
    words = [str(word) for word in CHANGING[name](fresh)]
    done = icecore(*words, "--json")
    (run,) = list_runs(fresh.store)
    assert run.id == done.outcome["run"]
    assert (run.command, run.state, run.exit_code) == (name, "finished", 0)
    assert run.words == (*words, "--json")
    assert run.outcome["outcome"] == "done"
    assert run.process.pid == os.getpid()
    assert run.seconds is not None
    assert run.seconds > 0
    assert (run.peak_memory or 0) > 10 << 20
    assert {"icecore", "python", "numpy"} <= run.versions.keys()
    if words[1] == str(fresh.config):
        assert run.config == str(fresh.config)
        assert len(run.config_digest or "") == 64


@pytest.mark.parametrize("name", READING)
def test_a_command_that_changes_nothing_leaves_none(icecore: Icecore, fresh: Any, name: str) -> None:
    assert icecore(*READING[name](fresh)).code == 0
    assert not (fresh.store / "runs").exists()


def test_the_first_extraction_is_recorded_in_the_store_that_it_makes(
    icecore: Icecore, project: Any, write_photos: Callable[..., None]
) -> None:
    write_photos(project.photos, train=2, val=1)
    assert icecore("extract", project.config).code == 0
    (run,) = list_runs(project.store)
    assert (run.command, run.state) == ("extract", "finished")


def test_the_digest_is_of_what_the_config_says_and_not_of_its_text(icecore: Icecore, fresh: Any) -> None:
    icecore("extract", fresh.config)
    fresh.config.write_text(fresh.config.read_text() + "# a remark\n")
    icecore("extract", fresh.config)
    icecore("extract", fresh.config, "--set", "compute.threads=1")
    third, second, first = (run.config_digest for run in list_runs(fresh.store))
    assert first == second != third


def test_a_run_that_fails_is_recorded_with_its_reason(icecore: Icecore, fresh: Any) -> None:
    icecore("extract", fresh.config, "--set", "source.folder=nosuch")
    icecore("store", "tag", fresh.store, "nosuch", "v1")
    usage, failed = list_runs(fresh.store)
    assert (failed.state, failed.exit_code) == ("failed", 1)
    assert "nosuch" in failed.outcome["error"]
    assert (usage.state, usage.exit_code) == ("failed", 2)


def test_ls_filters_and_show_tells_all(icecore: Icecore, fresh: Any) -> None:
    icecore("extract", fresh.config)
    icecore("extract", fresh.config, "--set", "source.folder=nosuch")
    icecore("store", "compact", fresh.store)

    def ls(*options: str) -> list[str]:
        found = icecore("runs", "ls", fresh.store, *options, "--json").outcome["runs"]
        return [f"{run['command']} {run['state']}" for run in found]

    assert ls() == ["store compact finished", "extract failed", "extract finished"]
    assert ls("--failed") == ["extract failed"]
    assert ls("--command", "extract") == ["extract failed", "extract finished"]
    assert ls("--since", "1h", "--limit", "1") == ["store compact finished"]
    assert ls("--since", "2999-01-01") == []
    lines = icecore("runs", "ls", fresh.store).text.splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["run", "command", "state", "code", "started", "seconds", "memory", "told"]
    name = lines[3].split()[0]
    shown = icecore("runs", "show", fresh.store, name[-8:]).text
    assert f"icecore extract {fresh.config} --set source.folder=nosuch" in shown
    assert "failed, exit code 1" in shown
    assert icecore("runs", "show", fresh.store, name, "--json").outcome["run"]["id"] == name
    assert icecore("runs", "ls", fresh.store, "--since", "1y").code == 2
    assert icecore("runs", "show", fresh.store, "nosuch").code == 2
    assert icecore("runs", "ls", fresh.folder).code == 3


def test_a_store_without_runs_says_so(icecore: Icecore, fresh: Any) -> None:
    assert icecore("runs", "ls", fresh.store).text == f"{fresh.store}: no such runs\n"


def test_a_record_that_cannot_be_written_is_told_and_the_job_is_done(icecore: Icecore, fresh: Any) -> None:
    (fresh.store / "runs").write_bytes(b"in the way")
    done = icecore("extract", fresh.config, "--json")
    assert done.code == 0
    assert done.told.startswith(f"icecore extract: {fresh.store}: the record of this run cannot be kept (")
    assert "run" not in done.outcome


def test_a_killed_run_has_died(
    project: Any, icecore: Icecore, noisy: Callable[..., Image.Image], encoded: Callable[..., bytes]
) -> None:
    png = encoded(noisy(0), "PNG")
    for number in range(400):
        (project.photos / f"{number:05}.png").write_bytes(png + number.to_bytes(4, "big"))
    options = ["--set", "compute.batch_size=1", "--set", "compute.compilation='never'"]
    with subprocess.Popen([ICECORE, "extract", str(project.config), *options], stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 120
        while not list(project.store.glob("runs/*.json")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        at_work = icecore("runs", "ls", project.store, "--json").outcome["runs"]
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=60)
    assert [(one["state"], one["process"]["pid"]) for one in at_work] == [("running", run.pid)]
    (found,) = icecore("runs", "ls", project.store, "--failed", "--json").outcome["runs"]
    assert (found["id"], found["state"], found["exit_code"]) == (at_work[0]["id"], "died", None)
    assert "died: its process is gone" in icecore("runs", "show", project.store, found["id"]).text


def test_every_command_logs_events_and_beats(icecore: Icecore, fresh: Any) -> None:
    log, beat = fresh.folder / "events.jsonl", fresh.folder / "beat.json"
    fresh.set(f'\n[watch]\nlog = "{log.name}"\nheartbeat = "{beat.name}"\nevery = 0.001\n')
    done = icecore("train", fresh.config, "--json")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in told] == ["started", "progress", "finished"]
    assert {line["run"] for line in told} == {done.outcome["run"]}
    assert (told[0]["command"], told[0]["store"]) == ("icecore train", str(fresh.store))
    assert (told[-1]["exit_code"], told[-1]["done"], told[-1]["total"]) == (0, 1, 1)
    state = json.loads(beat.read_text())
    assert (state["state"], state["exit_code"], state["run"]) == ("finished", 0, done.outcome["run"])
    log.unlink()
    failed = icecore("train", fresh.config, "--set", "train.folds=50")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in told] == ["started", "failed"]
    assert told[-1]["exit_code"] == failed.code == 1
    assert json.loads(beat.read_text())["state"] == "failed"


def test_a_command_that_only_reads_logs_where_its_option_says(icecore: Icecore, fresh: Any) -> None:
    done = icecore("store", "ls", fresh.store, "--log-json", "-")
    assert [json.loads(line)["event"] for line in done.told.splitlines()] == ["started", "finished"]


def test_a_config_that_is_refused_is_logged_too(icecore: Icecore, fresh: Any) -> None:
    log = fresh.folder / "events.jsonl"
    done = icecore("extract", fresh.config, "--set", "compute.batch_size=0", "--log-json", log)
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in told] == ["started", "failed"]
    assert told[-1]["exit_code"] == done.code == 4
    assert "compute.batch_size" in told[-1]["error"]
