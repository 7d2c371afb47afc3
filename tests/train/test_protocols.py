"""No protocol lets a label through: shuffled labels score at chance, held-out rows have no part, groups stay whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import CsvLabels, HashSplit, Steps, TrainError, TrainResult, load_dataset, train_models
from icecore.train.folds import make_folds
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .conftest import CLASSES, features_for, image_ids, write_store

N_TRAIN, N_HELD_OUT = 60, 40
CHANCE = 1 / 3
BANDS = {"cv": 0.13, "held_out": 0.18}
"""Four standard deviations of a share of so many rows at chance, and what choosing among cells adds."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features that tell the classes of the file names apart, in 180 training and 120 held-out rows."""
    ids = image_ids(per_class=N_TRAIN, held_out=N_HELD_OUT)
    return write_store(
        tmp_path_factory.mktemp("protocols") / "features", ids, {"good": features_for(ids, 12, signal=1.5, seed=3)}
    )


def labels_csv(path: Path, *, shuffled: bool, grouped: bool = False, split: bool = True) -> CsvLabels:
    """The images' own classes, or the same dealt out at random (by group where there are groups)."""
    ids = image_ids(per_class=N_TRAIN, held_out=N_HELD_OUT)
    groups = [f"{image.split('/')[0]}-{image.split('/')[1]}-{int(image[-7:-4]) // 4}" for image in ids]
    label = {image: image.split("/")[1] for image in ids}
    rng = np.random.default_rng(11)
    if shuffled and grouped:
        dealt = dict(zip(sorted(set(groups)), rng.permutation(np.resize(CLASSES, len(set(groups)))), strict=True))
        label = {image: str(dealt[group]) for image, group in zip(ids, groups, strict=True)}
    elif shuffled:
        label = dict(zip(ids, rng.permutation(list(label.values())).tolist(), strict=True))
    rows = ["id,label,split,group"]
    rows += [
        f"{image},{label[image]},{image.split('/')[0] if split else ''},{group if grouped else ''}"
        for image, group in zip(ids, groups, strict=True)
    ]
    path.write_text("\n".join(rows) + "\n")
    return CsvLabels(path)


PROTOCOLS: dict[str, dict[str, Any]] = {
    "given": {},
    "hash": {"split": HashSplit(0.4)},
    "grouped": {},
    "repeated": {"repeats": 3},
    "nested": {"outer_folds": 3},
    "components": {"steps": Steps(signed_sqrt=True, l2_norm=True, pca=6, whiten=True)},
    "calibrated": {"calibration": "sigmoid"},
    "balanced": {"class_weight": "balanced"},
}


def run(store: Path, folder: Path, protocol: str, *, shuffled: bool) -> TrainResult:
    labels = labels_csv(
        folder / "labels.csv", shuffled=shuffled, grouped=protocol == "grouped", split=protocol != "hash"
    )
    return train_models(
        store, "photos", layers=["good"], models=["logistic_regression", "ridge", "nearest_mean", "knn"], folds=3,
        labels=labels, report=False, name=f"{protocol}-{shuffled}", **PROTOCOLS[protocol],
    )  # fmt: skip


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_shuffled_labels_score_at_chance(many: Path, tmp_path: Path, protocol: str) -> None:
    result = run(many, tmp_path, protocol, shuffled=True)
    scores = [cell.evaluation.accuracy for cell in result.cells]
    assert abs(np.mean(scores) - CHANCE) < BANDS["held_out"]
    assert abs(np.mean([cell.best.mean for cell in result.cells]) - CHANCE) < BANDS["cv"]
    if result.nested is not None:
        assert abs(result.nested.mean - CHANCE) < BANDS["cv"]


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_true_labels_score_far_above_it(many: Path, tmp_path: Path, protocol: str) -> None:
    result = run(many, tmp_path, protocol, shuffled=False)
    assert result.winner.evaluation.accuracy > 0.9
    assert result.winner.best.mean > 0.9
    if result.nested is not None:
        assert result.nested.mean > 0.9


def test_the_nested_score_is_that_of_a_plain_nested_loop(many: Path) -> None:
    """One model, one value: each outer fold's score is a plain fit's."""
    result = train_models(
        many, "photos", layers=["good"], models=["ridge"], grids={"ridge": [10.0]}, folds=3, outer_folds=4,
        report=False, name="plain-nested", seed=5,
    )  # fmt: skip
    with FeatureStore.open(many) as store:
        X, y = load_dataset(store, "photos", "good").training()
    assert result.nested is not None
    for fold, (train, test) in zip(result.nested.folds, make_folds(y, classes=CLASSES, folds=4, seed=5), strict=True):
        plain = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0)).fit(X[train], y[train])
        assert fold.score == pytest.approx(plain.score(X[test], y[test]))
        assert fold.params == {"alpha": 10.0}
        assert fold.evaluation.n == len(test)


def test_outer_folds_keep_groups_whole(many: Path, tmp_path: Path) -> None:
    """A group's rows are copies of each other: apart they would tell each other's label."""
    ids = image_ids(per_class=24, held_out=8)
    rng = np.random.default_rng(2)
    group = {image: f"{image.split('/')[0]}{int(image[-7:-4]) // 4}{image.split('/')[1]}" for image in ids}
    centres = {name: rng.normal(size=8) for name in set(group.values())}
    X = np.array([centres[group[image]] for image in ids], dtype=np.float32)
    store = write_store(tmp_path / "features", ids, {"copies": X})
    dealt = {name: CLASSES[i % 3] for i, name in enumerate(sorted(set(group.values())))}
    csv = tmp_path / "labels.csv"
    rows = [f"{image},{dealt[group[image]]},{image.split('/')[0]},{group[image]}" for image in ids]
    csv.write_text("\n".join(["id,label,split,group", *rows]) + "\n")
    result = train_models(
        store, "photos", layers=["copies"], models=["knn"], folds=2, outer_folds=2, labels=CsvLabels(csv),
        report=False, grids={"knn": [1]},
    )  # fmt: skip
    assert result.nested is not None
    assert result.nested.mean < 0.75
    assert result.winner.best.mean < 0.75


def test_held_out_labels_have_no_part_in_any_choice(many: Path, tmp_path: Path) -> None:
    """With the held-out labels dealt out anew, every cross-validated score and every model stays the same."""
    shutil.copytree(many, tmp_path / "features")
    labels = labels_csv(tmp_path / "a.csv", shuffled=False)
    text = labels.path.read_text().splitlines()
    held_out = [line.split(",") for line in text if ",val," in line]
    turned = {row[0]: other[1] for row, other in zip(held_out, held_out[40:] + held_out[:40], strict=True)}
    lines = [",".join([p[0], turned.get(p[0], p[1]), *p[2:]]) for p in (line.split(",") for line in text)]
    (tmp_path / "b.csv").write_text("\n".join(lines) + "\n")
    first, second = (
        train_models(
            tmp_path / "features", "photos", layers=["good"], models=["ridge", "xgboost"], folds=3, name=name,
            labels=CsvLabels(tmp_path / f"{name}.csv"), report=False, repeats=2, outer_folds=2,
        )
        for name in "ab"
    )  # fmt: skip
    assert [cell.grid for cell in first.cells] == [cell.grid for cell in second.cells]
    assert first.nested == second.nested
    assert first.winner.evaluation.accuracy > second.winner.evaluation.accuracy + 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 0}, "repeats: at least 1, found 0"),
        ({"outer_folds": 1}, "outer_folds: at least 2, or 0 for none, found 1"),
        ({"halving": "sometimes"}, "halving: one of auto, always, never"),
    ],
)
def test_protocols_that_mean_nothing_are_refused(many: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        train_models(many, "photos", layers=["good"], **arguments)
