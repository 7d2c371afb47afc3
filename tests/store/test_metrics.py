"""Numbers for Prometheus, read back by its own parser."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    SourceImage,
    StoreNotFoundError,
    store_metrics,
    store_status,
    write_metrics,
)
from icecore.store.exposition import Family, exposition
from icecore.store.runs import begin_run, end_run, ended, new_run
from prometheus_client.parser import text_string_to_metric_families

Read = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def small_store(
    fill: Callable[..., FeatureStore],
    contract: Contract,
    columns: Sequence[Column],
    image: Callable[..., SourceImage],
) -> Path:
    """Three images with features, and one that has none."""
    with fill({"a.jpg": "a", "b.jpg": "b", "c.jpg": "c"}) as store:
        with store.writer("photos", contract, columns) as writer:
            writer.fail(image("bad.jpg"), "decode", "no image")
        return store.path


def read(text: bytes) -> Read:
    """Give every sample by name and labels, as Prometheus reads them."""
    found: Read = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        assert family.type == "gauge"
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


@pytest.mark.parametrize(
    "value", ["", "plain", 'a "quoted" word', "back\\slash", "two\nlines", "\\n", "été 写真", 'all\\"\n\\\\']
)
def test_any_label_is_read_back_as_it_was(value: str) -> None:
    text = exposition([Family("icecore_x", "Help \\ of\ntwo lines.", [({"path": value}, 1.5)])])
    (family,) = text_string_to_metric_families(text.decode())
    assert family.documentation == "Help \\ of\ntwo lines."
    assert family.samples[0].labels == {"path": value}


def test_bytes_that_are_not_utf_8_are_written_by_their_numbers() -> None:
    text = exposition([Family("icecore_x", "Help.", [({"path": "a\udcffb"}, 1)])])
    assert read(text) == {("icecore_x", frozenset({("path", "a\\xffb")})): 1.0}


@pytest.mark.parametrize("value", [0, 1, -3.5, 1e300, 2.0**60, math.inf, -math.inf, 0.1, 1763777777.123])
def test_any_number_is_read_back_as_it_was(value: float) -> None:
    assert read(exposition([Family("icecore_x", "Help.", [({}, value)])])) == {("icecore_x", frozenset()): value}


def test_no_number_is_nan_and_a_family_without_samples_is_left_out() -> None:
    text = exposition([Family("icecore_x", "Help.", [({}, math.nan)]), Family("icecore_y", "Help.")])
    assert math.isnan(read(text)["icecore_x", frozenset()])
    assert b"icecore_y" not in text


def test_the_numbers_of_a_store_are_those_of_its_status_and_its_runs(small_store: Path) -> None:
    for command, state, code, ended_at in (
        ("extract", "finished", 0, "2026-11-20T02:00:00.000+00:00"),
        ("extract", "failed", 1, "2026-11-21T02:00:00.000+00:00"),
        ("train", "finished", 5, "2026-11-21T03:00:00.000+00:00"),
    ):
        run = replace(new_run(command, []), started=ended_at)
        outcome = {"exit_code": 0, "outcome_code": code}
        end_run(small_store, replace(ended(run, outcome, state=state, seconds=12.5), ended=ended_at))  # type: ignore[arg-type]
    begin_run(small_store, new_run("sweep", []))
    found = read(store_metrics(small_store))
    store = ("store", str(small_store))
    (status,) = store_status(small_store).sets

    def of(name: str, **labels: str) -> float:
        return found[f"icecore_{name}", frozenset({store, *labels.items()})]

    assert of("rows", set="photos") == status.summary.images == 3
    assert of("failures", set="photos", kind="decode") == 1
    assert of("failures", set="photos", kind="read") == 0
    assert of("pending_images", set="photos") == 0
    age = time.time() - of("last_commit_timestamp_seconds", set="photos")
    assert of("features_age_seconds", set="photos") == pytest.approx(age, abs=2)
    assert of("segment_bytes", set="photos") == status.bytes
    assert of("writers") == 0
    assert of("last_success_timestamp_seconds", command="extract") == datetime(2026, 11, 20, 2, tzinfo=UTC).timestamp()
    assert of("last_run_outcome", command="extract") == 1
    assert of("last_run_outcome", command="train") == 5
    assert of("last_run_duration_seconds", command="extract") == 12.5
    assert of("last_run_peak_memory_bytes", command="train") > 1 << 20
    assert not [labels for _, labels in found if ("command", "sweep") in labels], "a run at work has not ended"


def test_a_run_that_was_killed_is_told_as_one(small_store: Path) -> None:
    run = new_run("extract", [])
    begin_run(small_store, replace(run, process=replace(run.process, boot="another")))
    found = read(store_metrics(small_store))
    labels = frozenset({("store", str(small_store)), ("command", "extract")})
    assert found["icecore_last_run_outcome", labels] == 137
    assert ("icecore_last_success_timestamp_seconds", labels) not in found


def test_the_file_is_replaced_whole_and_can_be_read_by_all(small_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "icecore.prom"
    out.write_text("of yesterday")
    assert write_metrics(small_store, out) == out.stat().st_size
    assert read(out.read_bytes())
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_without_a_store_there_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        write_metrics(tmp_path, tmp_path / "icecore.prom")
    assert not list(tmp_path.iterdir())
