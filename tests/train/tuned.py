"""Stores with a frozen and a fine-tuned generation, of made features, written by the store's own writer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage
from icecore.store.tunings import Tuning, tuned_weights_path, write_tuning
from numpy.typing import NDArray

from .conftest import CONTRACT, features_for, image_ids

TUNED = replace(CONTRACT, weights="cd" * 32)
AGAIN = replace(CONTRACT, weights="ef" * 32)
EPOCHS = (
    {"epoch": 0, "train_loss": None, "validation_loss": 1.4, "validation_accuracy": 0.5, "seconds": 1.0,
     "learning_rates": []},
    {"epoch": 1, "train_loss": 1.1, "validation_loss": 1.0, "validation_accuracy": 0.7, "seconds": 2.0,
     "learning_rates": [1e-3, 1e-4]},
    {"epoch": 2, "train_loss": 0.8, "validation_loss": 1.1, "validation_accuracy": 0.6, "seconds": 2.0,
     "learning_rates": [1e-3, 1e-4]},
)  # fmt: skip


def digest_of(text: str) -> bytes:
    """Give the sha256 of a file that holds this text."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def write_features(
    path: Path,
    ids: Sequence[str],
    layers: Mapping[str, NDArray[np.float32]],
    *,
    contract: Contract = CONTRACT,
    name: str = "photos",
    files: Mapping[str, str] | None = None,
    dtype: Any = "float16",
) -> Path:
    """Write features of images, each the file that ``files`` says, or one of its own."""
    texts = [(files or {}).get(image, image) for image in ids]
    columns = {Column(layer, Pooling("avg"), X.shape[1], dtype): X for layer, X in layers.items()}
    with FeatureStore.create(path) as store, store.writer(name, contract, list(columns)) as writer:
        sources = [SourceImage(image, path / image, 1, 1, 1) for image in ids]
        writer.append(sources, [digest_of(text) for text in texts], columns)
    return path


def write_record(
    path: Path,
    seen: Mapping[str, str] | Sequence[str],
    *,
    parent: Contract = CONTRACT,
    tuned: Contract = TUNED,
    **changes: Any,
) -> Tuning:
    """Write the weights and the record of a fine-tuning that saw these images: id -> file, or files of their own."""
    files = dict(seen) if isinstance(seen, Mapping) else {image: image for image in seen}
    facts: dict[str, Any] = {
        "weights": tuned.weights,
        "created": "2026-01-02T03:04:05+00:00",
        "set_name": "photos",
        "parent": parent,
        "parent_generation": None,
        "version": 1,
        "split_digest": "0" * 64,
        "split": "as the labels say",
        "classes": ("ants", "bees", "wasps"),
        "seen_ids": tuple(sorted(files)),
        "seen_contents": tuple(digest_of(files[image]).hex() for image in sorted(files)),
        "skipped": {},
        "unfrozen": ("layer4.weight",),
        "trained_parameters": 1234,
        "epochs": EPOCHS,
        "best_epoch": 1,
        "seconds": 12.5,
        "device": "cpu",
        "config": {"seed": 0},
        "key": "1" * 64,
        "versions": {"torch": "2.11"},
        **changes,
    }
    weights = tuned_weights_path(path, tuned.weights)
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(b"w" * 4096)
    tuning = Tuning(**facts)
    write_tuning(path, tuning)
    return tuning


def train_side(ids: Sequence[str]) -> list[str]:
    """Give the training images."""
    return [image for image in ids if image.startswith("train/")]


def tuned_store(
    folder: Path,
    *,
    before: float = 0.35,
    after: float = 1.2,
    ids: Sequence[str] | None = None,
    layer: str = "layer4",
) -> Path:
    """Write a store whose set was extracted frozen, then with fine-tuned weights; the signals are those of the classes.

    The clouds of both differ in their centres alone, so that one sure gain is known beforehand.
    """
    ids = list(ids or image_ids(30, 20))
    path = folder / "features"
    write_features(path, ids, {layer: features_for(ids, 8, signal=before, seed=3)})
    write_record(path, train_side(ids))
    return write_features(path, ids, {layer: features_for(ids, 8, signal=after, seed=3)}, contract=TUNED)
