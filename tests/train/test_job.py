"""The job trains every cell, chooses on training rows alone, and tells what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore, IncompleteColumnError, LayerNotFoundError
from icecore.train import (
    MODELS,
    CsvLabels,
    FoldError,
    MissingExtraError,
    Progress,
    TrainError,
    TrainResult,
    UnknownModelError,
    train_models,
)
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

QUICK = {"report": False, "folds": 3}


def run(path: Path, **options: Any) -> TrainResult:
    settings = {**QUICK, "layers": ["good"], "models": ["logistic_regression"], **options}
    return train_models(path, "photos", **settings)


@pytest.fixture(scope="module")
def result(store_path: Path) -> TrainResult:
    """Every model on both layers and on the two joined."""
    return train_models(
        store_path, "photos", layers=["poor", "good", ["poor", "good"]], name="all", save="all", seed=3, **QUICK
    )  # type: ignore[arg-type]


def test_every_model_is_trained_on_every_set_of_layers(result: TrainResult) -> None:
    found = {(cell.columns, cell.model) for cell in result.cells}
    layers = [("poor:avg",), ("good:avg",), ("poor:avg", "good:avg")]
    assert found == {(columns, model) for columns in layers for model in MODELS}
    assert {cell.n_features for cell in result.cells} == {6, 10, 16}


def test_the_leaderboard_is_ordered_by_cross_validation_then_simplicity(result: TrainResult) -> None:
    order = [(-round(c.best.mean, 12), c.n_features, list(MODELS).index(c.model)) for c in result.cells]
    assert order == sorted(order)
    assert result.winner is result.cells[0]


def test_scores_equal_plain_scikit_learn_on_the_same_rows(result: TrainResult, store_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        ids, X = store["photos"].matrix("good")
    y = np.array([image.split("/")[1] for image in ids])
    train = np.array([image.startswith("train/") for image in ids])
    cell = next(c for c in result.cells if c.columns == ("good:avg",) and c.model == "logistic_regression")
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=cell.best.value, max_iter=5000))
    folds = StratifiedKFold(3, shuffle=True, random_state=3)
    assert cell.best.mean == pytest.approx(cross_val_score(plain, X[train], y[train], cv=folds).mean())
    assert cell.evaluation.accuracy == pytest.approx(plain.fit(X[train], y[train]).score(X[~train], y[~train]))
    assert cell.evaluation.accuracy > result.baseline.accuracy


def test_the_same_seed_gives_the_same_numbers(result: TrainResult, store_path: Path) -> None:
    again = train_models(
        store_path, "photos", layers=["poor", "good", ["poor", "good"]], name="again", save="best", seed=3, **QUICK
    )  # type: ignore[arg-type]
    assert [replace(c, seconds=0) for c in again.cells] == [replace(c, seconds=0) for c in result.cells]
    np.testing.assert_array_equal(again.predictions.proba, result.predictions.proba)


def test_held_out_labels_have_no_part_in_the_choice(result: TrainResult, store_path: Path, tmp_path: Path) -> None:
    """With held-out labels shuffled, every choice, setting and cross-validated score stays as it was."""
    with FeatureStore.open(store_path) as store:
        ids = store["photos"].ids()
    labels = [image.split("/")[1] for image in ids]
    held_out = [i for i, image in enumerate(ids) if image.startswith("val/")]
    for i, j in zip(held_out, held_out[5:] + held_out[:5], strict=True):
        labels[i] = ids[j].split("/")[1]
    rows = [f"{image},{label},{image.split('/')[0]}" for image, label in zip(ids, labels, strict=True)]
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(["path,label,split", *rows]))
    layers = ["poor", "good", ["poor", "good"]]
    other = train_models(store_path, "photos", layers=layers, labels=CsvLabels(path), name="shuffled", seed=3, **QUICK)  # type: ignore[arg-type]
    assert [(c.columns, c.model, c.params, c.best) for c in other.cells] == [
        (c.columns, c.model, c.params, c.best) for c in result.cells
    ]
    assert other.winner.evaluation.accuracy < result.winner.evaluation.accuracy


def test_progress_is_told_before_and_after_each_cell(store_path: Path) -> None:
    told: list[Progress] = []
    run(store_path, models=["logistic_regression", "linear_svm"], name="told", progress=told.append)
    assert [(p.done, p.total, p.model, p.cell is None) for p in told] == [
        (0, 2, "logistic_regression", True),
        (1, 2, "logistic_regression", False),
        (1, 2, "linear_svm", True),
        (2, 2, "linear_svm", False),
    ]


def test_the_result_is_plain_json(result: TrainResult) -> None:
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert value["rows"]["training"] == 60
    assert value["rows"]["held_out"] == 24
    assert len(value["cells"]) == 3 * len(MODELS)


def test_a_grid_of_ones_own_is_used(store_path: Path) -> None:
    found = run(
        store_path, models=["xgboost"], grids={"xgboost": {"max_depth": [1.0], "n_estimators": [60]}}, name="grid"
    ).winner
    assert found.params == {"max_depth": 1, "learning_rate": 0.2, "n_estimators": 60}
    assert len(found.grid) == 1


def test_log_loss_orders_the_smallest_first(store_path: Path) -> None:
    found = run(store_path, layers=["poor", "good"], metric="log_loss", name="loss")
    assert found.cells[0].best.mean < found.cells[1].best.mean
    assert found.winner.columns == ("good:avg",)


def test_a_class_with_one_image_stops_before_training(lab: Any) -> None:
    ids = [*lab.ids(5, 2, ("ants", "bees")), "train/wasps/000.jpg"]
    with pytest.raises(FoldError, match="class 'wasps' has 1 training rows"):
        run(lab.store(ids))


def test_a_class_without_held_out_rows_is_noted(lab: Any) -> None:
    ids = [*lab.ids(6, 3, ("ants", "bees")), *(f"train/wasps/{i}.jpg" for i in range(6))]
    found = run(lab.store(ids))
    assert found.winner.evaluation.roc_auc is None
    assert any("no held-out image of class 'wasps'" in note for note in found.notes)


def test_what_was_left_out_is_noted(lab: Any) -> None:
    ids = lab.ids(6, 3, ("ants", "bees"))
    X = lab.features(ids, 4, signal=1)
    X[ids.index("val/bees/001.jpg")] = X[ids.index("train/ants/000.jpg")]
    found = run(lab.store(ids, failed=["train/ants/x.gif"], good=X))
    assert found.notes == (
        "images left out because they could not be extracted, for all layers or for one: 1 ('train/ants/x.gif')",
        "held-out images with the very features of a training image, which flatter the scores: 1 ('val/bees/001.jpg')",
    )
    assert found.to_json()["rows"]["failed_images"] == ["train/ants/x.gif"]


@pytest.mark.parametrize("layers", [["first", "added"], ["added", "first"], [["added", "first"]]])
def test_an_image_that_an_added_layer_refused_is_left_out_of_all_cells(lab: Any, layers: list[Any]) -> None:
    ids = lab.ids(8, 3)
    first, added = (lab.features(ids, 6, signal=1.5, seed=seed) for seed in (0, 3))
    added[0, 0] = 1e6  # float16 cannot hold it
    path = lab.store(ids, first=first)
    lab.write(path, ids, {"added": added})
    found = run(path, layers=layers, name="refused")
    assert len(found.cells) == len(layers)
    assert found.rows.ids == tuple(ids[1:])
    note = "images left out because they could not be extracted, for all layers or for one: 1 ('train/ants/000.jpg')"
    assert found.notes == (note,)
    assert run(path, layers=["first"], name="whole").rows.ids == tuple(ids)


def test_labels_of_a_refused_image_are_not_unknown(lab: Any) -> None:
    ids = lab.ids(8, 3)
    added = lab.features(ids, 6, signal=1.5)
    added[0, 0] = np.inf
    path = lab.store(ids)
    lab.write(path, ids, {"added": added})
    labels = lab.folder / "labels.csv"
    labels.write_text("\n".join(["path,label,split", *(f"{i},{i.split('/')[1]},{i.split('/')[0]}" for i in ids)]))
    found = run(path, layers=["good", "added"], labels=CsvLabels(labels))
    assert found.rows.match.failed == (ids[0],)
    assert found.rows.match.unknown == ()


def test_a_layer_that_is_not_finished_stops_before_any_cell(lab: Any) -> None:
    told: list[Progress] = []
    ids = lab.ids(8, 3)
    path = lab.store(ids)
    lab.write(path, ids[:-1], {"added": lab.features(ids[:-1], 6, signal=1.5)})
    with pytest.raises(IncompleteColumnError, match="added:avg covers 32 of 33 images"):
        run(path, layers=["good", "added"], progress=told.append)
    assert told == []


def test_a_generation_that_begins_meanwhile_changes_nothing(lab: Any) -> None:
    ids = lab.ids(8, 3)
    layers = {"a": lab.features(ids, 6, signal=1.0), "b": lab.features(ids, 6, signal=1.0, seed=3)}
    path = lab.store(ids, **layers)
    alone = run(path, layers=["a", "b"], name="alone")

    def extract_anew(progress: Progress) -> None:
        if progress.done == 0 and progress.cell is None:
            other = replace(lab.contract, weights="cd" * 32)
            lab.write(path, ids, {"b": layers["b"] + 1, "c": layers["a"]}, contract=other)

    found = run(path, layers=["a", "b"], name="beside", progress=extract_anew)
    with FeatureStore.open(path) as store:
        assert store["photos"].generation != found.provenance.generation
    assert [replace(cell, seconds=0) for cell in found.cells] == [replace(cell, seconds=0) for cell in alone.cells]
    assert found.provenance == alone.provenance


def test_a_wrong_layer_stops_before_any_cell(store_path: Path) -> None:
    told: list[Progress] = []
    with pytest.raises(LayerNotFoundError):
        run(store_path, layers=["good", "bad"], progress=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": ["xgbost"]}, UnknownModelError, "did you mean 'xgboost'"),
        ({"models": []}, TrainError, "name at least one"),
        ({"metric": "f1"}, UnknownModelError, "no metric 'f1'"),
        ({"folds": 1}, TrainError, "at least 2"),
        ({"layers": []}, TrainError, "a list of layers"),
        ({"layers": "good"}, TrainError, "a list of layers"),
        ({"layers": [[]]}, TrainError, "a list of layers"),
        ({"name": "../x"}, TrainError, "plain folder name"),
        ({"save": "none"}, TrainError, "best or all"),
        ({"grids": {"xgboost": []}}, TrainError, "is empty"),
        (
            {"grids": {"logistic_regression": [1.0, -1.0]}},
            TrainError,
            "C of 'logistic_regression' must be a number above",
        ),
        ({"grids": {"linear_svm": [float("nan")]}}, TrainError, "found nan"),
        ({"grids": {"rbf_svm": ["1"]}}, TrainError, "found '1'"),
        ({"grids": {"xgboost": [2.5]}}, TrainError, "max_depth of 'xgboost' must be a whole number above 0, found 2.5"),
        ({"grids": {"svm": [1]}}, UnknownModelError, "no model 'svm'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    store_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(store_path, **options)
    assert message in str(caught.value)


def test_a_missing_report_extra_is_named_before_training(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Progress] = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "jinja2" else object())
    with pytest.raises(MissingExtraError, match=r"needs jinja2: pip install 'icecore\[report\]'"):
        run(store_path, report=True, progress=told.append)
    assert told == []


def test_the_winner_is_compared_with_the_next_best_on_the_same_rows(result: TrainResult) -> None:
    assert result.runner_up is not None
    assert result.runner_up.cell == result.cells[1]
    pair = result.runner_up.comparison
    assert pair.n == result.winner.evaluation.n
    first, second = result.winner.evaluation, result.cells[1].evaluation
    assert pair.only_first - pair.only_second == round((first.accuracy - second.accuracy) * pair.n)
    for name, gap in pair.gaps.items():
        if gap is not None:
            assert gap.difference == pytest.approx(getattr(first, name) - getattr(second, name), abs=1e-6)


def test_intervals_of_the_winner_are_in_its_card_and_around_its_scores(result: TrainResult) -> None:
    card = json.loads((result.bundles[0] / "card.json").read_text())
    intervals = result.intervals[0]
    for name, interval in intervals.items():
        assert interval is not None
        assert card["held_out"]["intervals"][name] == list(interval)
        assert interval[0] <= card["held_out"][name] <= interval[1]
    assert result.to_json()["winner_intervals"] == card["held_out"]["intervals"]


def test_with_one_cell_there_is_nobody_to_compare_with(store_path: Path) -> None:
    alone = train_models(store_path, "photos", layers=["good"], models=["linear_svm"], report=False, name="alone")
    assert alone.runner_up is None
    assert alone.to_json()["runner_up"] is None
