"""Real stores, written by the store's own writer, with features that small models can learn."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage
from icecore.train import TrainResult, train_models
from icecore.train.bundle_format import CARD, file_sha256, seal
from numpy.typing import NDArray

CONTRACT = Contract(
    architecture="torchvision.models.resnet18",
    arguments={},
    weights="ab" * 32,
    preprocess=({"op": "resize", "size": 256},),
    decoder="pillow",
    views=("full",),
    precision="fp32",
)
CLASSES = ("ants", "bees", "wasps")


def image_ids(per_class: int = 20, held_out: int = 8, classes: Sequence[str] = CLASSES) -> list[str]:
    """Ids laid out as SPLIT/LABEL/IMAGE, in the store's order."""
    sides = {"train": per_class, "val": held_out}
    ids = [f"{side}/{label}/{i:03}.jpg" for side, n in sides.items() for label in classes for i in range(n)]
    return sorted(ids, key=lambda image: image.encode("utf-8", "surrogateescape"))


def features_for(ids: Sequence[str], width: int, *, signal: float, seed: int = 0) -> NDArray[np.float32]:
    """Gaussian clouds: one centre a class (last folder of the id), ``signal`` apart; what float16 can hold."""
    labels = [image.split("/")[-2] for image in ids]
    names = sorted(set(labels))
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(names), width)) * signal
    X = np.array([centres[names.index(label)] for label in labels]) + rng.normal(size=(len(ids), width))
    return X.astype(np.float16).astype(np.float32)


def write_store(
    path: Path,
    ids: Sequence[str],
    layers: Mapping[str, NDArray[np.float32]],
    *,
    failed: Sequence[str] = (),
    contract: Contract = CONTRACT,
    name: str = "photos",
    dtype: Any = "float16",
) -> Path:
    """Write one feature set of these layers, average-pooled; add to it, or begin a generation, where there is one."""
    images = [SourceImage(image, path / image, 1, 1, 1) for image in ids]
    contents = [hashlib.sha256(image.encode("utf-8", "surrogateescape")).digest() for image in ids]
    columns = {Column(layer, Pooling("avg"), X.shape[1], dtype): X for layer, X in layers.items()}
    store = FeatureStore.create(path)
    with store.writer(name, contract, list(columns), source={"weights": "resnet18.pth"}) as writer:
        writer.append(images, contents, columns)
        for image in failed:
            writer.fail(SourceImage(image, path / image, 1, 1, 1), "decode", "not an image")
    store.close()
    return path


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, a poor layer and a good one. Shared: tests that save bundles give them their own name."""
    ids = image_ids()
    layers = {
        "poor": features_for(ids, 6, signal=0.3, seed=1),
        "good": features_for(ids, 10, signal=1.2, seed=2),
    }
    return write_store(tmp_path_factory.mktemp("store") / "features", ids, layers)


@pytest.fixture(scope="session")
def saved(store_path: Path) -> TrainResult:
    """One bundle of every model, each on two layers joined."""
    return train_models(
        store_path, "photos", layers=[["poor", "good"]], name="bundles", save="all", folds=3, report=False,
        config={"set": "photos"},
    )  # fmt: skip


@pytest.fixture
def bundle(saved: TrainResult, tmp_path: Path) -> Path:
    """A copy to spoil, of the first bundle that is not XGBoost's."""
    source = next(path for path in saved.bundles if (path / "model.skops").exists())
    return Path(shutil.copytree(source, tmp_path / "bundle"))


@pytest.fixture
def reseal() -> Callable[..., None]:
    """Change a card as someone would who knows how cards are sealed."""

    def change(path: Path, **changes: Any) -> None:
        card = json.loads((path / CARD).read_text())
        card.pop("card_sha256")
        card |= changes
        card["files"] = {name: file_sha256(path / name) for name in card["files"] if (path / name).exists()}
        (path / CARD).write_text(json.dumps({**card, "card_sha256": seal(card)}))

    return change


class Lab:
    """Makes stores below one temporary folder."""

    ids = staticmethod(image_ids)
    features = staticmethod(features_for)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    write = staticmethod(write_store)
    contract = CONTRACT

    def store(self, ids: Sequence[str], *, failed: Sequence[str] = (), **layers: NDArray[np.float32]) -> Path:
        """Write a store of these layers, or of one easy layer named ``good``."""
        layers = layers or {"good": features_for(ids, 6, signal=1.5)}
        return write_store(self.folder / "features", ids, layers, failed=failed)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Somewhere to make stores of one's own."""
    return Lab(tmp_path)
