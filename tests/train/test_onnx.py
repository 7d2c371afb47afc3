"""An ONNX file gives what the bundle gives, in another runtime, or is not written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import CsvLabels, MissingExtraError, Steps, TrainResult, load_bundle, train_models
from icecore.train.errors import ExportError
from icecore.train.onnx_export import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="needs icecore[onnx]")


def run(path: Path, X: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"features": X}), strict=True))


def require_same(bundle: Any, out: Path, X: np.ndarray) -> None:
    """Hold an export against the bundle on rows that the export has not seen, singly too."""
    found = run(out, X)
    expected = bundle.predict_proba(X)
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
    assert found["label"].tolist() == bundle.predict(X)
    np.testing.assert_allclose(run(out, X[:1])["probabilities"], expected[:1], atol=1e-5)


def test_every_classifier_but_neighbours_is_exported(saved: TrainResult, store_path: Path, tmp_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        X = store["photos"].matrix(["poor", "good"]).X
    done = set()
    for path in saved.bundles:
        bundle, out = load_bundle(path), tmp_path / "model.onnx"
        if bundle.card["model"] == "knn":
            with pytest.raises(ExportError, match="no form in ONNX is known of SmoothedNeighbors; there is one of"):
                export_onnx(bundle, out)
            assert not out.exists()
            continue
        result = export_onnx(bundle, out, features=X)
        assert (result.rows > len(X), result.size) == (True, out.stat().st_size)
        if bundle.card["model"] != "ridge":  # its steep temperature enlarges what single precision rounds
            require_same(bundle, out, X)
            assert result.difference <= 1e-5
        done.add(bundle.card["model"])
        out.unlink()
    assert len(done) == len(saved.bundles) - 1 >= 7


@pytest.mark.parametrize("classes", [("a", "ü <b>"), ("a", "b", "c")])
@pytest.mark.parametrize("calibration", ["sigmoid", "isotonic"])
def test_steps_and_calibration_curves_are_exported(
    lab: Any, tmp_path: Path, classes: tuple[str, ...], calibration: Any
) -> None:
    ids = lab.ids(16, 6, classes=classes)
    store = lab.store(ids)
    result = train_models(
        store, "photos", layers=["good"], models=["linear_svm", "logistic_regression", "xgboost"], save="all",
        report=False, folds=2, calibration=calibration, steps=Steps(signed_sqrt=True, l2_norm=True, pca=4, whiten=True),
        grids={"xgboost": [2]},
    )  # fmt: skip
    with FeatureStore.open(store) as opened:
        X = opened["photos"].matrix("good").X
    for path in result.bundles:
        bundle, out = load_bundle(path), tmp_path / "model.onnx"
        if bundle.card["model"] == "xgboost":
            with pytest.raises(ExportError, match="trees after Normalizer and PCA would not give the same"):
                export_onnx(bundle, out)
            continue
        export_onnx(bundle, out)
        require_same(bundle, out, X)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_labels_and_numbers_are_exported(lab: Any, tmp_path: Path, task: Any) -> None:
    ids = lab.ids(25, 10)
    X = lab.features(ids, 6, signal=1.5)
    store = lab.store(ids, good=X)
    rows = [f"{i},{1e6 + 40 * x[0]:.3f},{int(x[1] > 0)},{int(x[2] > 0)}" for i, x in zip(ids, X, strict=True)]
    (lab.folder / "y.csv").write_text("\n".join(["path,size,round,red", *rows]) + "\n")
    columns = ("size",) if task == "regression" else ("round", "red")
    result = train_models(
        store, "photos", task=task, layers=["good"], labels=CsvLabels(lab.folder / "y.csv", columns=columns),
        save="all", report=False, folds=2,
    )  # fmt: skip
    names = set()
    for path in result.bundles:
        bundle, out = load_bundle(path), tmp_path / "model.onnx"
        if bundle.card["model"] == "knn":
            continue
        export_onnx(bundle, out)
        found = run(out, X)
        if task == "regression":
            np.testing.assert_allclose(found["prediction"], bundle.predict(X), rtol=1e-5)
        else:
            np.testing.assert_allclose(found["probabilities"], bundle.predict_proba(X), atol=1e-4)
            said = [[name for name, is_there in zip(columns, row, strict=True) if is_there] for row in found["labels"]]
            assert said == bundle.predict(X)
        names.add(bundle.card["model"])
    assert len(names) >= 3


def test_the_file_says_what_it_is_of(saved: TrainResult, tmp_path: Path) -> None:
    import onnx

    bundle = load_bundle(saved.bundles[0])
    export_onnx(bundle, tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert told["icecore.bundle"] == bundle.path.name
    assert json.loads(told["icecore.classes"]) == list(bundle.classes)
    assert json.loads(told["icecore.contract"]) == bundle.contract.to_json()
    assert [column["name"] for column in json.loads(told["icecore.columns"])] == ["poor:avg", "good:avg"]


def test_a_file_that_would_say_something_else_is_not_written(
    saved: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from icecore.train import onnx_graph

    path = next(p for p, cell in zip(saved.bundles, saved.cells, strict=True) if cell.model == "logistic_regression")
    scaled = onnx_graph._scaler
    monkeypatch.setitem(onnx_graph._STEPS, "StandardScaler", lambda g, x, s: scaled(g, scaled(g, x, s), s))
    (tmp_path / "model.onnx").write_text("before")
    with pytest.raises(ExportError, match=r"would not give what the bundle gives: of .* rows .* called otherwise"):
        export_onnx(load_bundle(path), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "before"


def test_without_the_extra_it_is_told(saved: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'icecore\[onnx\]'"):
        export_onnx(load_bundle(saved.bundles[0]), tmp_path / "model.onnx")
