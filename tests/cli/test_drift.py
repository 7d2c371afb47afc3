"""Drift on the command line: ``predict``, ``extract`` and ``report drift`` tell it, and fail on it when asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Icecore = Callable[..., Any]
GREY = (120, 120, 120)


def new_images(folder: Path, noisy: Any, *, first: int, colours: list[tuple[int, int, int]], count: int = 24) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        noisy(first + number, colours[number % len(colours)]).save(folder / f"{first}-{number}.png")
    return folder


def test_predict_tells_drift_and_the_history_grows(
    champion: Path, tmp_path: Path, icecore: Icecore, noisy: Any
) -> None:
    no_history = shutil.ignore_patterns("drift")  # that of other tests
    store = shutil.copytree(champion / "features", tmp_path / "features", ignore=no_history)
    like = new_images(tmp_path / "like", noisy, first=1000, colours=[(220, 30, 30), (30, 30, 220)])
    words = ("predict", "champion", "--store", store, "--fail-on-drift", "--json", "--images")
    calm = icecore(*words, like)
    assert (calm.code, calm.outcome["drift"]["drifted"]) == (0, False)
    assert calm.outcome["drift"]["rows"] == 24
    other = new_images(tmp_path / "other", noisy, first=2000, colours=[GREY])
    out = tmp_path / "scores.csv"
    moved = icecore(*words, other, "--out", out)
    assert (moved.code, moved.outcome["outcome"].startswith("done, but new images have drifted")) == (8, True)
    assert "features.3:avg" in moved.outcome["drift"]["where"]
    assert out.exists()
    assert icecore(*words, other, "--max-drift", 1000).code == 0
    plain = icecore("predict", "champion", "--store", store, other)
    assert (plain.code, "drift of 24 new images: DRIFTED in features.3:avg" in plain.told) == (0, True)
    assert "drift" not in icecore("predict", "champion", "--store", store, other, "--no-drift").told

    page = tmp_path / "drift.html"
    told = icecore("report", "drift", store, "--out", page, "--json")
    assert [record["drifted"] for record in told.outcome["records"]] == [False, True, False, True]
    assert page.read_text().count("<svg") == 3
    assert len(icecore("report", "drift", store).text.splitlines()) == 2 + 4


def test_images_that_were_scored_before_are_not_compared_again(
    champion: Path, tmp_path: Path, icecore: Icecore, noisy: Any
) -> None:
    store = champion / "features"
    folder = new_images(tmp_path / "images", noisy, first=3000, colours=[GREY])
    words = ("predict", "champion", "--store", store, "--images", folder, "--out", tmp_path / "s.csv", "--json")
    assert icecore(*words).outcome["drift"]["rows"] == 24
    new_images(folder, noisy, first=3500, colours=[GREY], count=2)
    assert icecore(*words).outcome["drift"] is None


def test_a_store_that_takes_no_history_can_be_predicted_with(
    champion: Path, tmp_path: Path, icecore: Icecore, noisy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store = tmp_path / "copy"
    shutil.copytree(champion / "features", store, ignore=shutil.ignore_patterns("drift"))
    (store / "drift").write_bytes(b"as on a read-only medium, nothing can be made here")
    other = new_images(tmp_path / "other", noisy, first=5000, colours=[GREY])
    out = tmp_path / "scores.csv"
    weights = champion / "squeezenet.safetensors"
    done = icecore(
        *("predict", "champion", "--store", store, "--out", out, "--weights", weights, "--images", other, "--json")
    )
    assert (done.code, done.outcome["drift"]["drifted"], out.exists()) == (0, True, True)
    assert "drift cannot be noted in its history" in caplog.text


def test_extract_compares_what_it_adds(champion: Path, icecore: Icecore, noisy: Any) -> None:
    config = champion / "job.toml"
    calm = icecore("extract", config, "--json")
    assert (calm.code, calm.outcome["drift_not_compared"]) == (0, "the run has added no images")
    new_images(champion / "photos" / "train" / "red", noisy, first=4000, colours=[GREY])
    done = icecore("extract", config, "--json")
    assert (done.code, done.outcome["forwarded"]) == (8, 24)
    assert done.outcome["drift"]["rows"] == 24
    last = json.loads((champion / "features" / "drift" / "default.jsonl").read_bytes().splitlines()[-1])
    assert (last["command"], last["set"], last["drifted"]) == ("extract", "photos", True)
    new_images(champion / "photos" / "train" / "red", noisy, first=4100, colours=[GREY])
    mild = icecore("extract", config, "--set", "drift.fail=false")
    assert (mild.code, "drift of 24 new images: DRIFTED" in mild.text) == (0, True)
    for name, told in (("other", "no bundle of 'other' was promoted yet"), ("default", "another contract")):
        options = ("--set", "set=other", "--set", "preprocess.resize=70") if name == "default" else ()
        found = icecore("extract", config, "--json", "--set", f"drift.name={name}", *options)
        assert (found.code, told in found.outcome["drift_not_compared"]) == (0, True)


def test_what_cannot_be_compared_is_told_and_refused_where_it_must_be(trained: Any, icecore: Icecore) -> None:
    """18 training rows are too few."""
    words = ("predict", trained.bundle, trained.photos / "val", "--store", trained.store)
    done = icecore(*words)
    assert (done.code, "drift: not compared: drift: 18 training rows are too few" in done.told) == (0, True)
    assert icecore(*words, "--fail-on-drift").code == 1
    assert icecore("predict", trained.bundle, trained.photos / "val", "--fail-on-drift").code == 2
    missing = icecore("report", "drift", trained.store)
    assert (missing.code, "no history of drift" in missing.told) == (1, True)
