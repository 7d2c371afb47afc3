"""A bundle made to do harm is refused before anything in it is run, by an error of ours."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from icecore.train import (
    BundleError,
    TrainResult,
    UntrustedTypeError,
    load_bundle,
)
from icecore.train.bundle_format import CARD, seal
from icecore.train.serial import load_skops, load_xgboost
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler


def test_a_card_cannot_reach_out_of_its_folder(bundle: Path, reseal: Callable[..., None]) -> None:
    reseal(bundle)
    card = json.loads((bundle / CARD).read_text())
    card.pop("card_sha256")
    card["files"]["../outside"] = "0" * 64
    (bundle.parent / "outside").write_text("x")
    (bundle / CARD).write_text(json.dumps({**card, "card_sha256": seal(card)}))
    with pytest.raises(BundleError, match="outside"):
        load_bundle(bundle)


class Bomb:
    """Writes a file when unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_a_pickle_in_place_of_a_model_is_not_run(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, reseal: Callable[..., None]
) -> None:
    monkeypatch.chdir(bundle)
    (bundle / "model.skops").write_bytes(pickle.dumps(Bomb()))
    reseal(bundle)
    with pytest.raises(BundleError, match="not a skops file"):
        load_bundle(bundle)
    assert not (bundle / "exploded").exists()


@pytest.mark.parametrize("function", [os.system, os.remove, eval, print])
def test_a_hostile_skops_file_is_refused_by_name_and_not_run(
    bundle: Path, function: Any, reseal: Callable[..., None]
) -> None:
    hostile = Pipeline([("scale", StandardScaler()), ("run", FunctionTransformer(function))])
    skops.io.dump(hostile, bundle / "steps.skops")
    reseal(bundle)
    with pytest.raises(UntrustedTypeError) as caught:
        load_bundle(bundle)
    assert any(function.__name__ in name for name in caught.value.types)
    assert "nothing in it was run" in str(caught.value)


@pytest.mark.parametrize(
    "loader", ["ConstructorFromReduceNode", "MethodNode", "FunctionNode", "PartialNode", "Nonesuch"]
)
def test_nodes_that_could_call_something_are_refused(bundle: Path, tmp_path: Path, loader: str) -> None:
    """Even where the type itself is one of ours."""
    path, forged = bundle / "steps.skops", tmp_path / "forged.skops"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(forged, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "schema.json":
                data = json.dumps({**json.loads(data), "__loader__": loader}).encode()
            copy.writestr(name, data)
    with pytest.raises(UntrustedTypeError, match=loader):
        load_skops(forged)


SCALER = {"__loader__": "ObjectNode", "__module__": "sklearn.preprocessing._data", "__class__": "StandardScaler"}


@pytest.mark.parametrize(
    "schema",
    [
        "{}",
        "[]",
        json.dumps({"a": []}),
        json.dumps({**SCALER, "protocol": 2}),
        json.dumps({**SCALER, "content": {}, "protocol": 2}),
        json.dumps(
            {
                **SCALER,
                "content": {"__loader__": "DictNode", "__module__": "builtins", "__class__": "dict"},
                "protocol": 2,
            }
        ),
        "[" * 100_000 + "]" * 100_000,
    ],
)
def test_a_crafted_schema_is_a_bundle_error(bundle: Path, schema: str, reseal: Callable[..., None]) -> None:
    with zipfile.ZipFile(bundle / "model.skops", "w") as archive:
        archive.writestr("schema.json", schema)
    reseal(bundle)
    with pytest.raises(BundleError):
        load_bundle(bundle)


def test_bottomless_json_is_a_bundle_error(tmp_path: Path) -> None:
    """XGBoost's own parser would take the whole process with it."""
    (tmp_path / "model.json").write_text('{"a":' + "[" * 2_000_000 + "]" * 2_000_000 + "}")
    with pytest.raises(BundleError, match="nested too deeply"):
        load_xgboost(tmp_path / "model.json")


@pytest.mark.parametrize("model", ["model.skops", "model.json"])
def test_a_card_that_does_not_fit_its_model_is_refused(
    saved: TrainResult, tmp_path: Path, model: str, reseal: Callable[..., None]
) -> None:
    source = next(path for path in saved.bundles if (path / model).exists())
    bundle = Path(shutil.copytree(source, tmp_path / "bundle"))
    columns = json.loads((bundle / CARD).read_text())["columns"]
    reseal(bundle, classes=["ants", "bees"])
    with pytest.raises(BundleError, match="gives 3 probabilities, the card names 2 classes"):
        load_bundle(bundle)
    reseal(bundle, classes=["ants", "bees", "wasps"], columns=columns[:1])
    with pytest.raises(BundleError, match="does not take the 6 features of the card"):
        load_bundle(bundle)


def test_a_truncated_skops_file_is_a_bundle_error(bundle: Path, reseal: Callable[..., None]) -> None:
    data = (bundle / "model.skops").read_bytes()
    (bundle / "model.skops").write_bytes(data[: len(data) // 2])
    reseal(bundle)
    with pytest.raises(BundleError, match="not a skops file"):
        load_bundle(bundle)


def test_a_damaged_xgboost_model_is_a_bundle_error(
    saved: TrainResult, tmp_path: Path, reseal: Callable[..., None]
) -> None:
    source = next(path for path in saved.bundles if (path / "model.json").exists())
    bundle = Path(shutil.copytree(source, tmp_path / "bundle"))
    (bundle / "model.json").write_text('{"learner": 1}')
    reseal(bundle)
    with pytest.raises(BundleError, match="XGBoost cannot read this model"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("support_", lambda a: np.zeros(5_000_000, np.int32)),
        ("_dual_coef_", lambda a: a[:, :3].copy()),
        ("_n_support", lambda a: a + 1_000),
        ("_intercept_", lambda a: a[:0]),
        ("support_vectors_", lambda a: a[:, :2].copy()),
        ("support_vectors_", lambda a: a.astype(np.float32)),
    ],
)
def test_a_kernel_machine_whose_arrays_do_not_belong_together_is_refused(
    saved: TrainResult, tmp_path: Path, name: str, spoil: Any, reseal: Callable[..., None]
) -> None:
    """libsvm checks no length: predicting would read past an array, or end the process."""
    cells = [cell.model for cell in saved.cells]
    bundle = Path(shutil.copytree(saved.bundles[cells.index("rbf_svm")], tmp_path / "bundle"))
    assert load_bundle(bundle).classes
    calibrated = load_skops(bundle / "model.skops")
    setattr(calibrated.model, name, spoil(getattr(calibrated.model, name)))
    skops.io.dump(calibrated, bundle / "model.skops")
    reseal(bundle)
    with pytest.raises(BundleError, match="PairwiseSVC whose"):
        load_bundle(bundle)
