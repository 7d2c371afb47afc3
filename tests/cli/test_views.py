"""Views and class tokens from config to prediction: a bundle labels files by what its features were made of."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import load_bundle

Icecore = Callable[..., Any]
VIT = """
import torch
from torchvision.models import VisionTransformer

def vit():
    network = VisionTransformer(image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    torch.nn.init.normal_(network.class_token)
    return network
"""


@pytest.fixture
def photos(project: Any, write_photos: Callable[..., None]) -> Any:
    write_photos(project.photos)
    return project


def labelled(icecore: Icecore, project: Any, *, columns: list[str]) -> None:
    """Train on the columns, predict the held-out files, and compare with the bundle on their stored features."""
    names = [column.partition(":float")[0] for column in columns]
    done = icecore("train", project.config, "--set", f"train.layers={[names]}".replace("'", '"'))
    assert done.code == 0, done.told
    bundle = load_bundle(project.bundle)
    assert [column.name for column in bundle.columns] == columns
    done = icecore("predict", project.bundle, project.photos / "val")
    assert done.code == 0, done.told
    rows = list(csv.DictReader(io.StringIO(done.text)))
    with FeatureStore.open(project.store) as store:
        ids = [Path(row["path"]).relative_to(project.photos).as_posix() for row in rows]
        matrix = {name: store["photos"].matrix(name) for name in columns}
        stored = {name: X[[found.index(image_id) for image_id in ids]] for name, (found, X) in matrix.items()}
    expected = bundle.predict_proba(stored)
    told = np.array([[float(row[f"p:{name}"]) for name in bundle.classes] for row in rows])
    assert len(rows) == 6
    np.testing.assert_allclose(told, expected, atol=1e-5)  # six digits are printed


@pytest.mark.parametrize(
    ("store_views", "columns"),
    [("averaged", ["features.3:avg"]), ("separate", ["features.3:avg", "features.3:avg@top-left-flip"])],
)
def test_a_bundle_predicts_by_the_views_that_it_was_trained_on(
    store_views: str, columns: list[str], icecore: Icecore, photos: Any
) -> None:
    photos.config.write_text(photos.config.read_text("utf-8").replace("resize = 64", "resize = 70"), "utf-8")
    plain = icecore("extract", photos.config, "--json").outcome
    views = f'crop = 64\nviews = ["flip", "five-crop"]\nstore_views = "{store_views}"'
    photos.config.write_text(photos.config.read_text("utf-8").replace("crop = 64", views), "utf-8")
    done = icecore("extract", photos.config, "--json")
    assert done.code == 0, done.told
    assert (done.outcome["contract_hash"] == plain["contract_hash"]) == (store_views == "separate")
    assert len(done.outcome["columns"]) == (1 if store_views == "averaged" else 10)
    labelled(icecore, photos, columns=columns)


def test_a_bundle_predicts_by_class_tokens_and_patches(
    icecore: Icecore, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos.folder / "clivit.py").write_text(VIT, "utf-8")
    monkeypatch.syspath_prepend(str(photos.folder))
    monkeypatch.delitem(sys.modules, "clivit", raising=False)
    text = photos.config.read_text("utf-8").replace('weights = "squeezenet.safetensors"\n', "")
    text = text.replace('"squeezenet1_1"', '"clivit:vit"').replace(
        '["features.3"]', '["encoder.ln"]\npooling = ["cls", "mean"]'
    )
    photos.config.write_text(text, "utf-8")
    assert icecore("extract", photos.config).code == 0
    labelled(icecore, photos, columns=["encoder.ln:cls", "encoder.ln:mean"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (['preprocess.views=["flop"]'], "preprocess.views[0]: input should be 'flip' or 'five-crop', found 'flop'"),
        (["preprocess.store_views=both"], "store_views: input should be 'averaged' or 'separate', found 'both'"),
        (['preprocess.views=["five-crop"]', "preprocess.resize=60"], "five-crop cuts 64 pixels out of each corner"),
        (['backbone.pooling=["cls"]'], "layer 'features.3': pooling 'cls' is for layers with a class token"),
    ],
)
def test_what_cannot_be_had_ends_with_4_and_makes_no_store(
    overrides: list[str], message: str, icecore: Icecore, photos: Any
) -> None:
    done = icecore("extract", photos.config, *(word for override in overrides for word in ("--set", override)))
    assert done.code == 4
    assert message in done.told
    assert not photos.store.exists()


def test_hooks_are_told_by_layers_and_by_extract(
    icecore: Icecore, photos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from torch import nn\n\nclass Net(nn.Sequential):\n    def forward(self, x):\n"
    source += "        return super().forward(x if x.shape[2] > 8 else -x)\n\n"
    source += "def net():\n    return Net(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))\n"
    (photos.folder / "clihooks.py").write_text(source, "utf-8")
    monkeypatch.syspath_prepend(str(photos.folder))
    monkeypatch.delitem(sys.modules, "clihooks", raising=False)
    done = icecore("layers", "clihooks:net", "--json")
    assert [(row["name"], row["hooks"]) for row in done.outcome["layers"]] == [("0", True), ("1", True)]
    assert "taken by forward hooks, because torch.fx cannot follow" in icecore("layers", "clihooks:net").text
    text = photos.config.read_text("utf-8").replace('weights = "squeezenet.safetensors"\n', "")
    text = text.replace('"squeezenet1_1"', '"clihooks:net"').replace('["features.3"]', '["0", "1"]')
    photos.config.write_text(text, "utf-8")
    words = "layers by forward hooks: Net: torch.fx cannot follow it"
    assert words in icecore("extract", photos.config, "--dry-run").text
    assert words in icecore("extract", photos.config).text
