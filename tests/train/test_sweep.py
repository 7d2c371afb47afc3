"""A sweep finds what plain scikit-learn finds, keeps every cell, chooses on training rows alone, and continues."""

from __future__ import annotations

import csv
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, FeatureStore, LayerNotFoundError, Pooling, SourceImage
from icecore.train import (
    MODELS,
    CsvLabels,
    LayerScore,
    MissingExtraError,
    Steps,
    SweepProgress,
    SweepResult,
    TrainError,
    load_bundle,
    load_dataset,
    sweep_models,
    train_models,
)
from icecore.train.sweep_layers import expand_layers
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .conftest import Lab

CHEAP = ("logistic_regression", "ridge", "nearest_mean", "knn")
CHEAPEST = ("ridge", "nearest_mean")
QUICK: dict[str, Any] = {"report": False, "folds": 3, "models": CHEAP}


def run(path: Path, **options: Any) -> SweepResult:
    return sweep_models(path, "photos", **{**QUICK, **options})


def comparable(result: SweepResult) -> dict[str, Any]:
    """What must be the same however often a sweep was interrupted."""
    value = result.to_json()
    cells = [{**cell, "seconds": None} for cell in value["cells"]]
    held_out = value["winner"]["held_out"]
    return {"cells": cells, "quick": value["quick"], "rows": value["rows"], "held_out": held_out}


def kept(path: Path, name: str = "default") -> list[Path]:
    return sorted((path / "sweeps" / name / "cells").glob("*.json"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    """A store of three layers, and a sweep over each and two joined."""
    lab = Lab(tmp_path_factory.mktemp("sweep"))
    ids = lab.ids()
    signals = {"layer1": (6, 0.3), "layer2": (10, 0.7), "layer3": (40, 1.0)}
    layers = {name: lab.features(ids, D, signal=signal, seed=D) for name, (D, signal) in signals.items()}
    path = lab.store(ids, **layers)
    return path, run(path, layers=["layer*", ["layer1", "layer2"]])


def test_every_model_is_searched_on_every_selection(shared: tuple[Path, SweepResult]) -> None:
    _, result = shared
    selections = [("layer1:avg",), ("layer2:avg",), ("layer3:avg",), ("layer1:avg", "layer2:avg")]
    assert {(cell.columns, cell.model) for cell in result.cells} == {(s, m) for s in selections for m in CHEAP}
    assert len(result.cells) == len(selections) * len(CHEAP)
    assert (result.computed, result.reused) == (len(result.cells), 0)


def test_the_order_is_that_of_train(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    layers = ["layer1", "layer2", "layer3", ["layer1", "layer2"]]
    trained = train_models(path, "photos", layers=layers, name="same", **QUICK)
    assert [(cell.columns, cell.model, cell.best, cell.grid) for cell in result.cells] == [
        (cell.columns, cell.model, cell.best, cell.grid) for cell in trained.cells
    ]
    ours, theirs = result.trained.winner.evaluation, trained.winner.evaluation
    assert ours.confusion == theirs.confusion
    assert ours.log_loss == pytest.approx(theirs.log_loss, rel=1e-5)  # one setting alone starts the solver elsewhere


def test_cells_equal_plain_scikit_learn_on_the_same_folds(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    with FeatureStore.open(path) as store:
        X, y = load_dataset(store, "photos", "layer2").training()
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    plain = {
        "logistic_regression": lambda value: LogisticRegression(C=value, max_iter=5_000),
        "ridge": lambda value: RidgeClassifier(alpha=value),
    }
    for model, make in plain.items():
        cell = next(c for c in result.cells if c.columns == ("layer2:avg",) and c.model == model)
        for point in cell.grid:
            scores = cross_val_score(make_pipeline(StandardScaler(), make(point.value)), X, y, cv=folds)
            assert (point.mean, point.std) == pytest.approx((scores.mean(), scores.std()))


def test_the_winner_alone_meets_the_held_out_rows(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    assert result.trained.winner.columns == result.winner.columns
    assert result.trained.winner.best == result.winner.best
    (folder,) = result.trained.bundles
    bundle = load_bundle(folder)
    assert bundle.card["chosen_among"] == len(result.cells)
    assert bundle.card["cv"] == result.winner.to_json()["cv"]
    with FeatureStore.open(path) as store:
        X, y = load_dataset(store, "photos", result.winner.columns).held_out()
    called = [bundle.classes.index(label) for label in bundle.predict(X)]
    assert np.mean(called == y) == pytest.approx(bundle.card["held_out"]["accuracy"])
    for file in kept(path):
        assert "held_out" not in file.read_text()
    assert all("held_out" not in cell for cell in result.to_json()["cells"])


def test_a_second_sweep_reads_every_cell(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    told: list[SweepProgress] = []
    again = run(path, layers=["layer*", ["layer1", "layer2"]], progress=told.append)
    assert (again.computed, again.reused) == (0, len(result.cells))
    assert again.cells == result.cells
    assert comparable(again) == comparable(result)
    assert all(progress.reused for progress in told if progress.cell is not None)


def test_held_out_rows_and_their_labels_have_no_part_in_any_cell(lab: Any) -> None:
    ids = lab.ids(12, 6)
    path = lab.store(ids, a=lab.features(ids, 6, signal=0.8), b=lab.features(ids, 8, signal=0.8, seed=3))
    first = run(path)
    labels = [image.split("/")[1] for image in ids]
    held_out = [i for i, image in enumerate(ids) if image.startswith("val/")]
    for i, j in zip(held_out, held_out[5:] + held_out[:5], strict=True):
        labels[i] = ids[j].split("/")[1]
    table = lab.folder / "labels.csv"
    rows = [f"{image},{label},{image.split('/')[0]}" for image, label in zip(ids, labels, strict=True)]
    table.write_text("\n".join(["path,label,split", *rows]))
    other = run(path, labels=CsvLabels(table))
    assert other.cells == first.cells
    assert other.computed == 0
    assert other.trained.winner.evaluation != first.trained.winner.evaluation


def test_a_new_layer_and_new_held_out_images_cost_no_old_cell(lab: Any) -> None:
    ids = lab.ids(12, 4)
    layers = {"a": lab.features(ids, 6, signal=0.8), "b": lab.features(ids, 8, signal=0.8, seed=3)}
    path = lab.store(ids, **layers)
    first = run(path)
    lab.write(path, ids, {"c": lab.features(ids, 9, signal=0.9, seed=4)})
    wider = run(path)
    assert (wider.reused, wider.computed) == (len(first.cells), len(CHEAP))
    more = [*ids, "val/ants/900.jpg"]
    extra = np.ones((1, 6), np.float32), np.ones((1, 8), np.float32), np.ones((1, 9), np.float32)
    lab.write(path, more[-1:], dict(zip("abc", extra, strict=True)))
    longer = run(path)
    assert longer.trained.rows.ids != wider.trained.rows.ids
    assert longer.computed == 0


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "log_loss"},
        {"seed": 1},
        {"folds": 4},
        {"repeats": 2},
        {"class_weight": "balanced"},
        {"halving": "always"},
        {"grids": {"ridge": [7.0], "nearest_mean": [0.2]}},
        {"steps": Steps(l2_norm=True)},
        {"layers": [["layer2", "layer1"]]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_cell_makes_another_one(shared: tuple[Path, SweepResult], change: dict[str, Any]) -> None:
    path, _ = shared
    options = {"layers": ["layer1"], "models": CHEAPEST, **change}
    assert run(path, **options).computed == 2


def test_other_labels_of_training_rows_make_other_cells(lab: Any) -> None:
    ids = lab.ids(9, 3)
    path = lab.store(ids)
    first = run(path)
    labels = [image.split("/")[1] for image in ids]
    labels[0], labels[10] = labels[10], labels[0]
    table = lab.folder / "labels.csv"
    rows = [f"{image},{label},{image.split('/')[0]}" for image, label in zip(ids, labels, strict=True)]
    table.write_text("\n".join(["path,label,split", *rows]))
    assert run(path, labels=CsvLabels(table)).computed == first.computed


@pytest.mark.parametrize("harm", ["cut", "empty", "altered", "list", "other"])
def test_a_damaged_cell_is_told_and_computed_again(lab: Any, harm: str) -> None:
    path = lab.store(lab.ids(9, 3))
    first = run(path, models=CHEAPEST)
    files = [file for file in kept(path) if '"what": "cell"' in file.read_text()]
    text = files[0].read_text()
    value = json.loads(text)
    value["found"]["grid"][0]["mean"] = 1.0
    harms = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "altered": json.dumps(value),
        "list": "[1, 2]",
        "other": files[1].read_text(),
    }
    files[0].write_text(harms[harm])
    again = run(path, models=CHEAPEST)
    assert again.computed == 1
    assert files[0].name in again.notes[0]
    assert again.notes[0].startswith("kept cells that were damaged and have been computed again: 1")
    assert comparable(again) == comparable(first)
    assert files[0].read_text() != harms[harm]
    assert run(path, models=CHEAPEST).notes == ()


def test_cells_of_other_library_versions_are_computed_anew(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lab.store(lab.ids(9, 3))
    with monkeypatch.context() as patch:
        patch.setattr("icecore.train.sweep_kept.library_versions", lambda: {"numpy": "0.1"})
        run(path, models=CHEAPEST)
    again = run(path, models=CHEAPEST)
    assert again.computed == 2
    assert "other versions of the libraries have computed, and that were computed again: 3" in again.notes[0]


def test_only_the_first_of_the_quick_pass_go_on(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    told: list[SweepProgress] = []
    some = run(path, name="keep", layers=["layer*"], keep=1, progress=told.append)
    order = [layer.columns for layer in some.quick]
    scores = [(layer.best("accuracy"), layer.logme) for layer in some.quick]
    assert scores == sorted(scores, reverse=True)
    assert [layer.kept for layer in some.quick] == [True, False, False]
    assert {cell.columns for cell in some.cells if cell.model == "knn"} == {order[0]}
    assert {cell.columns for cell in some.cells if cell.model == "ridge"} == set(order)
    assert len(some.cells) == 3 * 2 + 2
    assert [progress.done for progress in told if progress.cell is not None] == list(range(1, 9))
    assert {progress.total for progress in told} == {8}
    whole = {(cell.columns, cell.model): cell.best for cell in result.cells}
    assert all(whole[cell.columns, cell.model] == cell.best for cell in some.cells)


def test_the_quick_pass_is_told_once_when_it_is_done(shared: tuple[Path, SweepResult]) -> None:
    path, result = shared
    told: list[SweepProgress] = []
    run(path, layers=["layer*"], progress=told.append)
    (pass_,) = [progress for progress in told if progress.cell is None and not progress.model]
    assert [layer.layers for layer in pass_.quick] == ["layer3:avg", "layer2:avg", "layer1:avg"]
    assert pass_.done == 6
    assert result.quick[0].logme > result.quick[-1].logme


def test_cheap_models_that_were_not_asked_for_only_rank(shared: tuple[Path, SweepResult]) -> None:
    path, _ = shared
    result = run(path, name="alone", models=["knn"], keep=2, layers=["layer*"])
    assert {cell.model for cell in result.cells} == {"knn"}
    assert len(result.cells) == 2
    assert set(result.quick[0].cells) == {"ridge", "nearest_mean"}
    assert result.trained.chosen_among == 2


def test_preprocessing_makes_cells_of_its_own(shared: tuple[Path, SweepResult]) -> None:
    path, _ = shared
    steps = (Steps(), Steps(l2_norm=True))
    both = run(path, layers=["layer2"], steps=steps)
    assert {(cell.model, cell.steps) for cell in both.cells} == {(model, one) for model in CHEAP for one in steps}
    assert (both.reused, both.computed) == (4, 4)
    rooted = run(path, layers=["layer2"], steps=Steps(signed_sqrt=True))
    assert {cell.steps for cell in rooted.cells} == {Steps(signed_sqrt=True)}
    assert load_bundle(rooted.trained.bundles[0]).card["steps"] == rooted.winner.steps.to_json()
    assert "(sqrt, standard)" in rooted.winner.inputs


def test_the_files_tell_what_the_result_does(shared: tuple[Path, SweepResult], tmp_path: Path) -> None:
    path, _ = shared
    result = run(path, layers=["layer*"], out=tmp_path / "deep" / "board")
    assert [file.name for file in result.files] == ["leaderboard.csv", "leaderboard.json"]
    assert result.files[0].parent == tmp_path / "deep" / "board"
    with result.files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["layers"], row["model"], float(row["cv_mean"])) for row in rows] == [
        (cell.layers, cell.model, cell.best.mean) for cell in result.cells
    ]
    value = json.loads(result.files[1].read_text())
    assert (value["format"], value["format_version"]) == ("icecore.sweep", 1)
    assert value["cells"] == result.to_json()["cells"]
    assert value["winner"]["held_out"]["accuracy"] == result.trained.winner.evaluation.accuracy


def test_strays_of_killed_sweeps_are_swept_when_they_are_old(shared: tuple[Path, SweepResult]) -> None:
    path, _ = shared
    folder = path / "sweeps" / "default" / "cells"
    old, new = folder / "a.json.1.tmp", folder / "b.json.2.tmp"
    for stray in (old, new):
        stray.write_text("{")
    os.utime(old, (time.time() - 7_200,) * 2)
    run(path, layers=["layer1"])
    assert (old.exists(), new.exists()) == (False, True)
    new.unlink()


@pytest.fixture
def poolings(lab: Any) -> Path:
    """A store with two layers under several poolings, and a view."""
    ids = lab.ids(8, 3)
    images = [SourceImage(image, lab.folder / image, 1, 1, 1) for image in ids]
    columns = [
        Column("features.3", Pooling("avg"), 5),
        Column("features.12", Pooling("avg"), 5),
        Column("features.12", Pooling("max"), 5),
        Column("features.12", Pooling.parse("gem2.5"), 5),
        Column("features.12", Pooling("avg"), 5, view="flip"),
        Column("head", Pooling("avg"), 5, "float32"),
    ]
    X = lab.features(ids, 5, signal=1.0)
    contents = [bytes([i]) * 32 for i in range(len(ids))]
    path = Path(lab.folder / "features")
    with FeatureStore.create(path) as store, store.writer("photos", lab.contract, columns, source={}) as writer:
        writer.append(images, contents, {column: X + i for i, column in enumerate(columns)})
    return path


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["features.3"], [("features.3:avg",)]),
        (["features.*:max"], [("features.12:max",)]),
        (["features.1?:gem*"], [("features.12:gem2.5",)]),
        (["*"], [("head:avg:float32",)]),
        (["**:avg"], [("features.3:avg",), ("features.12:avg",)]),
        (["features.12:avg*"], [("features.12:avg",), ("features.12:avg@flip",)]),
        (["features.3:avg", "features.3", "*.3"], [("features.3:avg",)]),
        ([["features.3", "features.12:*"]],
         [("features.3:avg", "features.12:avg", "features.12:max", "features.12:gem2.5", "features.12:avg@flip")]),
    ],
)  # fmt: skip
def test_globs_stand_for_columns(poolings: Path, layers: list[Any], expected: list[Any]) -> None:
    with FeatureStore.open(poolings) as store:
        assert list(expand_layers(store["photos"], layers)) == expected


def test_every_column_is_swept_by_default(poolings: Path) -> None:
    with FeatureStore.open(poolings) as store:
        names = [column.name for column in store["photos"].columns]
    result = run(poolings, models=["ridge"])
    assert {cell.layers for cell in result.cells} == set(names)
    assert len(names) == 6


def test_a_glob_that_matches_nothing_lists_what_there_is(poolings: Path) -> None:
    with pytest.raises(LayerNotFoundError, match=r"has no layer 'layer\*'; it has features.3:avg"):
        run(poolings, layers=["features.3", "layer*"])
    assert not (poolings / "sweeps").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ["xgbost"]}, "did you mean 'xgboost'"),
        ({"keep": -1}, "keep: 0 for all layers"),
        ({"layers": []}, "a list of layers"),
        ({"layers": "layer1"}, "a list of layers"),
        ({"name": "../x"}, "plain folder name"),
        ({"metric": "f1"}, "no metric 'f1'"),
        ({"folds": 1}, "at least 2"),
        ({"grids": {"ridge": [-1.0]}}, "alpha of 'ridge' must be a number above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    shared: tuple[Path, SweepResult], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainError) as caught:
        run(shared[0], **options)
    assert message in str(caught.value)


def test_a_missing_report_extra_is_named_before_any_cell(
    shared: tuple[Path, SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[SweepProgress] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(MissingExtraError, match=r"needs jinja2: pip install 'icecore\[report\]'"):
        run(shared[0], report=True, progress=told.append)
    assert told == []


def test_every_model_on_offer_can_be_swept(shared: tuple[Path, SweepResult]) -> None:
    path, _ = shared
    result = run(path, name="all", layers=["layer3"], models=tuple(MODELS))
    assert {cell.model for cell in result.cells} == set(MODELS)
    again = run(path, name="all", layers=["layer3"], models=tuple(MODELS))
    assert again.cells == result.cells
    settings = {cell.model: cell.chosen for cell in result.cells}
    assert settings["xgboost"].startswith("max_depth=")
    assert "learning_rate" not in settings["xgboost"]  # one value was tried


def test_a_layer_score_says_the_better_of_the_cheap_models(shared: tuple[Path, SweepResult]) -> None:
    _, result = shared
    layer = result.quick[0]
    assert isinstance(layer, LayerScore)
    assert layer.best("accuracy") == max(cell.best.mean for cell in layer.cells.values())
    worse = replace(layer.cells["ridge"], best=replace(layer.cells["ridge"].best, mean=9.0))
    assert replace(layer, cells={"ridge": worse}).best("log_loss") == -9.0


class PlainNearest(NearestCentroid):  # type: ignore[misc]  # scikit-learn is untyped
    """Shrunken means of scikit-learn, and distances in units of the spread that it shrinks by.

    Its own ``predict`` measures without them, and its scores leave out what is added to the spread.
    """

    def predict(self, X: Any) -> Any:
        spread = self.within_class_std_dev_ + np.median(self.within_class_std_dev_)
        distances = ((X[:, None] - self.centroids_) / spread) ** 2
        return self.classes_[distances.sum(axis=2).argmin(axis=1)]


@pytest.mark.slow
def test_cells_of_real_features_equal_plain_scikit_learn(assets: Path, tmp_path: Path) -> None:
    """Flowers under squeezenet1_1: ridge, logistic regression and nearest class mean, every setting of every cell."""
    from icecore.extract import extract_images

    extract_images(
        tmp_path / "features",
        "photos",
        assets / "data" / "flowers",
        backbone_name="squeezenet1_1",
        weights=assets / "weights" / "squeezenet1_1.pth",
        layers=["features.5", "features.12"],
        poolings=["avg", "max"],
    )
    models = ("logistic_regression", "ridge", "nearest_mean")
    result = run(tmp_path / "features", models=models, folds=5, layers=["features.*"], report=True)
    assert len(result.cells) == 4 * len(models)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    plain = {
        "logistic_regression": lambda value: LogisticRegression(C=value, max_iter=5_000),
        "ridge": lambda value: RidgeClassifier(alpha=value),
        "nearest_mean": lambda value: PlainNearest(shrink_threshold=value),
    }
    for cell in result.cells:
        with FeatureStore.open(tmp_path / "features") as store:
            X, y = load_dataset(store, "photos", cell.columns).training()
        points = [cell.best] if cell.model == "logistic_regression" else cell.grid  # plain logistic regression is slow
        for point in points:
            model = make_pipeline(StandardScaler(), plain[cell.model](point.value))
            scores = cross_val_score(model, X, y, cv=folds)
            assert point.mean == pytest.approx(scores.mean(), abs=2.6e-3), (cell.inputs, cell.model, point)  # 2 of 800
    assert result.files[-1].suffix == ".html"
