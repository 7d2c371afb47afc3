"""Records of runs: who is at work, how it ended, and who was killed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from icecore.store import FeatureStore, RunNotFoundError, StoreNotFoundError, find_run, list_runs, runs
from icecore.store.processes import Process, is_running, peak_memory, this_process
from icecore.store.runs import begin_run, end_run, ended, new_run

OUTCOME = {"command": "extract", "exit_code": 0, "outcome_code": 0, "failures": [{"id": str(n)} for n in range(60)]}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    FeatureStore.create(tmp_path / "features").close()
    return tmp_path / "features"


def gone() -> Process:
    """A process that ran on this machine and has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pid = other.pid
    return replace(this_process(), pid=pid, began=1)


def test_a_run_is_written_when_it_begins_and_over_it_when_it_ends(store: Path) -> None:
    run = new_run("extract", ["extract", "night\udcff.toml"])
    begin_run(store, run)
    (begun,) = list_runs(store)
    assert begun == run
    assert (begun.state, begun.ended, begun.exit_code) == ("running", None, None)
    end_run(store, ended(run, OUTCOME, state="finished", seconds=1.23456))
    (file,) = (store / "runs").iterdir()
    told = json.loads(file.read_bytes())
    assert (told["format"], told["format_version"], file.name) == ("icecore-run", 1, f"{run.id}.json")
    (done,) = list_runs(store)
    assert (done.state, done.seconds, done.exit_code, done.process.pid) == ("finished", 1.235, 0, os.getpid())
    assert done.started <= (done.ended or "")
    assert done.words == ("extract", "night\udcff.toml")


def test_long_lists_of_an_outcome_are_cut_and_the_number_is_kept(store: Path) -> None:
    run = new_run("extract", [])
    end_run(store, ended(run, OUTCOME, state="finished", seconds=0.0))
    kept = find_run(store, run.id).outcome["failures"]
    assert len(kept) == 51
    assert kept[-1] == "... and 10 more"


def test_one_whose_process_is_gone_has_died_and_one_elsewhere_may_still_run(store: Path) -> None:
    for name, process in {
        "here": this_process(),
        "gone": gone(),
        "before the machine was started anew": replace(this_process(), boot="another"),
        "another process with its number": replace(this_process(), began=1),
        "elsewhere": replace(this_process(), host="elsewhere", boot="another"),
        "in another container": replace(gone(), space="pid:[1]"),
    }.items():
        begin_run(store, replace(new_run(name, []), process=process))
    states = {run.command: run.state for run in list_runs(store)}
    assert states == {
        "here": "running",
        "gone": "died",
        "before the machine was started anew": "died",
        "another process with its number": "died",
        "elsewhere": "running",
        "in another container": "running",
    }


def test_this_process_runs_and_one_elsewhere_cannot_be_known() -> None:
    assert is_running(this_process()) is True
    assert is_running(Process(1, "elsewhere")) is None
    assert is_running(gone()) is False


def test_peak_memory_is_the_most_that_was_held() -> None:
    code = "from icecore.store.processes import peak_memory; x = bytearray(200 << 20); del x; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 200 << 20 < int(done.stdout) < 600 << 20
    assert (peak_memory() or 0) > 1 << 20


def test_the_newest_come_first_and_the_oldest_go(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "KEPT", 5)
    for n in range(8):
        begin_run(
            store, replace(new_run(str(n), []), id=f"2026112{n}T000000Z-0000000{n}", started=f"2026-11-2{n}T00:00:00Z")
        )
    assert [run.command for run in list_runs(store)] == ["7", "6", "5", "4", "3"]


def test_what_a_kill_left_half_written_is_swept_a_day_later(store: Path) -> None:
    begin_run(store, new_run("first", []))
    for age, name in ((2 * 86_400, "old.json.1.tmp"), (0, "new.json.2.tmp")):
        (store / "runs" / name).write_bytes(b"{")
        stamp = (store / "runs" / name).stat().st_mtime - age
        os.utime(store / "runs" / name, (stamp, stamp))
    begin_run(store, new_run("second", []))
    assert [path.name for path in (store / "runs").glob("*.tmp")] == ["new.json.2.tmp"]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"format": "icecore-run", "format_version": 2}', b'{"format": "other", "format_version": 1}']
)
def test_a_file_that_is_no_record_is_named_and_left_out(
    store: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    begin_run(store, new_run("extract", []))
    odd = store / "runs" / "20261122T000000Z-00000000.json"
    odd.write_bytes(text)
    with caplog.at_level(logging.WARNING):
        assert [run.command for run in list_runs(store)] == ["extract"]
    assert str(odd) in caplog.text


def test_keys_of_a_later_release_are_left_alone(store: Path) -> None:
    run = new_run("extract", [])
    begin_run(store, run)
    (file,) = (store / "runs").iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "later": 1}))
    assert list_runs(store) == [run]


def test_a_run_is_found_by_either_end_of_its_name(store: Path) -> None:
    made = [replace(new_run(str(n), []), id=f"20261122T00000{n}Z-1234567{n}") for n in (1, 2)]
    for run in made:
        begin_run(store, run)
    assert find_run(store, "12345671") == made[0]
    assert find_run(store, "20261122T000002") == made[1]
    with pytest.raises(RunNotFoundError, match="2 runs are called so"):
        find_run(store, "20261122")
    with pytest.raises(RunNotFoundError, match="no run is called so; did you mean '20261122T000001Z-12345671'"):
        find_run(store, "20261122T000001Z-12345670")
    with pytest.raises(RunNotFoundError):
        find_run(store, "")


def test_where_there_is_no_store_there_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        list_runs(tmp_path)
