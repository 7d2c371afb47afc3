"""What a run tells while it is at work: each thing once, in order, with counts that add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.extract import Event
from icecore.extract.events import WINDOW, Counts, Pace, Teller
from icecore.store import FeatureStore

Extract = Callable[..., Any]


@pytest.fixture
def told(extract: Extract) -> Callable[..., list[Event]]:
    """Function that extracts and gives the events."""

    def told(**options: Any) -> list[Event]:
        events: list[Event] = []
        extract(events=events.append, **options)
        return events

    return told


def test_a_run_tells_its_beginning_plan_batches_commits_and_end_in_order(
    told: Callable[..., list[Event]], tmp_path: Path
) -> None:
    events = told()
    assert [event.kind for event in events] == ["started", "planned", *["progress"] * 3, "committed", "finished"]
    assert [event.counts.done for event in events] == [0, 0, 4, 8, 9, 9, 9]
    assert events[-1].counts == Counts(done=9, total=9, forwarded=8, linked=1, failed=0)
    assert events[1].facts["to_read"] == 9
    assert (events[5].facts["images"], events[5].facts["version"]) == (9, events[-1].facts["version"])
    assert len({event.run for event in events}) == 1
    with FeatureStore.open(tmp_path / "store") as store:
        assert {version.run for version in store["photos"].log()} == {events[0].run}
    for event in events:
        assert json.loads(json.dumps(event.to_json()))["event"] == event.kind


def test_each_failure_is_told_with_its_reason_and_counted(
    told: Callable[..., list[Event]], photos: Path, tmp_path: Path
) -> None:
    (photos / "a" / "2.png").write_bytes(b"no image")
    (photos / "dead.png").symlink_to(tmp_path / "nowhere")
    events = told()
    failures = {event.facts["id"]: event.facts["kind"] for event in events if event.kind == "failure"}
    assert failures == {"a/2.png": "decode", "dead.png": "read"}
    assert events[-1].counts == Counts(done=10, total=10, forwarded=7, linked=1, failed=2)


def test_a_run_with_nothing_to_do_and_a_dry_run_end_with_finished(told: Callable[..., list[Event]]) -> None:
    assert [event.kind for event in told(dry_run=True)] == ["started", "finished"]
    told()
    again = told()
    assert [event.kind for event in again] == ["started", "planned", "finished"]
    assert again[1].facts["unchanged"] == 9


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    assert pace.rate() is None
    for second in range(101):  # 10 a second, then 2 a second
        clock[0] = float(second)
        pace.add(10 * min(second, 50) + 2 * max(0, second - 50))
        if second == 40:
            assert pace.rate() == pytest.approx(10)
    assert pace.rate() == pytest.approx(2)
    assert WINDOW == 30


def test_many_small_batches_keep_the_window_short_and_the_rate_exact() -> None:
    clock = [0.0]
    pace = Pace(lambda: clock[0])
    for step in range(100_001):
        clock[0] = step / 1000
        pace.add(step)
    assert pace.rate() == pytest.approx(1000)
    assert len(pace._samples) < 130  # whatever the number of batches


def test_nothing_is_made_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("icecore.extract.events.Event", refuse)
    Teller(None, "photos").tell("progress")
