"""``icecore train`` and ``icecore predict`` for numbers and labels, on features of real images."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.cli.config import ConfigError, TrainConfig, load_config
from icecore.train import load_bundle
from PIL import Image

Icecore = Callable[..., Any]


@pytest.fixture
def labelled(trained: Any) -> Any:
    """Images with two CSVs: their mean brightness, and whether they are red, or bright for their colour."""
    paths = sorted(trained.photos.rglob("*.png"))
    ids = [path.relative_to(trained.photos).as_posix() for path in paths]
    brightness = [float(np.asarray(Image.open(path)).mean()) for path in paths]
    rows = []
    for image, value in zip(ids, brightness, strict=True):
        is_red, is_bright = "yes" if "/red/" in image else "no", int(value > np.median(brightness))
        rows.append(f"{image},{value:.4f},{is_red},{is_bright},{image.split('/')[0]}")
    (trained.folder / "labels.csv").write_text("\n".join(["path,brightness,red,bright,split", *rows]), "utf-8")
    text = trained.config.read_text("utf-8").replace('models = ["logistic_regression"]', 'models = ["ridge", "knn"]')
    trained.config.write_text(text + '\n[labels]\ncsv = "labels.csv"\n', "utf-8")
    return trained


NUMBERS = ("--set", "train.task=regression", "--set", "labels.columns=['brightness']", "--set", "train.name=numbers")
LABELS = ("--set", "train.task=multilabel", "--set", "labels.columns=['red', 'bright']", "--set", "train.name=tags")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_numbers_are_trained_told_and_predicted(icecore: Icecore, labelled: Any) -> None:
    done = icecore("train", labelled.config, *NUMBERS)
    assert done.code == 0, done.told
    assert done.text.split("\n")[0].split() == [
        "layers",
        "model",
        "setting",
        "cv",
        "rmse",
        "RMSE",
        "MAE",
        "R2",
        "seconds",
    ]
    assert "(training mean)" in done.text
    assert "held-out RMSE " in done.text
    (path,) = (labelled.store / "models" / "numbers").iterdir()
    bundle = load_bundle(path)
    assert (bundle.task, bundle.classes) == ("regression", ("brightness",))
    (labelled.photos / "val" / "bad.png").write_bytes(b"hello")
    found = icecore("predict", path, labelled.photos / "val")
    assert found.code == 5
    assert found.text.splitlines()[0] == "path,prediction,error,bundle"
    table = rows_of(found.text)
    assert [row["prediction"] == "" for row in table] == [bool(row["error"]) for row in table]
    lines = icecore("predict", path, labelled.photos / "val", "--format", "jsonl").text.splitlines()
    for line, row in zip(map(json.loads, lines), table, strict=True):
        assert line.keys() == {"path", "bundle", "error" if row["error"] else "prediction"}
        if not row["error"]:
            assert float(row["prediction"]) == pytest.approx(line["prediction"], rel=1e-6)


def test_labels_are_trained_told_and_predicted(icecore: Icecore, labelled: Any) -> None:
    done = icecore("train", labelled.config, *LABELS, "--set", "train.models=['logistic_regression']", "--json")
    assert done.code == 0, done.told
    assert (done.outcome["task"], done.outcome["metric"]) == ("multilabel", "macro_f1")
    (path,) = (labelled.store / "models" / "tags").iterdir()
    found = icecore("predict", path, labelled.photos / "val")
    assert found.text.splitlines()[0] == "path,labels,p:red,p:bright,error,bundle"
    for row in rows_of(found.text):
        called = [name for name in ("red", "bright") if float(row[f"p:{name}"]) > 0.5]
        assert row["labels"] == ";".join(called)
        assert ("red" in called) == ("/red/" in row["path"])
    line = json.loads(
        icecore("predict", path, labelled.photos / "val" / "red", "--format", "jsonl").text.splitlines()[0]
    )
    assert isinstance(line["labels"], list)
    assert list(line["probabilities"]) == ["red", "bright"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.task=regression"], "folders give classes alone; name the CSV of a regression in labels.csv"),
        (
            ["train.task=regression", "labels.csv=l.csv", "labels.columns=['a', 'b']"],
            "a regression has one column, found 2",
        ),
        (["labels.csv=l.csv", "labels.columns=['a', 'b']"], 'set train.task = "multilabel" for several'),
        (["labels.columns=[]"], "labels.columns: tuple should have at least 1 item"),
        (
            ["train.task=regression", "train.models=['rbf_svm']"],
            "models: 'rbf_svm' is not for regression, which has ridge",
        ),
        (["train.models=['rbf_svr']"], "models: 'rbf_svr' is not for classification, which has logistic_regression"),
        (
            ["train.task=multilabel", "train.metric=accuracy"],
            "metric: 'accuracy' is not for multilabel, which has macro_f1",
        ),
        (["train.task=regression", "train.grids={nearest_mean=[1]}"], "grids: 'nearest_mean' is not for regression"),
        (["train.task=regression", "train.class_weight=balanced"], "class_weight: a regression has no classes"),
        (["train.task=multilabel", "train.calibration=isotonic"], "calibration: curves are for classification alone"),
        (["train.task=ranking"], "train.task: input should be 'classification', 'multilabel' or 'regression'"),
    ],
)
def test_a_config_that_does_not_fit_its_task_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    config = tmp_path / "job.toml"
    config.write_text('store = "features"\nset = "photos"\n', "utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, config, overrides)
    assert message in str(refused.value)
