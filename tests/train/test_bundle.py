"""A bundle says the same after it was saved, is whole or absent, and runs nothing when it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import (
    MODELS,
    BundleError,
    FeatureMismatchError,
    TrainResult,
    load_bundle,
)
from icecore.train.bundle_format import CARD
from icecore.train.bundle_write import sweep_strays, write_bundle
from sklearn.preprocessing import StandardScaler


def test_a_loaded_bundle_predicts_exactly_what_was_reported(saved: TrainResult, store_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        ids, X = store["photos"].matrix(["poor", "good"])
    held_out = np.array([image.startswith("val/") for image in ids])
    first = load_bundle(saved.bundles[0])
    np.testing.assert_array_equal(first.predict_proba(X[held_out]), saved.predictions.proba)
    assert {load_bundle(path).card["model"] for path in saved.bundles} == set(MODELS)
    for path, cell in zip(saved.bundles, saved.cells, strict=True):
        proba = load_bundle(path).predict_proba(X[held_out])
        y = np.array([saved.rows.classes.index(image.split("/")[1]) for image in np.array(ids)[held_out]])
        assert (proba.argmax(axis=1) == y).mean() == cell.evaluation.accuracy
        finest = np.finfo(np.float32).eps  # surer than this counts as no surer
        loss = -np.log(np.clip(proba[np.arange(len(y)), y], finest, 1 - finest)).mean()
        rounding = 1e-7 if cell.model in ("knn", "xgboost") else 0  # distances and trees are computed in float32
        assert loss == pytest.approx(cell.evaluation.log_loss, rel=1e-6, abs=rounding), cell.model


def test_columns_may_be_given_by_name_in_any_order(saved: TrainResult) -> None:
    bundle = load_bundle(saved.bundles[0])
    rng = np.random.default_rng(0)
    poor, good = rng.normal(size=(5, 6)), rng.normal(size=(5, 10))
    joined = bundle.predict_proba(np.hstack([poor, good]))
    by_name = bundle.predict_proba({"other": np.zeros((5, 1)), "good:avg": good, "poor:avg": poor})
    np.testing.assert_array_equal(by_name, joined)
    assert bundle.predict({"good:avg": good, "poor:avg": poor}) == [bundle.classes[i] for i in joined.argmax(axis=1)]
    assert bundle.predict_proba(np.zeros((0, 16))).shape == (0, 3)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 15)), r"shape \(2, 15\); expected \(n, 16\), the columns poor:avg \(6\), good:avg \(10\)"),
        (np.zeros(16), r"shape \(16,\)"),
        ({"poor:avg": np.zeros((2, 6))}, "no features of good:avg; found poor:avg"),
        ({"poor:avg": np.zeros((2, 6)), "good:avg": np.zeros((2, 9))}, r"good:avg has shape \(2, 9\)"),
        ({"poor:avg": np.zeros((2, 6)), "good:avg": np.zeros((3, 10))}, r"expected \(2, 10\)"),
        (np.full((2, 16), np.nan), "row 0 holds NaN"),
    ],
)
def test_other_features_than_the_models_are_refused(saved: TrainResult, features: Any, message: str) -> None:
    with pytest.raises(FeatureMismatchError, match=message):
        load_bundle(saved.bundles[0]).predict_proba(features)


def test_the_card_says_what_the_model_was_made_of(saved: TrainResult, store_path: Path) -> None:
    bundle = load_bundle(saved.bundles[0])
    card = bundle.card
    with FeatureStore.open(store_path) as store:
        photos = store["photos"]
        assert bundle.contract == photos.contract
        assert (card["set"], card["generation"], card["version"]) == ("photos", photos.generation, photos.version)
        assert card["source"] == photos.source
        assert bundle.columns == (photos.resolve("poor"), photos.resolve("good"))
    assert card["contract_sha256"] == bundle.contract.hash
    assert bundle.classes == ("ants", "bees", "wasps")
    assert card["rows"]["split_sha256"] == saved.rows.split.digest
    assert card["rows"]["training_ids_sha256"] == saved.rows.train_digest
    assert card["held_out"]["accuracy"] == saved.winner.evaluation.accuracy
    assert card["baseline"]["accuracy"] == saved.baseline.accuracy
    assert card["config"] == {"set": "photos"}
    assert {"python", "numpy", "scikit-learn", "skops", "xgboost", "icecore"} <= set(card["versions"])
    assert card["id"] == bundle.path.name


def test_a_bundle_can_be_moved(bundle: Path) -> None:
    assert load_bundle(bundle).predict(np.zeros((1, 16)))[0] in {"ants", "bees", "wasps"}


@pytest.mark.parametrize("name", ["steps.skops", "model.skops"])
def test_a_changed_byte_is_noticed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}: altered since it was written"):
        load_bundle(bundle)


def test_a_missing_file_is_noticed(bundle: Path) -> None:
    (bundle / "steps.skops").unlink()
    with pytest.raises(BundleError, match=r"'steps\.skops' is missing"):
        load_bundle(bundle)


def test_a_changed_card_is_noticed(bundle: Path) -> None:
    text = (bundle / CARD).read_text()
    (bundle / CARD).write_text(text.replace('"ants"', '"ANTS"', 1))
    with pytest.raises(BundleError, match="altered since it was written"):
        load_bundle(bundle)


def test_an_unknown_format_version_is_refused(bundle: Path, reseal: Callable[..., None]) -> None:
    reseal(bundle, format_version=3)
    with pytest.raises(BundleError, match="bundle format 3; this release reads 1 to 2"):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "else"}'])
def test_a_file_that_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(BundleError, match=r"card\.json"):
        load_bundle(tmp_path)


def test_a_folder_without_a_card_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "step", ["icecore.train.serial.save_skops", "icecore.store.durable.fsync_file", "pathlib.Path.rename"]
)
def test_a_bundle_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    scaler = StandardScaler().fit(np.zeros((2, 2)))
    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path / "models" / "one", steps=scaler, model=scaler, card={})
    assert list((tmp_path / "models").iterdir()) == []


def abandon(folder: Path, name: str, *, age: int) -> Path:
    stray = folder / f".{name}.tmp"
    stray.mkdir()
    os.utime(stray, (stray.stat().st_atime, stray.stat().st_mtime - age))
    return stray


def test_an_abandoned_unfinished_bundle_is_swept_and_a_fresh_one_is_not(tmp_path: Path) -> None:
    abandon(tmp_path, "old", age=2 * 24 * 3600)
    abandon(tmp_path, "new", age=0)
    sweep_strays(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".new.tmp"]


def test_a_stray_that_goes_while_it_is_looked_at_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run published or swept it between the listing and the look."""
    old = abandon(tmp_path, "old", age=2 * 24 * 3600)
    listed = [tmp_path / ".gone.tmp", old]
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    sweep_strays(tmp_path)
    assert not old.exists()


def test_a_bundle_is_never_written_over(tmp_path: Path) -> None:
    scaler = StandardScaler().fit(np.zeros((2, 2)))
    write_bundle(tmp_path / "one", steps=scaler, model=scaler, card={})
    with pytest.raises(BundleError, match="a bundle here already"):
        write_bundle(tmp_path / "one", steps=scaler, model=scaler, card={})


def test_neither_import_nor_loading_brings_torch(saved: TrainResult) -> None:
    """skops walks all of scikit-learn when imported, torch's shim included; that must not load torch."""
    script = """
import sys
import icecore.train
assert not {"torch", "sklearn", "xgboost", "skops", "matplotlib"} & set(sys.modules), sorted(sys.modules)
for path in sys.argv[1:]:
    icecore.train.load_bundle(path)
assert "torch" not in sys.modules
assert "sklearn.externals.array_api_compat.torch" not in sys.modules
"""
    paths = [str(path) for path in saved.bundles]
    subprocess.run([sys.executable, "-c", script, *paths], check=True, timeout=120)
