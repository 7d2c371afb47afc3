"""``icecore export``: the champion as an ONNX file that says what the bundle says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore
from icecore.train import load_bundle

onnxruntime = pytest.importorskip("onnxruntime", reason="needs icecore[onnx]")
Icecore = Callable[..., Any]


def test_the_champion_is_exported_and_held_against_stored_features(
    champion: Path, icecore: Icecore, tmp_path: Path
) -> None:
    out, store = tmp_path / "model.onnx", champion / "features"
    done = icecore("export", "champion", out, "--store", store, "--json")
    assert (done.code, done.outcome["rows_checked"] >= 88 + 256) == (0, True)
    assert done.outcome["difference"] <= 1e-5
    bundle = load_bundle(done.outcome["bundle"])
    with FeatureStore.open(store) as opened:
        X = opened["photos"].matrix("features.3").X
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert session.run(["label"], {"features": X})[0].tolist() == bundle.predict(X)


def test_what_cannot_be_found_is_told(trained: Any, icecore: Icecore, tmp_path: Path) -> None:
    assert icecore("export", "champion", tmp_path / "m.onnx").code == 2
    done = icecore("export", tmp_path / "nothing", tmp_path / "m.onnx")
    assert (done.code, "no bundle here" in done.told) == (1, True)
    plain = icecore("export", trained.bundle, tmp_path / "m.onnx")
    assert (plain.code, " -> " in plain.text, (tmp_path / "m.onnx").exists()) == (0, True, True)
