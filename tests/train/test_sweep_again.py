"""A sweep that has nothing new to find fits nothing: its winner is read from the bundle that it made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import CsvLabels, SweepResult, load_bundle, sweep_models, train_models
from icecore.train.bundle_format import CARD
from icecore.train.sweep_winner import train_rows
from PIL import Image

from .conftest import Lab, features_for, image_ids

IDS = image_ids(9, 4)
OPTIONS: dict[str, Any] = {"models": ("ridge", "nearest_mean"), "folds": 3, "report": False}


def sweep(store: Path, **options: Any) -> SweepResult:
    return sweep_models(store, "photos", **{**OPTIONS, **options})


def bundles(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "models" / "default").iterdir())


@pytest.fixture
def store(lab: Lab) -> Path:
    """A store of two layers, with what one sweep has left there."""
    layers = {"a": features_for(IDS, 6, signal=1.2), "b": features_for(IDS, 8, signal=0.4, seed=1)}
    path = lab.store(IDS, **layers)
    sweep(path)
    return path


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was fitted by the winner's module since."""
    found: list[Any] = []

    def fit(*args: Any, **options: Any) -> Any:
        run = train_rows(*args, **options)
        found.append(run.cells[0].model)
        return run

    monkeypatch.setattr("icecore.train.sweep_winner.train_rows", fit)
    return found


def test_nothing_is_fitted_and_nothing_is_lost(store: Path, fitted: list[Any], lab: Lab) -> None:
    (made,) = bundles(store)
    other = lab.folder / "board"
    again = sweep(store, out=other)
    assert fitted == []
    assert bundles(store) == [made]
    assert again.trained.reused
    assert again.trained.bundles == (store / "models" / "default" / made,)
    fresh = sweep(store, name="fresh").trained
    assert fitted == [again.winner.model]
    assert not fresh.reused
    for name in ("evaluation", "best", "grid", "columns", "model", "steps", "notes", "n_features", "setting"):
        assert getattr(again.trained.winner, name) == getattr(fresh.winner, name)
    for name in ("baseline", "intervals", "notes", "chosen_among", "provenance"):
        assert getattr(again.trained, name) == getattr(fresh, name)
    assert again.trained.interval("accuracy") == fresh.interval("accuracy")
    np.testing.assert_array_equal(again.trained.predictions.outputs, fresh.predictions.outputs)
    assert again.to_json()["winner_reused"] is True
    card = load_bundle(again.trained.bundles[0]).card
    assert again.to_json()["winner"]["seconds"] == card["seconds"]
    assert again.to_json()["winner"]["held_out"].items() <= card["held_out"].items()


def test_cells_that_were_left_out_of_the_first_choice_are_another_choice(store: Path, fitted: list[Any]) -> None:
    sweep(store, layers=["a"])
    assert len(fitted) == 1
    assert sweep(store, layers=["a"]).trained.reused


def relabel(lab: Lab, store: Path) -> dict[str, Any]:
    """Give two held-out images each other's labels."""
    labels = [image.split("/")[1] for image in IDS]
    first, last = IDS.index("val/ants/000.jpg"), IDS.index("val/wasps/000.jpg")
    labels[first], labels[last] = labels[last], labels[first]
    rows = [f"{image},{label},{image.split('/')[0]}" for image, label in zip(IDS, labels, strict=True)]
    (lab.folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    return {"labels": CsvLabels(lab.folder / "labels.csv")}


def more_held_out(lab: Lab, store: Path) -> dict[str, Any]:
    lab.write(store, ["val/ants/900.jpg"], {"a": np.ones((1, 6), np.float32), "b": np.ones((1, 8), np.float32)})
    return {}


def another_run(lab: Lab, store: Path) -> dict[str, Any]:
    """Let ``train_models`` keep a newer bundle under the name."""
    train_models(store, "photos", layers=["b"], **OPTIONS)
    return {}


def report_missing(lab: Lab, store: Path) -> dict[str, Any]:
    return {"report": True}


def other_seed(lab: Lab, store: Path) -> dict[str, Any]:
    return {"seed": 1}


def other_weights(lab: Lab, store: Path) -> dict[str, Any]:
    return {"class_weight": "balanced"}


def other_curves(lab: Lab, store: Path) -> dict[str, Any]:
    return {"calibration": "sigmoid"}


@pytest.mark.parametrize(
    "change",
    [relabel, more_held_out, another_run, report_missing, other_seed, other_weights, other_curves],
    ids=lambda change: change.__name__,
)
def test_whatever_decides_the_bundle_makes_a_new_one(
    store: Path, lab: Lab, fitted: list[Any], change: Callable[[Lab, Path], dict[str, Any]]
) -> None:
    before = bundles(store)
    options = change(lab, store)
    fitted.clear()
    result = sweep(store, **options)
    assert len(fitted) == 1
    assert not result.trained.reused
    assert result.trained.bundles[0].name not in before
    assert sweep(store, **options).trained.reused


@pytest.mark.parametrize("sweep_entry", [{}, None, "none", {"key": "0" * 64}])
def test_a_bundle_that_says_nothing_of_this_sweep_is_not_its_winner(
    store: Path, fitted: list[Any], reseal: Callable[..., None], sweep_entry: Any
) -> None:
    (made,) = bundles(store)
    reseal(store / "models" / "default" / made, sweep=sweep_entry)
    result = sweep(store)
    assert len(fitted) == 1
    assert result.notes == ()


@pytest.mark.parametrize("file", [CARD, "model.skops"])
def test_a_damaged_bundle_is_told_and_made_anew(store: Path, fitted: list[Any], file: str) -> None:
    (made,) = bundles(store)
    path = store / "models" / "default" / made / file
    path.write_bytes(path.read_bytes()[:-20])
    result = sweep(store)
    assert len(fitted) == 1
    (note,) = result.notes
    assert "the newest bundle cannot be read, and the winner was fitted anew" in note
    assert made in note


def test_a_report_that_is_there_serves_until_pictures_are_asked_for(store: Path, lab: Lab, fitted: list[Any]) -> None:
    for image in IDS:
        (lab.folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(lab.folder / image)
    options = {**OPTIONS, "report": True}
    plain = sweep(store, **options)
    assert plain.trained.report == plain.trained.bundles[0] / "report.html"
    assert sweep(store, **options).trained.report == plain.trained.report
    without = sweep(store)
    assert (without.trained.bundles, without.trained.report) == (plain.trained.bundles, None)
    assert len(fitted) == 1
    shown = sweep(store, **options, images=lab.folder)
    assert len(fitted) == 2
    assert sweep(store, **options, images=lab.folder).trained.report == shown.trained.report
    assert sweep(store, **options).trained.report == shown.trained.report
    assert len(fitted) == 2
