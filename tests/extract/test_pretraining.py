"""A network can be trained where no published weights are to be had, and nothing else is touched by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from icecore.extract import Epoch, Preprocess, TuningError, load_backbone, pretrain
from icecore.extract.builders import find_builder
from icecore.extract.weight_files import read_weights
from PIL import Image


@pytest.fixture
def train(tmp_path: Path, noise: Callable[..., Image.Image]) -> Callable[..., Any]:
    """Function that trains on eight images of two classes: dark and bright."""
    paths = [tmp_path / f"{n}.png" for n in range(8)]
    for n, path in enumerate(paths):
        noise(32, 32, seed=n).point(lambda value, n=n: value // 2 + 127 * (n % 2)).save(path)

    def train(out: Path, **options: Any) -> Any:
        settings = {"preprocess": Preprocess(resize=32, crop=32), "epochs": 1, "batch_size": 4, "device": "cpu"}
        return pretrain("squeezenet1_1", paths, [n % 2 for n in range(8)], out, **{**settings, **options})

    return train


def test_the_same_seed_gives_the_same_weights_and_leaves_the_random_state(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    report = train(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert train(tmp_path / "b.safetensors") == report
    train(tmp_path / "c.safetensors", seed=1)
    a, b, c = (
        load_backbone("squeezenet1_1", tmp_path / f"{name}.safetensors", arguments={"num_classes": 2}).weights_sha256
        for name in "abc"
    )
    assert a == b != c


def test_weights_appear_whole_or_not_at_all(train: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    out.write_bytes(b"the old ones")

    def stop(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(out, progress=stop)
    assert out.read_bytes() == b"the old ones"
    link = tmp_path / "other.safetensors"
    link.hardlink_to(out)
    train(out)
    assert link.read_bytes() == b"the old ones"  # a new file took the name; nobody sees one half written
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_batch_norms_and_the_first_layer_learn(tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(8)]
    for n, path in enumerate(paths):
        noise(32, 32, seed=n).save(path)
    small = Preprocess(resize=32, crop=32)
    labels = [n % 2 for n in range(8)]
    pretrain("resnet18", paths, labels, tmp_path / "w.safetensors", preprocess=small, epochs=1, device="cpu")
    after = read_weights(tmp_path / "w.safetensors")
    before = find_builder("resnet18").build({"num_classes": 2}).state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "layer4.1.bn2.running_var", "fc.bias"):
        assert not torch.equal(after[name], before[name]), name


def test_too_few_images_are_refused(tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for n, path in enumerate(paths):
        noise(32, 32, seed=n).save(path)
    small = Preprocess(resize=32, crop=32)
    with pytest.raises(TuningError, match="0 of 2 images for validation"):
        pretrain("squeezenet1_1", paths, [0, 1], tmp_path / "w.safetensors", preprocess=small, device="cpu")
    with pytest.raises(ValueError, match="2 images, 1 labels"):
        pretrain("squeezenet1_1", paths, [0], tmp_path / "w.safetensors", preprocess=small, device="cpu")
