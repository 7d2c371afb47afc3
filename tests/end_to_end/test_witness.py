"""MobileNetV2 on real photos, end to end, against a plain script that shares no line with icecore.

Everything is computed once a session, whichever test process comes first; the plain script runs beside the
extraction.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import load_bundle
from sklearn import metrics

from .conftest import run_plain, write_config

LAYERS = ("features.6", "features.13", "features.18")
WIDTHS = (32, 96, 1280)
MODELS = ("logistic_regression", "linear_svm", "ridge", "nearest_mean", "knn", "rbf_svm", "mlp", "xgboost")
SEED, FOLDS = 0, 5


@pytest.fixture(scope="session")
def board(work: Path, jobs: Any, shared: Any) -> dict[str, Any]:
    """What ``icecore train --json`` says of all models on all layers, its own choice of settings."""

    def fill(folder: Path) -> None:
        done = jobs.command(["train", work / "job.toml", "--json"], work)
        assert done.code == 0, done.err
        (folder / "board.json").write_text(json.dumps(done.facts))

    facts: dict[str, Any] = json.loads((shared("board", fill) / "board.json").read_text())
    return facts


@pytest.fixture(scope="session")
def plain_scores(work: Path, board: dict[str, Any], shared: Any) -> dict[str, Any]:
    """What the plain script gets from its own features, with the settings that icecore chose."""

    def fill(folder: Path) -> None:
        cells = [[cell["columns"][0].split(":")[0], cell["model"], cell["params"]] for cell in board["cells"]]
        (folder / "wanted.json").write_text(json.dumps({"cells": cells, "folds": FOLDS, "seed": SEED}))
        with run_plain("scores", work / "plain.npz", folder / "wanted.json", folder / "scores.json") as plain:
            pass
        assert plain.returncode == 0

    scores: dict[str, Any] = json.loads((shared("plain_scores", fill) / "scores.json").read_text())
    return scores


def cosines(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """Cosine of every row of A with every row of B, in float64."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    A, B = (M / np.linalg.norm(M, axis=1, keepdims=True) for M in (A, B))
    return np.asarray(A @ B.T)


def assert_same_features(store_path: Path, plain: Any, kept: np.ndarray, *, rtol: float) -> None:
    """Hold every image and layer against the plain ones, row by row."""
    with FeatureStore.open(store_path) as store:
        for layer, width in zip(LAYERS, WIDTHS, strict=True):
            ids, X = store["hymenoptera"].matrix(layer)
            assert X.shape == (len(ids), width)
            expected = plain[layer][kept]
            table = cosines(X, expected)
            assert np.diag(table).min() >= 0.99999
            # No other image is nearer than the row's own: the rows are not merely alike, they are in the right order.
            assert (table.argmax(axis=1) == np.arange(len(ids))).all()
            # The smallest values are sums of large ones that cancel: an absolute part for them, a millionth of the top.
            np.testing.assert_allclose(X, expected, rtol=rtol, atol=2e-6 * float(expected.max()))


def test_float32_features_of_every_image_and_layer_equal_the_plain_scripts(work: Path) -> None:
    plain = np.load(work / "plain.npz")
    names = [str(name) for name in plain["names"]]
    with FeatureStore.open(work / "features") as store:
        ids = store["hymenoptera"].ids()
    assert len(names) == 397
    assert ids == names
    # Measured: cosine 1 - 6e-13, largest difference 4.5e-6 of 4.7. Batches and memory layout change the order of sums.
    assert_same_features(work / "features", plain, np.arange(len(names)), rtol=1e-4)


def test_float16_features_equal_the_plain_scripts_but_for_their_rounding(
    work: Path, assets: Path, jobs: Any, tmp_path: Path
) -> None:
    images = assets / "data/hymenoptera/val/ants"
    done = jobs.command(["extract", write_config(tmp_path, assets, images=images, dtype="float16"), "--json"], tmp_path)
    assert (done.code, done.facts["forwarded"]) == (0, 70)
    plain = np.load(work / "plain.npz")
    names = [str(name) for name in plain["names"]]
    kept = np.array([name.startswith("val/ants/") for name in names])
    with FeatureStore.open(tmp_path / "features") as store:
        expected = [name.removeprefix("val/ants/") for name in names if name.startswith("val/ants/")]
        assert store["hymenoptera"].ids() == expected
    # float16 keeps 11 bits: half a unit in the last place is 2**-11 of the value.
    assert_same_features(tmp_path / "features", plain, kept, rtol=2**-11 * 1.01)


def test_the_extraction_read_every_photo_and_failed_none(work: Path) -> None:
    facts = json.loads((work / "extract.json").read_text())
    assert (facts["added"], facts["forwarded"], facts["linked"], facts["failures"]) == (397, 397, 0, [])


def test_every_model_on_every_layer_is_within_one_image_of_the_plain_script(
    board: dict[str, Any], plain_scores: dict[str, Any]
) -> None:
    plain = {(found["layer"], found["model"]): found for found in plain_scores["results"]}
    assert len(board["cells"]) == len(LAYERS) * len(MODELS) == len(plain)
    for cell in board["cells"]:
        found = plain[cell["columns"][0].split(":")[0], cell["model"]]
        assert abs(cell["held_out"]["accuracy"] - found["accuracy"]) <= 1 / 153 + 1e-9, (cell["model"], found)
        # The mean over the same folds: each holds 48 or 49 of 244 images, and one of them may fall otherwise.
        assert abs(cell["cv"]["mean"] - found["cv"]) <= 1 / 48 / 5 + 1e-9, (cell["model"], found)


def test_some_model_reaches_the_accuracy_known_of_these_weights(board: dict[str, Any]) -> None:
    best = max(cell["held_out"]["accuracy"] for cell in board["cells"])
    assert best >= 0.954
    assert board["baseline"]["accuracy"] == pytest.approx(70 / 153)  # 123 ants and 121 bees to train on: "ants"


def test_the_chosen_setting_is_the_best_of_its_grid_and_the_winner_the_best_of_all(board: dict[str, Any]) -> None:
    for cell in board["cells"]:
        main, *others = cell["params"]
        chosen = [
            point
            for point in cell["cv"]["grid"]
            if [point[key] for key in ("value", *others)] == [*cell["params"].values()]
        ]
        assert main not in others
        assert len(chosen) == 1
        best = max(point["mean"] for point in cell["cv"]["grid"])
        assert chosen[0]["mean"] == cell["cv"]["mean"] == pytest.approx(best, abs=1e-12)  # equal but for the last bit
    assert board["winner"]["cv"]["mean"] == max(cell["cv"]["mean"] for cell in board["cells"])


def held_out_truth(work: Path) -> tuple[list[str], np.ndarray]:
    with FeatureStore.open(work / "features") as store:
        ids = [image for image in store["hymenoptera"].ids() if image.startswith("val/")]
    return ids, np.array([image.split("/")[1] for image in ids])


def stored_rows(work: Path, columns: list[str], ids: list[str]) -> np.ndarray:
    with FeatureStore.open(work / "features") as store:
        found, X = store["hymenoptera"].matrix(columns)
    place = {image: i for i, image in enumerate(found)}
    return X[[place[image] for image in ids]]


def test_every_score_of_the_leaderboard_is_scikit_learns(work: Path, board: dict[str, Any]) -> None:
    ids, truth = held_out_truth(work)
    y = (truth == "bees").astype(int)
    assert len(ids) == 153
    for cell, path in zip(board["cells"], board["bundles"], strict=True):
        bundle = load_bundle(path)
        assert bundle.classes == ("ants", "bees")
        proba = bundle.predict_proba(stored_rows(work, cell["columns"], ids))
        called = np.array(bundle.classes)[proba.argmax(axis=1)]
        table = metrics.classification_report(truth, called, output_dict=True, zero_division=0.0)
        scores = cell["held_out"]
        expected = {
            "accuracy": metrics.accuracy_score(truth, called),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
            "macro_f1": metrics.f1_score(truth, called, average="macro"),
            "log_loss": metrics.log_loss(y, proba / proba.sum(axis=1, keepdims=True)),
            "roc_auc": metrics.roc_auc_score(y, proba[:, 1]),
        }
        # XGBoost's probabilities are float32: a log loss of 1 is kept to some 1e-7.
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
        assert scores["confusion"] == metrics.confusion_matrix(truth, called, labels=["ants", "bees"]).tolist()
        for row in scores["per_class"]:
            for name, ours in (("precision", "precision"), ("recall", "recall"), ("f1-score", "f1")):
                assert row[ours] == pytest.approx(table[row["label"]][name])
            assert row["support"] == table[row["label"]]["support"]


def test_probabilities_of_a_bundle_sum_to_one_as_nearly_as_their_dtype_allows(
    work: Path, board: dict[str, Any]
) -> None:
    """scikit-learn's ``log_loss`` warns of rows that miss one by more than the root of the dtype's epsilon."""
    ids, _ = held_out_truth(work)
    missed = {}
    for cell, path in zip(board["cells"], board["bundles"], strict=True):
        proba = load_bundle(path).predict_proba(stored_rows(work, cell["columns"], ids))
        missed[cell["model"], cell["columns"][0]] = float(np.abs(proba.sum(axis=1) - 1).max())
    allowed = float(np.sqrt(np.finfo(np.float64).eps))
    assert {key: value for key, value in missed.items() if value > allowed} == {}


def test_predict_on_files_gives_what_the_bundle_gives_on_stored_features(
    work: Path, board: dict[str, Any], assets: Path, jobs: Any, tmp_path: Path
) -> None:
    data = assets / "data/hymenoptera"
    ids, _ = held_out_truth(work)
    random.Random(5).shuffle(ids)
    path, cell = board["bundles"][0], board["cells"][0]
    done = jobs.command(
        ["predict", path, *(data / name for name in ids), "--out", "scores.jsonl", "--batch-size", "16"], tmp_path
    )
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(data / name) for name in ids]
    bundle = load_bundle(path)
    X = stored_rows(work, cell["columns"], ids)
    assert [line["label"] for line in lines] == bundle.predict(X)
    # The files come in another order, so that other images share a batch; features may differ by 5e-6 at most.
    proba = [[line["probabilities"][name] for name in bundle.classes] for line in lines]
    np.testing.assert_allclose(proba, bundle.predict_proba(X), atol=1e-5)
    hits = np.mean([line["label"] == name.split("/")[1] for line, name in zip(lines, ids, strict=True)])
    assert hits == pytest.approx(cell["held_out"]["accuracy"])
