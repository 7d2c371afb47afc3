"""A sweep of numbers and of labels does what one of classes does, in the order that their metrics ask for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import (
    TASKS,
    CsvLabels,
    SweepResult,
    TrainError,
    UnknownModelError,
    load_bundle,
    load_dataset,
    sweep_models,
    task_of,
    train_models,
)
from icecore.train.metrics import LOSSES
from icecore.train.sweep_kept import Kept, targets_inputs
from icecore.train.sweep_page import heat_table, render_sweep
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import f1_score, root_mean_squared_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .conftest import Lab, features_for

LAYERS = {"poor": 6, "good": 10, "noise": 8}
MODELS = {
    "regression": ("ridge", "linear_svr", "knn"),
    "multilabel": ("logistic_regression", "ridge", "nearest_mean", "knn"),
}
COLUMNS = {"regression": ("age",), "multilabel": ("red", "round")}


class Made:
    """A store of three layers, and a CSV with a number and two labels an image."""

    def __init__(self, lab: Lab) -> None:
        self.ids = lab.ids(24, 10)
        rng = np.random.default_rng(0)
        hidden = rng.normal(size=(len(self.ids), 3))
        noise = {"poor": 2.0, "good": 0.4, "noise": 50.0}
        self.layers = {
            name: (hidden @ rng.normal(size=(3, width)) + noise[name] * rng.normal(size=(len(self.ids), width)))
            .astype(np.float16)
            .astype(np.float32)
            for name, width in LAYERS.items()
        }
        self.age = (400 + 250 * hidden[:, 0] - 120 * hidden[:, 1]).round(3)
        self.tags = (hidden[:, :2] > (0.0, 0.5)).astype(int)
        self.csv = lab.folder / "labels.csv"
        self.write(self.age)
        self.store = lab.store(self.ids, **self.layers)

    def write(self, age: Any) -> None:
        rows = zip(self.ids, age, self.tags, strict=True)
        lines = [f"{image},{value:.3f},{red},{around},{image.split('/')[0]}" for image, value, (red, around) in rows]
        self.csv.write_text("\n".join(["path,age,red,round,split", *lines]) + "\n", "utf-8")

    def sweep(self, task: Any, **options: Any) -> SweepResult:
        settings = {"models": MODELS[task], "folds": 3, "report": False, "name": task, **options}
        settings.setdefault("labels", CsvLabels(self.csv, columns=COLUMNS[task]))
        return sweep_models(self.store, "photos", task=task, **settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(Lab(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def swept(made: Made) -> dict[str, SweepResult]:
    return {task: made.sweep(task) for task in COLUMNS}


@pytest.mark.parametrize("task", COLUMNS)
def test_the_leaderboard_is_that_of_train(made: Made, swept: dict[str, SweepResult], task: Any) -> None:
    result = swept[task]
    trained = train_models(
        made.store, "photos", layers=list(LAYERS), task=task, models=MODELS[task], folds=3, report=False,
        labels=CsvLabels(made.csv, columns=COLUMNS[task]), name="same",
    )  # fmt: skip
    assert [(cell.columns, cell.model, cell.best, cell.grid) for cell in result.cells] == [
        (cell.columns, cell.model, cell.best, cell.grid) for cell in trained.cells
    ]
    headline = task_of(task).headlines[0]
    ours, theirs = (getattr(one.winner.evaluation, headline) for one in (result.trained, trained))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert result.trained.baseline == trained.baseline
    assert {cell.columns for cell in result.cells} == {(f"{name}:avg",) for name in LAYERS}


@pytest.mark.parametrize("task", COLUMNS)
def test_cells_equal_plain_scikit_learn_on_the_same_folds(made: Made, swept: dict[str, SweepResult], task: Any) -> None:
    labels = CsvLabels(made.csv, columns=COLUMNS[task])
    with FeatureStore.open(made.store) as store:
        data = load_dataset(store, "photos", "good", labels=labels, task=task)
    X, y = data.training()
    folds = task_of(task).make_folds(y, names=data.rows.classes, folds=3, seed=0, groups=None)
    (cell,) = [cell for cell in swept[task].cells if cell.columns == ("good:avg",) and cell.model == "ridge"]

    def score(alpha: float, train: Any, test: Any) -> float:
        if task == "regression":
            model = make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(X[train], y[train])
            return float(root_mean_squared_error(y[test], model.predict(X[test])))
        models = [
            make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha)).fit(X[train], one[train]) for one in y.T
        ]
        called = np.column_stack([model.predict(X[test]) for model in models])
        return float(f1_score(y[test], called, average="macro", zero_division=0))

    for point in cell.grid:
        scores = [score(point.value, *fold) for fold in folds]
        assert (point.mean, point.std) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-3)


@pytest.mark.parametrize(("task", "metric"), [(task, metric) for task in COLUMNS for metric in task_of(task).metrics])
def test_every_order_has_the_best_first_where_less_is_better_too(made: Made, task: Any, metric: Any) -> None:
    result = made.sweep(task, metric=metric, keep=1, models=("ridge", "knn"), name=metric)
    sign = -1 if metric in LOSSES else 1
    means = [sign * cell.best.mean for cell in result.cells]
    assert means == sorted(means, reverse=True)
    for cell in result.cells:
        finished = [sign * point.mean for point in cell.grid if point.folds is None]
        assert sign * cell.best.mean == max(finished)
    ranked = [max(sign * cell.best.mean for cell in layer.cells.values()) for layer in result.quick]
    assert ranked == sorted(ranked, reverse=True)
    assert result.quick[0].layers == "good:avg"
    assert [layer.kept for layer in result.quick] == [True, False, False]
    heat = heat_table(result.cells, metric)
    warmth = {id(cell): warm for _, row in heat.rows for entry in row if entry for cell, warm in [entry]}
    assert warmth[id(result.cells[0])] == 1.0
    assert warmth[id(result.cells[-1])] == 0.0
    board = json.loads(result.files[1].read_text())
    assert (board["task"], board["metric"]) == (task, metric)
    assert board["cells"][0]["cv"]["mean"] == result.winner.best.mean


def test_numbers_are_ranked_by_ridge_alone_where_neighbours_are_dear() -> None:
    task = task_of("regression")
    assert (task.quick(500), task.quick(10**6)) == (("ridge", "knn"), ("ridge",))
    for name in TASKS:
        assert set(task_of(name).quick(100)) <= set(task_of(name).models)


@pytest.mark.parametrize("task", COLUMNS)
def test_a_second_sweep_reads_every_cell_and_the_bundle(made: Made, swept: dict[str, SweepResult], task: Any) -> None:
    again = made.sweep(task)
    assert (again.computed, again.reused) == (0, len(swept[task].cells))
    assert again.cells == swept[task].cells
    assert again.trained.reused
    assert again.trained.bundles == swept[task].trained.bundles
    assert again.trained.winner.evaluation == swept[task].trained.winner.evaluation
    bundle = load_bundle(again.trained.bundles[0])
    assert (bundle.task, bundle.card["chosen_among"]) == (task, len(again.cells))


def test_other_numbers_make_other_cells(lab: Any) -> None:
    made = Made(lab)
    models = ("ridge",)
    first = made.sweep("regression", models=models)
    made.age[0] += 5
    made.write(made.age)
    again = made.sweep("regression", models=models)
    assert again.computed == first.computed == 6
    assert not again.trained.reused


def test_tasks_with_the_same_targets_never_share_a_cell() -> None:
    y = np.array([0, 1, 1, 0])
    found = [targets_inputs(task_of(name), y) for name in TASKS]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == len(TASKS)


OLD = """{"inputs": {"format_version": 1, "what": "cell", "set": "photos",
 "generation": "451980618cf6427b9b3edd512841980f", "columns": [{"name": "good:avg",
 "hash": "ca73fcba3b6cb9f3839c6eda1da367ab54f9b2172e08d2b401efcb0c3878c036"}],
 "features_sha256": "03531e2295b5ae1827d175f9fd0d3e43477e943eafa6d37270a4cfa416a68989",
 "classes_sha256": "84e0c456d73c2565441c1532e26be991b684b04069e5a6afe1a45ca44c01bfca",
 "folds_sha256": "b96eed9b30da2de5a8286d50966a8d893b331f715b3500cda2a18b8b0b546002", "metric": "accuracy",
 "halving": "auto", "model": "ridge", "grid": [1.0], "options": {"seed": 0, "class_weight": null, "steps":
 {"signed_sqrt": false, "l2_norm": false, "scale": "standard", "pca": 0, "whiten": false}, "calibration": null}},
 "found": {"best": 0, "grid": [{"value": 1.0, "mean": 0.6666666666666666, "std": 0.0}],
 "seconds": 0.1411821220026468, "notes": []},
 "versions": {"python": "3.11.7", "icecore": "0.1.0", "numpy": "2.4.6", "scipy": "1.17.1", "scikit-learn": "1.9.1",
 "skops": "0.16.0", "xgboost": "3.2.0"},
 "sha256": "917e079bff5e19f89bbcb57f995a440326afb4d009633c1939fec7646c5f663e"}"""
OLD_NAME = "440945e5c9c235615e71e9bb9d2f9da282724ec522cc120c603c2e9845fe6216.json"
"""A cell of classes, as it was written before a sweep knew other tasks."""


def test_cells_of_classes_of_before_there_were_tasks_are_read(lab: Any) -> None:
    (lab.folder / OLD_NAME).write_text(OLD, "ascii")
    inputs = json.loads(OLD)["inputs"]
    version = inputs.pop("format_version")
    kept = Kept(lab.folder)
    assert kept.get(inputs) == json.loads(OLD)["found"]
    assert kept.damaged == []
    ids = lab.ids(8, 4)
    path = lab.store(ids, good=features_for(ids, 6, signal=1.0))
    sweep_models(path, "photos", models=["ridge"], grids={"ridge": [1.0]}, folds=2, report=False)
    written = [json.loads(file.read_text())["inputs"] for file in path.glob("sweeps/default/cells/*.json")]
    (cell,) = [one for one in written if one.get("model") == "ridge"]
    assert cell.pop("format_version") == version
    assert {**cell, "generation": inputs["generation"]} == inputs


@pytest.mark.parametrize("task", COLUMNS)
def test_the_page_names_task_metric_and_unit(made: Made, swept: dict[str, SweepResult], task: Any) -> None:
    result = swept[task]
    page = render_sweep(result)
    assert f"icecore sweep, {task}" in page
    assert f"<dt>Task</dt><dd>{task}, metric {result.plan.metric}</dd>" in page
    if task == "regression":
        assert "Cross-validated rmse, lower is better" in page
        assert f"age from {made.age.min():g} to {made.age.max():g}" in page
        assert "RMSE (lower is better) of the winner, held out" in page
        assert "Training mean, held out" in page
        assert "Ridge regression" in page
    else:
        assert "Macro F1 of the winner, held out" in page
        assert "2 labels" in page
        assert "lower is better" not in page
    heat = heat_table(result.cells, result.plan.metric)
    assert heat.models == MODELS[task]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"models": ["rbf_svm"]}, UnknownModelError, "'rbf_svm'"),
        ({"models": ("ridge",), "metric": "accuracy"}, UnknownModelError, "no metric 'accuracy'"),
        ({"models": ("ridge",), "class_weight": "balanced"}, TrainError, "has no classes to weigh"),
        ({"models": ("ridge",), "grids": {"nearest_mean": [1.0]}}, UnknownModelError, "'nearest_mean'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(
    made: Made, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made.sweep("regression", **{"name": "never", **options})
    assert not (made.store / "sweeps" / "never").exists()


@pytest.mark.parametrize("task", COLUMNS)
def test_a_report_of_the_winner_is_made(made: Made, task: Any) -> None:
    result = made.sweep(task, name="told", models=("ridge",), report=True)
    assert isinstance(result.trained.report, Path)
    assert result.trained.report.is_file()
    assert result.files[-1].name == "leaderboard.html"
