"""What ``predict`` gives for image files is, to the bit, what the model was judged by in training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from icecore.extract import extract_images
from icecore.store import FeatureStore, promote
from icecore.train import load_bundle, train_models

ASSETS = os.environ.get("ICECORE_TEST_ASSETS")

pytestmark = pytest.mark.skipif(not ASSETS, reason="needs the photos and weights that ICECORE_TEST_ASSETS names")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with features of real photos, extracted in batches of 8, and a champion."""
    assert ASSETS
    store = tmp_path_factory.mktemp("exact") / "features"
    extract_images(
        *(store, "bees", Path(ASSETS) / "data" / "hymenoptera"),
        backbone_name="squeezenet1_1",
        weights=Path(ASSETS) / "weights" / "squeezenet1_1.pth",
        layers=["features.12"],
        device="cpu",
        batch_size=8,
        compilation="never",
    )
    models = ["logistic_regression", "linear_svm"]
    result = train_models(store, "bees", layers=["features.12"], models=models, folds=3, report=False)
    promote(store, "default", result.bundles[0].name, why="the first")
    return store


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [8, 3])
def test_the_accuracy_of_the_card_comes_back_from_the_image_files_exactly(
    trained: Path, tmp_path: Path, batch_size: int
) -> None:
    assert ASSETS
    out, val = tmp_path / "scores.jsonl", Path(ASSETS) / "data" / "hymenoptera" / "val"
    words = ["predict", "champion", "--store", trained, "--no-reuse", "--images", val, "--out", out]
    options = ["--device", "cpu", "--batch-size", batch_size]
    subprocess.run([sys.executable, "-m", "icecore.cli", *map(str, words + options)], check=True, capture_output=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = sum(Path(row["path"]).parent.name == row["label"] for row in rows)

    (path,) = (file.parent for file in (trained / "models" / "default").glob("*/card.json"))
    card = json.loads((path / "card.json").read_text())
    assert len(rows) == card["held_out"]["n"]
    assert right / len(rows) == card["held_out"]["accuracy"]

    bundle = load_bundle(path)
    with FeatureStore.open(trained) as store:
        ids, X = store["bees"].matrix("features.12")
    stored = dict(zip(ids, bundle.outputs(X).tolist(), strict=True))
    for row in rows:
        image_id = str(Path(row["path"]).relative_to(val.parent))
        assert list(row["probabilities"].values()) == stored[image_id]  # the same bits
