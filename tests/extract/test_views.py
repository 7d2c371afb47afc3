"""Views of an image are those of torchvision's FiveCrop and hflip; each image is decoded once, and predicted alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import (
    Backbone,
    ExtractReport,
    Preprocess,
    backbone_for,
    features_of,
    load_backbone,
    one_device,
)
from icecore.extract.errors import PreprocessError
from icecore.extract.images import load_image
from icecore.extract.layers import columns_for
from icecore.extract.trunk import Trunk
from icecore.extract.views import CORNERS, asked_views, columns_by_view, crops_for, view_names
from icecore.store import FeatureStore
from PIL import Image
from torchvision.transforms import functional

Extract = Callable[..., ExtractReport]
Matrix = Callable[..., tuple[list[str], np.ndarray]]
ROOMY = Preprocess(resize=37, crop=32)
FIVE = (*CORNERS, "full")
TEN = (*FIVE, *(f"{corner}-flip" for corner in CORNERS), "flip")


def plain_views(file: Path) -> dict[str, torch.Tensor]:
    """All ten views by torchvision alone: resize, FiveCrop, and each one's hflip; floats, normalised."""
    with Image.open(file) as image:
        resized = functional.resize(image.convert("RGB"), [37])
    crops = dict(zip(FIVE, functional.five_crop(resized, [32]), strict=True))
    flips = {("flip" if name == "full" else f"{name}-flip"): functional.hflip(crop) for name, crop in crops.items()}
    mean, std = list(ROOMY.mean), list(ROOMY.std)
    return {
        name: functional.normalize(functional.to_tensor(view), mean, std) for name, view in {**crops, **flips}.items()
    }


@torch.inference_mode()
def plain_features(network: torch.nn.Module, files: list[Path], views: tuple[str, ...]) -> np.ndarray:
    """(files, views, C): mean over the positions of block2, by a forward hook, a view at a time."""
    seen: list[np.ndarray] = []
    hook = network.get_submodule("block2").register_forward_hook(
        lambda part, args, output: seen.append(output.mean((2, 3))[0].numpy().copy())
    )
    for file in files:
        shown = plain_views(file)
        for view in views:
            network(shown[view][None])
    hook.remove()
    return np.stack(seen).reshape(len(files), len(views), -1)


@pytest.fixture
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


@pytest.fixture
def network(own_net: str) -> torch.nn.Module:
    return load_backbone(own_net, preprocess=ROOMY).module


@pytest.mark.parametrize(
    ("views", "names"), [(["flip"], ("full", "flip")), (["five-crop"], FIVE), (["five-crop", "flip"], TEN)]
)
def test_averaged_views_are_the_mean_of_what_torchvision_shows(
    views: list[str],
    names: tuple[str, ...],
    extract: Extract,
    matrix: Matrix,
    network: torch.nn.Module,
    files: list[Path],
) -> None:
    extract(preprocess=ROOMY, views=views)
    ids, X = matrix()
    expected = plain_features(network, files, names)
    assert [f"{file.parent.name}/{file.name}" for file in files] == ids
    np.testing.assert_allclose(X, expected.mean(1), rtol=1e-4, atol=1e-5)
    assert np.abs(expected.mean(1) - expected[:, names.index("full")]).max() > 1e-3
    with FeatureStore.open(files[0].parents[2] / "store") as store:
        assert store["photos"].contract.views == names
        assert [column.name for column in store["photos"].columns] == ["block2:avg:float32"]


def test_separate_views_are_columns_each_what_torchvision_shows(
    extract: Extract, matrix: Matrix, network: torch.nn.Module, files: list[Path]
) -> None:
    extract(preprocess=ROOMY, views=["five-crop", "flip"], store_views="separate")
    expected = plain_features(network, files, TEN)
    for place, view in enumerate(TEN):
        _, X = matrix("block2" if view == "full" else f"block2@{view}")
        np.testing.assert_allclose(X, expected[:, place], rtol=1e-4, atol=1e-5, err_msg=view)
    _, X = matrix("block2", "block2:avg@flip")
    np.testing.assert_allclose(X, expected[:, [4, 9]].reshape(len(files), -1), rtol=1e-4, atol=1e-5)


def test_a_separate_view_is_added_to_plain_features_without_computing_them_again(
    extract: Extract, matrix: Matrix, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = extract()
    before = matrix()[1]
    columns: list[list[str]] = []
    begin = Trunk.start

    def noting(self: Trunk, pixels: np.ndarray) -> Any:
        columns.append([column.name for column in self.columns])
        return begin(self, pixels)

    monkeypatch.setattr(Trunk, "start", noting)
    report = extract(views=["flip"], store_views="separate")
    assert (report.plan.backfill, report.forwarded) == (9, 8)  # one of the nine is a copy
    assert report.contract_hash == plain.contract_hash
    assert columns[2:] == [["block2:avg@flip:float32"]] * 2
    assert columns[:2] == [["block2:avg:float32", "block2:avg@flip:float32"]] * 2  # the canaries give both
    np.testing.assert_array_equal(matrix()[1], before)
    assert extract(views=["flip"], store_views="separate").forwarded == 0


def test_averaged_views_are_another_contract_and_plain_features_keep_theirs(extract: Extract) -> None:
    plain, averaged = extract(), extract(views=["flip"], dry_run=True)
    assert [(d.field, d.theirs, d.ours) for d in averaged.plan.differences] == [("views", ["full"], ["full", "flip"])]
    assert extract(views=[], store_views="averaged").contract_hash == plain.contract_hash


def test_each_image_is_read_and_decoded_once(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    plain = one_device.open_loader

    def counting(*args: Any, **options: Any) -> Any:
        loader: Any = plain(*args, **options)
        load = loader.load
        loader.load = lambda data: (decoded.append(data), load(data))[1]
        return loader

    monkeypatch.setattr(one_device, "open_loader", counting)
    extract(preprocess=ROOMY, views=["five-crop", "flip"], threads=0)
    assert len(decoded) == len(set(decoded)) == 8


@pytest.mark.parametrize("store_views", ["averaged", "separate"])
def test_features_do_not_depend_on_the_batch(
    store_views: str, extract: Extract, matrix: Matrix, tmp_path: Path
) -> None:
    found = []
    for batch_size, name in ((4, "store"), (4, "other"), (8, "third")):
        extract(preprocess=ROOMY, views=["flip"], store_views=store_views, batch_size=batch_size)
        found.append(matrix("block2")[1])
        (tmp_path / "store").rename(tmp_path / f"gone-{name}")
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("store_views", ["averaged", "separate"])
def test_predictions_see_the_views_that_were_stored(
    store_views: str, extract: Extract, matrix: Matrix, files: list[Path], tmp_path: Path
) -> None:
    extract(preprocess=ROOMY, views=["five-crop", "flip"], store_views=store_views)
    with FeatureStore.open(tmp_path / "store") as store:
        features = store["photos"]
        backbone = backbone_for(features.contract, source=features.source)
        columns = features.columns[:3]
    found = list(features_of(backbone, columns, files, device="cpu", batch_size=4, threads=1))
    for column in columns:
        rows = np.stack([values[column] for _, values in found if isinstance(values, dict)])
        np.testing.assert_array_equal(rows, matrix(column.name)[1])


def test_a_view_that_is_not_needed_is_neither_cut_nor_computed(own_net: str) -> None:
    backbone = load_backbone(own_net, preprocess=ROOMY)
    plain = columns_for(backbone.layers, ["block2"], ["avg"], dtype="float32")
    corner = columns_by_view(plain, ["top-right-flip"])
    assert crops_for(("full",), corner) == ("top-right",)
    assert crops_for(("full",), plain) == ("full",)
    assert crops_for(TEN, plain) == ("full", *CORNERS)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 32, 32), dtype=np.uint8)
    trunk = Trunk(backbone, corner, device="cpu", batch_size=2)
    (rows,) = trunk.forward(pixels).values()
    (expected,) = Trunk(backbone, plain, device="cpu", batch_size=2).forward(pixels[:, 0, ..., ::-1].copy()).values()
    np.testing.assert_array_equal(rows, expected)
    with pytest.raises(ValueError, match=r"expected uint8 pixels \(1 to 2, 1, 3, 32, 32\), found"):
        trunk.forward(pixels[:, 0])


@pytest.mark.parametrize("size", [(40, 37), (37, 90), (61, 37), (37, 37)])
def test_crops_are_torchvisions_bit_for_bit(size: tuple[int, int], encode: Any, noise: Any) -> None:
    image = noise(*size)
    crops = load_image(encode(image, "PNG"), ROOMY, crops=FIVE)
    for name, ours, theirs in zip(FIVE, crops, functional.five_crop(image, [32]), strict=True):
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), np.asarray(theirs), err_msg=name)


@pytest.mark.parametrize("asked", [(), ("flip",), ("five-crop",), ("flip", "five-crop")])
def test_the_views_of_a_contract_say_what_to_ask_for(asked: tuple[Any, ...], own_net: str) -> None:
    assert asked_views(view_names(asked)) == asked
    backbone: Backbone = load_backbone(own_net, preprocess=ROOMY, views=asked)
    assert backbone_for(backbone.contract()).views == backbone.views == backbone.contract().views


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"views": ["five-crops"]}, PreprocessError, "views: no view 'five-crops'; it is flip or five-crop"),
        (
            {"views": ["flip"], "store_views": "both"},
            ValueError,
            "store_views to be averaged or separate; found 'both'",
        ),
        ({"views": ["five-crop"], "preprocess": Preprocess(resize=31, crop=32)}, PreprocessError, "cuts 32 pixels"),
        (
            {"views": ["five-crop"], "store_views": "separate", "preprocess": Preprocess(resize=31, crop=32)},
            PreprocessError,
            "the shorter side has 31: set preprocess.resize to 32 or more",
        ),
    ],
)
def test_views_that_cannot_be_had_are_refused_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], words: str, extract: Extract, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        extract(**options)
    assert not (tmp_path / "store").exists()


def test_a_contract_with_views_of_a_later_release_is_refused() -> None:
    with pytest.raises(PreprocessError, match="this release cannot repeat the views full, upside-down"):
        asked_views(("full", "upside-down"))
