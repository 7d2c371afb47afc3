"""A run watched from outside: the log of events and the heartbeat, on sound and on full disks."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from icecore.extract import Watch, WatchError, passes
from icecore.extract.events import Counts, Event

Extract = Callable[..., Any]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def event(kind: Any, done: int = 0, **facts: Any) -> Event:
    return Event(kind, "2026-01-01T00:00:00.000+00:00", "r" * 32, "photos", Counts(done, 10), 2.0, 5.0, facts)


def test_log_and_heartbeat_of_a_run_that_ends_well(extract: Extract, photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "2.png").write_bytes(b"no image")
    log, beat = tmp_path / "run.jsonl", tmp_path / "beat.json"
    with Watch(log=log, heartbeat=beat, every=3600, facts={"store": "features"}) as watch:
        extract(events=watch)
        watch.exit_code = 5
    told = lines(log)
    assert [line["event"] for line in told] == ["started", "planned", "failure", "progress", "committed", "finished"]
    assert {line["run"] for line in told} == {told[0]["run"]}
    assert (told[0]["pid"], told[0]["host"], told[0]["store"]) == (os.getpid(), socket.gethostname(), "features")
    assert told[2]["id"] == "a/2.png"
    last = told[-1]
    assert (last["done"], last["total"], last["failed"], last["exit_code"], last["version"]) == (9, 9, 1, 5, 1)
    for line in told:
        assert datetime.fromisoformat(line["time"]).utcoffset() is not None
    state = json.loads(beat.read_bytes())
    assert (state["format"], state["format_version"]) == ("icecore-heartbeat", 1)
    assert (state["state"], state["exit_code"], state["pid"]) == ("finished", 5, os.getpid())
    assert (state["done"], state["total"], state["forwarded"], state["linked"], state["failed"]) == (9, 9, 7, 1, 1)
    assert state["started"] <= state["last_progress"] <= state["time"]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_second_run_is_appended_to_the_log(extract: Extract, tmp_path: Path) -> None:
    for _ in range(2):
        with Watch(log=tmp_path / "run.jsonl") as watch:
            extract(events=watch)
    told = lines(tmp_path / "run.jsonl")
    assert [line["event"] for line in told].count("finished") == 2
    assert len({line["run"] for line in told}) == 2


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [(KeyboardInterrupt(), "interrupted", 130), (RuntimeError("no memory left"), "failed", 1)],
)
def test_a_run_that_breaks_off_says_so_and_keeps_its_last_counts(
    extract: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str, code: int
) -> None:
    record = passes.record_batch
    batches: list[int] = []

    def failing(writer: Any, batch: Any, *rest: Any) -> None:
        batches.append(len(batch.outcomes))
        if len(batches) == 2:
            raise error
        record(writer, batch, *rest)

    monkeypatch.setattr(passes, "record_batch", failing)
    log, beat = tmp_path / "run.jsonl", tmp_path / "beat.json"
    with (
        pytest.raises(type(error)),
        Watch(log=log, heartbeat=beat, exit_code_of=lambda exc: 130 if isinstance(exc, KeyboardInterrupt) else 1) as w,
    ):
        extract(events=w)
    last, found = lines(log)[-1], json.loads(beat.read_bytes())
    assert (last["event"], last["exit_code"], last["done"]) == (state, code, 4)
    assert (found["state"], found["exit_code"], found["done"]) == (state, code, 4)
    assert found["error"] == last["error"] == (str(error) or "KeyboardInterrupt")
    assert found["eta_seconds"] is None


def test_the_heartbeat_is_rewritten_now_and_then_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("icecore.extract.watching.time.monotonic", lambda: clock[0])
    beat, log = tmp_path / "beat.json", tmp_path / "run.jsonl"
    seen = []
    with Watch(heartbeat=beat, log=log, every=10) as watch:
        assert json.loads(beat.read_bytes())["state"] == "running"  # before anything was told
        for done in range(1, 31):  # one a second
            clock[0] += 1
            watch(event("progress", done))
            seen.append(json.loads(beat.read_bytes())["done"])
    assert sorted(set(seen)) == [1, 11, 21]
    assert [line["done"] for line in lines(log)] == [1, 11, 21, 30]


def test_a_heartbeat_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "beat.json").symlink_to(tmp_path / "run" / "beat.json")
    with Watch(heartbeat=tmp_path / "beat.json"):
        pass
    assert (tmp_path / "beat.json").is_symlink()
    assert json.loads((tmp_path / "run" / "beat.json").read_bytes())["state"] == "finished"


@pytest.mark.parametrize("what", ["log", "heartbeat"])
def test_a_file_that_cannot_be_written_is_an_error_before_the_run(tmp_path: Path, what: Any) -> None:
    place = tmp_path / "nosuch" / "file"
    with pytest.raises(WatchError, match=f"{place}: the {what} cannot be written .No such file.*nothing was begun.*"):
        Watch(**{what: place}).__enter__()
    with pytest.raises(WatchError, match=f"{tmp_path}: the {what} cannot be written"):
        Watch(**{what: tmp_path}).__enter__()


def test_a_heartbeat_never_replaces_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WatchError, match="is no regular file"):
        Watch(heartbeat=tmp_path / "pipe").__enter__()
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_when_the_disk_fills_later_one_warning_is_given_and_both_go_on_when_it_has_room_again(
    small_disk: Callable[[int], Any], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(64)
    log, beat = disk.path / "run.jsonl", disk.path / "beat.json"
    with Watch(log=log, heartbeat=beat, every=1e-9) as watch:
        watch(event("started"))
        disk.leave(0)
        for done in range(400):
            watch(event("failure", done, id="x" * 100))
        disk.clear()
        watch(event("progress", 400))
        assert json.loads(beat.read_bytes())["done"] == 400
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert any(f"{log}: events cannot be written there for now" in line for line in warned)
    assert any(f"{beat}: the heartbeat cannot be written for now (No space left" in line for line in warned)
    whole = [line for line in log.read_text("utf-8").splitlines() if line.endswith("}")]
    assert [json.loads(line)["event"] for line in whole][-2:] == ["progress", "finished"]
    assert len(log.read_text("utf-8").splitlines()) - len(whole) <= 1  # the one that the full disk cut
    assert json.loads(beat.read_bytes())["state"] == "finished"


def test_a_run_goes_on_when_its_log_and_heartbeat_cannot_be_written(
    extract: Extract, tmp_path: Path, matrix: Any, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "watch"
    place.mkdir()
    with Watch(heartbeat=place / "beat.json", log=tmp_path / "run.jsonl", every=1e-9) as watch:
        (place / "beat.json").unlink()
        place.rmdir()
        extract(events=watch)
    assert len(matrix()[0]) == 9
    assert [line["event"] for line in lines(tmp_path / "run.jsonl")].count("warning") == 1
    assert len(caplog.records) == 1


def test_what_the_store_warns_of_is_in_the_log(extract: Extract, photos: Path, tmp_path: Path) -> None:
    """Readers stay where they are when a new contract cannot cover an image whose file cannot be read."""
    extract()
    (photos / "a" / "2.png").unlink()
    (photos / "a" / "2.png").symlink_to(tmp_path / "nowhere")
    with Watch(log=tmp_path / "run.jsonl") as watch:
        extract(preprocess_changes={"resize": 36}, events=watch)
    (warning,) = [line for line in lines(tmp_path / "run.jsonl") if line["event"] == "warning"]
    assert "readers of photos stay where they are" in warning["message"]


def test_a_dash_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Watch(log="-") as watch:
        watch(event("started"))
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["started", "finished"]


def test_seconds_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="every to be above 0 seconds, found 0"):
        Watch(every=0)
