"""fp32 features against a plain script: Pillow, torchvision's own transforms, forward hooks; none of our code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from icecore.extract import extract_images
from icecore.store import FeatureStore
from PIL import Image
from torchvision import models

CASES = {
    "mobilenet_v2": ("mobilenet_v2_features.pth", ["features.6", "features.13", "features.18"]),
    "squeezenet1_1": ("squeezenet1_1.pth", ["features.5", "features.12"]),
}


def plain_features(name: str, weights: Path, layers: list[str], files: list[Path]) -> dict[str, np.ndarray]:
    """One image at a time, mean over the positions."""
    network = models.get_model(name)
    network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    network.eval()
    transform = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    seen: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: seen[layer].append(output.mean((2, 3))[0].numpy().copy())
        )
    with torch.inference_mode():
        for file in files:
            with Image.open(file) as image:
                network(transform(image.convert("RGB")).unsqueeze(0))
    return {layer: np.stack(rows) for layer, rows in seen.items()}


@pytest.mark.parametrize("name", CASES)
def test_fp32_features_equal_those_of_a_plain_script(name: str, assets: Path, tmp_path: Path) -> None:
    file, layers = CASES[name]
    photos = tmp_path / "photos"
    for label in ("ants", "bees"):
        (photos / label).mkdir(parents=True)
        for source in sorted((assets / "data/hymenoptera/val" / label).glob("*.jpg"))[:5]:
            (photos / label / source.name).write_bytes(source.read_bytes())
    extract_images(
        tmp_path / "store",
        "photos",
        photos,
        backbone_name=name,
        weights=assets / "weights" / file,
        layers=layers,
        dtype="float32",
        device="cpu",
        batch_size=4,
        threads=1,
    )
    files = sorted(photos.rglob("*.jpg"), key=lambda path: path.relative_to(photos).as_posix().encode())
    expected = plain_features(name, assets / "weights" / file, layers, files)
    with FeatureStore.open(tmp_path / "store") as store:
        for layer in layers:
            ids, X = store["photos"].matrix(layer)
            assert ids == [path.relative_to(photos).as_posix() for path in files]
            cosine = (X * expected[layer]).sum(1) / np.linalg.norm(X, axis=1) / np.linalg.norm(expected[layer], axis=1)
            assert cosine.min() >= 0.99999
            np.testing.assert_allclose(X, expected[layer], rtol=1e-3, atol=1e-4)  # channels_last adds in another order
