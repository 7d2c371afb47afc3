"""Numbers and labels go all the way: from a CSV to folds, models, scores, bundles and predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import (
    TASKS,
    BundleError,
    CsvLabels,
    DatasetError,
    FolderLabels,
    FoldError,
    HashSplit,
    LabelError,
    TrainError,
    TrainResult,
    UnknownModelError,
    load_bundle,
    load_dataset,
    task_of,
    train_models,
)
from icecore.train.bundle_format import CARD
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, r2_score, root_mean_squared_error
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

TAGS = ("red", "round", "<i>ripe</i>")
SAID = {"red": ("0", "1"), "round": ("no", "Yes"), "<i>ripe</i>": ("False", "TRUE")}


class Made:
    """A store with a CSV of numbers and one of labels."""

    def __init__(self, lab: Any) -> None:
        self.folder = lab.folder
        self.ids = lab.ids(30, 15)
        rng = np.random.default_rng(0)
        self.X = rng.normal(size=(len(self.ids), 12)).astype(np.float16).astype(np.float32)
        self.age = 40 + self.X[:, :3] @ (6, -4, 3) + rng.normal(size=len(self.ids))
        self.age = self.age.round(3)
        self.tags = (self.X[:, :3] + rng.normal(size=(len(self.ids), 3)) * 0.4 > (0, 0.4, 0.9)).astype(np.int64)
        self.train = np.array([image.startswith("train/") for image in self.ids])
        self.store = lab.store(self.ids, good=self.X, poor=self.X[:, 6:])
        self.ages = self.csv("ages.csv", ["age"], [[f"{age:.3f}"] for age in self.age])
        said = [[SAID[name][value] for name, value in zip(TAGS, row, strict=True)] for row in self.tags]
        self.labels = self.csv("tags.csv", TAGS, said)

    def csv(
        self, name: str, columns: Sequence[str], texts: Sequence[Sequence[str]], **more: Sequence[str]
    ) -> CsvLabels:
        lines = [",".join(["path", *columns, "split", *more])]
        for i, (image, row) in enumerate(zip(self.ids, texts, strict=True)):
            lines.append(",".join([image, *row, image.split("/")[0], *(column[i] for column in more.values())]))
        (self.folder / name).write_text("\n".join(lines) + "\n", "utf-8")
        return CsvLabels(self.folder / name, columns=tuple(columns))

    def run(self, task: str, **options: Any) -> TrainResult:
        settings: dict[str, Any] = {"layers": ["good", "poor"], "folds": 3, "report": False, "name": task, **options}
        settings.setdefault("labels", self.ages if task == "regression" else self.labels)
        return train_models(self.store, "photos", task=task, **settings)  # type: ignore[arg-type]


@pytest.fixture
def made(lab: Any) -> Made:
    return Made(lab)


# --- labels -----------------------------------------------------------------------------------------------------


def test_columns_of_a_file_become_targets_in_the_order_of_the_store(made: Made) -> None:
    with FeatureStore.open(made.store) as store:
        numbers = load_dataset(store, "photos", "good", labels=made.ages, task="regression").rows
        tags = load_dataset(store, "photos", "good", labels=made.labels, task="multilabel").rows
    assert (numbers.classes, numbers.y.dtype) == (("age",), np.float64)
    np.testing.assert_array_equal(numbers.y, made.age)
    assert tags.classes == TAGS
    np.testing.assert_array_equal(tags.y, made.tags)


@pytest.mark.parametrize("text", ["nan", "inf", "old", "1e999", "12 years"])
def test_a_number_that_is_none_names_its_line(made: Made, text: str) -> None:
    texts = [[f"{age}"] for age in made.age]
    texts[4] = [text]
    with pytest.raises(LabelError) as refused:
        made.run("regression", labels=made.csv("bad.csv", ["age"], texts))
    assert f"line 6: age of {made.ids[4]!r} must be a finite number, found {text!r}" in str(refused.value)


def test_a_label_that_says_neither_yes_nor_no_names_its_line(made: Made) -> None:
    texts = [["0", "1"] for _ in made.ids]
    texts[0], texts[2] = ["maybe", "1"], ["0", "2"]
    with pytest.raises(LabelError) as refused:
        made.run("multilabel", labels=made.csv("bad.csv", ["a", "b"], texts))
    assert str(refused.value).splitlines()[1:] == [
        f"  line 2: a of {made.ids[0]!r} must be 0 or 1, true or false, yes or no, found 'maybe'",
        f"  line 4: b of {made.ids[2]!r} must be 0 or 1, true or false, yes or no, found '2'",
    ]


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("regression", ("age", "red"), "a regression takes one column of numbers, found 2 columns"),
        ("classification", ("age", "red"), '2 columns of labels, where classes have one; .*task = "multilabel"'),
        ("multilabel", ("red", "square"), "no column 'square'; found 'path', 'age', 'red', 'split'"),
        ("multilabel", ("red", "split"), "column split cannot hold labels"),
        ("multilabel", ("red", "red"), "columns of labels must be different names, found 'red', 'red'"),
        ("multilabel", (), "name at least one column of labels"),
    ],
)
def test_columns_that_do_not_fit_are_refused(made: Made, task: str, columns: tuple[str, ...], message: str) -> None:
    path = made.csv("both.csv", ["age", "red"], [["1", "0"] for _ in made.ids]).path
    with pytest.raises(LabelError, match=message):
        made.run(task, labels=CsvLabels(path, columns=columns))


@pytest.mark.parametrize(("task", "cure"), [("regression", "folder names"), ("multilabel", "folders give one class")])
def test_folders_give_classes_alone(made: Made, task: str, cure: str) -> None:
    with pytest.raises(LabelError, match=f"{cure}.*labels.csv"):
        made.run(task, labels=FolderLabels())


def test_a_column_of_classes_may_have_any_name(made: Made) -> None:
    labels = made.csv("kinds.csv", ["kind"], [[image.split("/")[1]] for image in made.ids])
    found = made.run("classification", labels=labels, models=["ridge"])
    assert found.rows.classes == ("ants", "bees", "wasps")


def test_targets_that_teach_nothing_are_refused(made: Made) -> None:
    constant = [["7" if train else "8"] for train in made.train]
    with pytest.raises(DatasetError, match="every training image has age 7, so nothing can be learned"):
        made.run("regression", labels=made.csv("same.csv", ["age"], constant))
    for said, what in (("1", "every"), ("0", "no")):
        texts = [[said if train else "1", str(i % 2)] for i, train in enumerate(made.train)]
        with pytest.raises(DatasetError, match=f"{what} training image has the label 'a'"):
            made.run("multilabel", labels=made.csv("same.csv", ["a", "b"], texts))
    once = np.flatnonzero(made.train)[0]
    texts = [["1" if i == once else "0"] for i in range(len(made.ids))]
    with pytest.raises(FoldError, match="label 'a': 1 of 90 training rows have it, and a fold would train on 0 of 60"):
        made.run("multilabel", labels=made.csv("once.csv", ["a"], texts))


# --- models and scores ------------------------------------------------------------------------------------------


def test_numbers_are_scored_as_plain_scikit_learn_scores_them(made: Made) -> None:
    found = made.run("regression", models=["ridge"], layers=["good"], seed=3)
    train, y = made.train, made.age
    ranks = np.argsort(np.argsort(y[train], kind="stable"))
    folds = StratifiedKFold(3, shuffle=True, random_state=3).split(ranks, ranks * 10 // len(ranks))
    plain = make_pipeline(StandardScaler(), Ridge(found.winner.best.value))
    errors = []
    for fit, test in folds:
        plain.fit(made.X[train][fit], y[train][fit])
        errors.append(root_mean_squared_error(y[train][test], plain.predict(made.X[train][test])))
    assert found.metric == "rmse"
    assert found.winner.best.mean == pytest.approx(np.mean(errors), rel=1e-5)
    told = plain.fit(made.X[train], y[train]).predict(made.X[~train])
    scores = found.winner.evaluation
    assert scores.rmse == pytest.approx(root_mean_squared_error(y[~train], told), rel=1e-5)
    assert scores.r2 == pytest.approx(r2_score(y[~train], told), rel=1e-5)
    assert scores.r2 > 0.9 > 0.1 > found.baseline.r2
    assert found.baseline.rmse == pytest.approx(root_mean_squared_error(y[~train], np.full(45, y[train].mean())))


def test_labels_are_scored_as_plain_scikit_learn_scores_them(made: Made) -> None:
    found = made.run("multilabel", models=["logistic_regression"], layers=["good"], save="all")
    train = made.train
    called = []
    for y in made.tags.T:
        plain = make_pipeline(StandardScaler(), LogisticRegression(C=found.winner.best.value, max_iter=5_000))
        called.append(plain.fit(made.X[train], y[train]).predict(made.X[~train]))
    expected = f1_score(made.tags[~train], np.transpose(called), average="macro")
    assert found.metric == "macro_f1"
    assert found.winner.evaluation.macro_f1 == pytest.approx(expected)
    assert expected > 0.7 > found.baseline.macro_f1
    assert [row.label for row in found.winner.evaluation.per_label] == list(TAGS)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_every_model_and_metric_of_a_task_trains_and_its_bundle_loads(made: Made, task: str) -> None:
    quick = {name: spec.grid[:1] for name, spec in task_of(task).models.items() if name == "mlp"}
    found = made.run(task, save="all", layers=["good"], grids=quick)
    assert {cell.model for cell in found.cells} == set(task_of(task).models)
    order = [
        -found.cells[i].best.mean if task == "multilabel" else found.cells[i].best.mean for i in range(len(found.cells))
    ]
    assert order == sorted(order)
    X = made.X[~made.train]
    for path, cell, intervals in zip(found.bundles, found.cells, found.intervals, strict=True):
        bundle = load_bundle(path)
        assert (bundle.task, bundle.card["task"], bundle.classes) == (task, task, found.rows.classes)
        again = task_of(task).evaluate(found.predictions.y, bundle.outputs(X), bundle.classes)
        for name in task_of(task).metrics:
            score = getattr(cell.evaluation, name)
            assert getattr(again, name) == pytest.approx(score, rel=1e-5), (cell.model, name)
            low, high = intervals[name]  # type: ignore[misc]
            assert low <= score <= high
    assert (
        found.winner.evaluation.to_json()
        == json.loads(json.dumps(found.to_json(), allow_nan=False))["winner"]["held_out"]
    )
    for metric in task_of(task).metrics[1:]:
        assert made.run(task, metric=metric, models=["ridge", "knn"], layers=["good"], name="by").metric == metric


def test_a_bundle_of_labels_and_one_of_numbers_predict_what_they_are_for(made: Made) -> None:
    X = made.X[~made.train]
    numbers, labels = (
        load_bundle(made.run(task, models=["ridge"], layers=["good"]).bundles[0])
        for task in ("regression", "multilabel")
    )
    called = numbers.predict({"good:avg": X})
    assert all(type(number) is float for number in called)
    assert np.abs(np.array(called) - made.age[~made.train]).mean() < 2
    with pytest.raises(BundleError, match="a regression gives numbers and no probabilities; use predict"):
        numbers.predict_proba(X)
    assert numbers.predict(np.zeros((0, 12))) == labels.predict(np.zeros((0, 12))) == []
    proba = labels.predict_proba(X)
    assert proba.shape == (45, 3)
    assert labels.predict(X) == [[name for name, p in zip(TAGS, row, strict=True) if p > 0.5] for row in proba]
    for p, y in zip(proba.T, made.tags[~made.train].T, strict=True):  # each label by a temperature of its own
        assert 0.02 < p.mean() < 0.98
        assert np.mean((p - y) ** 2) < y.var()


def test_xgboosts_labels_are_its_own_json_one_file_a_label(made: Made) -> None:
    path = made.run("multilabel", models=["xgboost"], layers=["good"]).bundles[0]
    names = {file.name for file in path.iterdir()}
    models = {f"model-000{label}.json" for label in range(3)}
    assert names == {CARD, "steps.skops", "rows.csv.gz", *models}
    (path / "model-0001.json").unlink()
    with pytest.raises(BundleError, match=r"'model-0001.json' is missing"):
        load_bundle(path)


def test_a_bundle_that_lacks_a_label_is_refused(made: Made, reseal: Callable[..., None]) -> None:
    path = made.run("multilabel", models=["xgboost"], layers=["good"]).bundles[0]
    (path / "model-0002.json").unlink()
    reseal(path)
    with pytest.raises(BundleError, match="the model gives 2 probabilities, the card names 3 classes"):
        load_bundle(path)


def test_a_bundle_without_a_task_is_a_classifier_and_an_unknown_one_is_refused(
    bundle: Path, reseal: Callable[..., None]
) -> None:
    card = json.loads((bundle / CARD).read_text())
    del card["task"]
    (bundle / CARD).write_text(json.dumps(card))
    reseal(bundle)
    assert load_bundle(bundle).task == "classification"
    reseal(bundle, task="segmentation")
    with pytest.raises(BundleError, match=r"it was trained for 'segmentation', and this release knows classification"):
        load_bundle(bundle)
    reseal(bundle, task="regression")
    with pytest.raises(BundleError, match=r"does not take|probabilities"):
        load_bundle(bundle)


def test_held_out_targets_have_no_part_in_the_choice(made: Made) -> None:
    def choices(labels: CsvLabels, task: str) -> list[Any]:
        cells = made.run(task, labels=labels, models=["ridge", "knn"]).cells
        return [(cell.columns, cell.model, cell.best) for cell in cells]

    ages = [[str(age if train else 1000 - age)] for age, train in zip(made.age, made.train, strict=True)]
    assert choices(made.ages, "regression") == choices(made.csv("other.csv", ["age"], ages), "regression")
    tags = np.where(made.train[:, None], made.tags, 1 - made.tags).astype(str).tolist()
    assert choices(made.labels, "multilabel") == choices(made.csv("other.csv", TAGS, tags), "multilabel")


def test_groups_stay_whole_in_folds_split_and_intervals(made: Made) -> None:
    groups = [f"g{i // 3}" for i in range(len(made.ids))]
    labels = made.csv("groups.csv", ["age"], [[str(age)] for age in made.age], group=groups)
    found = made.run("regression", labels=labels, models=["ridge"], split=HashSplit(0.3))
    assert found.rows.groups == tuple(groups)
    sides: dict[str, set[bool]] = {}
    for group, train in zip(groups, found.rows.train.tolist(), strict=True):
        sides.setdefault(group, set()).add(train)
    assert all(len(side) == 1 for side in sides.values())
    tags = made.csv("groups.csv", TAGS, made.tags.astype(str).tolist(), group=groups)
    assert made.run("multilabel", labels=tags, models=["ridge"], split=HashSplit(0.3)).rows.groups == tuple(groups)


def test_balanced_weights_find_more_of_a_rare_label(made: Made) -> None:
    plain, balanced = (
        made.run("multilabel", models=["logistic_regression"], layers=["poor"], class_weight=weight).winner.evaluation
        for weight in (None, "balanced")
    )
    assert balanced.per_label[2].recall > plain.per_label[2].recall


def test_a_nested_search_of_numbers_judges_each_outer_fold(made: Made) -> None:
    nested = made.run("regression", models=["ridge", "knn"], outer_folds=3).nested
    assert nested is not None
    assert [fold.score for fold in nested.folds] == [fold.evaluation.rmse for fold in nested.folds]
    assert nested.mean < made.age.std() / 2


def test_a_runner_up_of_numbers_is_told_by_its_gap_alone(made: Made) -> None:
    pair = made.run("regression", models=["ridge", "knn"], layers=["good"]).runner_up
    assert pair is not None
    assert pair.comparison.p_value is pair.comparison.only_first is None
    assert pair.comparison.gaps["rmse"].interval[1] < 0  # type: ignore[union-attr]
    assert pair.verdict() == "the winner is better beyond chance"  # though its error is the smaller number
    assert "mcnemar_p" not in pair.to_json()


def test_doubtful_numbers_and_numbers_out_of_range_are_noted(made: Made) -> None:
    ages = made.age.copy()
    ages[made.ids.index("train/bees/004.jpg")] += 70
    ages[made.ids.index("val/ants/001.jpg")] = 900
    found = made.run("regression", labels=made.csv("odd.csv", ["age"], [[str(age)] for age in ages]), models=["ridge"])
    suspects = found.evidence.checks.suspects
    assert suspects[0].id == "train/bees/004.jpg"  # it pulls the models that it trains, so that others may follow
    assert suspects[0].deviations > 3 * (suspects[1].deviations if suspects[1:] else 4)  # type: ignore[union-attr]
    train, held_out = ages[made.train], ages[~made.train]
    beyond = ((held_out < train.min()) | (held_out > train.max())).sum()
    what = f"held-out images with age beyond the training images' ({train.min():g} to {train.max():g}): {beyond}"
    assert what in found.notes
    assert json.loads(json.dumps(found.to_json()))["checks"]["suspects"][0]["deviations"] > 4


def test_a_label_of_few_images_and_one_that_none_held_out_has_are_noted(made: Made) -> None:
    tags = made.tags.copy()
    tags[:, 1] = 0
    tags[np.flatnonzero(made.train)[:5], 1] = 1
    found = made.run("multilabel", labels=made.csv("few.csv", TAGS, tags.astype(str).tolist()), models=["ridge"])
    assert "no held-out image has the label 'round': the scores say little of it" in found.notes
    assert any("'round: 5'" in note for note in found.notes)


def test_a_learning_curve_leaves_out_parts_that_lack_a_label(made: Made) -> None:
    found = made.run("multilabel", models=["logistic_regression"], layers=["good"], report=True, folds=5)
    points = found.evidence.learning
    assert points[-1].rows == 72
    assert points[-1].mean == pytest.approx(found.winner.best.mean)
    assert [point.rows for point in points] == sorted({point.rows for point in points})
    numbers = made.run("regression", models=["ridge"], layers=["good"], report=True, folds=5).evidence.learning
    assert (
        numbers[0].mean > 1.2 * numbers[-1].mean
    )  # with fewer rows the error is larger: no row beyond the part is used


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("regressoin", {}, UnknownModelError, "no task 'regressoin'; .*did you mean 'regression'"),
        (
            "regression",
            {"models": ["linear_svm"]},
            UnknownModelError,
            "no model 'linear_svm' for regression; there are",
        ),
        (
            "regression",
            {"metric": "accuracy"},
            UnknownModelError,
            "no metric 'accuracy' for regression; there are rmse",
        ),
        ("multilabel", {"metric": "rmse"}, UnknownModelError, "no metric 'rmse' for multilabel; there are macro_f1"),
        ("multilabel", {"grids": {"rbf_svr": [1]}}, UnknownModelError, "no model 'rbf_svr' for multilabel"),
        ("regression", {"class_weight": "balanced"}, TrainError, "class_weight: a regression has no classes to weigh"),
        ("multilabel", {"calibration": "sigmoid"}, TrainError, "calibration: curves are for classes alone"),
    ],
)
def test_options_that_do_not_fit_the_task_are_refused(
    made: Made, task: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        made.run(task, **options)


def test_every_task_is_told_by_name() -> None:
    assert [task_of(name).name for name in TASKS] == list(TASKS)
    for name in TASKS:
        assert all(spec.task == name for spec in task_of(name).models.values())


def outputs_of(result: TrainResult) -> NDArray[Any]:
    return result.predictions.outputs


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_same_seed_gives_the_same_numbers(made: Made, task: str) -> None:
    models = ["ridge", "knn", "xgboost"]
    first, again = (made.run(task, layers=["good"], models=models, name=name) for name in ("first", "again"))
    assert [(c.model, c.best) for c in first.cells] == [(c.model, c.best) for c in again.cells]
    np.testing.assert_array_equal(outputs_of(first), outputs_of(again))
