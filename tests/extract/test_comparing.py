"""What lower precisions do to features: measured against fp32, and against torch alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from icecore.extract import ImageError, Preprocess, compare_precisions, load_backbone
from icecore.extract.comparing import cosines
from icecore.extract.images import load_image
from icecore.extract.layers import columns_for
from icecore.store import scan_folder

SMALL = Preprocess(resize=32, crop=32)


def test_each_precision_is_held_against_torch_alone(own_net: str, photos: Path) -> None:
    """The network itself, on the same pixels, under torch's own autocast."""
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block2"], ["avg"], dtype="float16")
    scan = scan_folder(photos)
    found = compare_precisions(backbone, columns, scan, images=100, device="cpu", batch_size=4, compilation="never")
    assert [computed.precision for computed in found.computed] == ["fp32", "bf16"]
    assert found.ids == tuple(image.id for image in scan.images())
    pixels = np.stack([load_image((photos / image).read_bytes(), SMALL) for image in found.ids])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SMALL.mean, SMALL.std))
    images = (torch.from_numpy(pixels) / 255 - mean) / std
    seen: list[torch.Tensor] = []
    handle = backbone.module.get_submodule("block2").register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    with torch.inference_mode():
        backbone.module(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            backbone.module(images)
    handle.remove()
    (column,) = columns
    exact, rough = (maps.float().mean((2, 3)).numpy() for maps in seen)
    np.testing.assert_allclose(found.computed[0].features[column], exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.computed[1].features[column], rough, rtol=0.05, atol=0.02)  # 8 bits of mantissa
    expected = cosines(found.computed[0].features[column], found.computed[1].features[column])
    agreement = found.computed[1].agreement[column]
    assert agreement.worst == pytest.approx(expected.min())
    assert agreement.worst_image == found.ids[int(expected.argmin())]
    assert 0.99 < agreement.worst <= agreement.median < 1
    assert found.computed[0].worst == 1.0


def test_a_sample_is_drawn_by_its_seed_in_the_order_of_the_source(own_net: str, photos: Path) -> None:
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block2"], ["avg"], dtype="float16")
    (photos / "a" / "0.png").write_bytes(b"no image")
    drawn = [
        compare_precisions(
            backbone, columns, scan_folder(photos), images=5, seed=seed, device="cpu", compilation="never"
        )
        for seed in (0, 0, 1, 2, 3)
    ]
    assert drawn[0].ids == drawn[1].ids
    assert len({found.ids for found in drawn}) > 1
    for found in drawn:
        assert len(found.ids) + found.unreadable == 5
        assert list(found.ids) == sorted(found.ids)


def test_no_image_that_can_be_used_is_an_error(own_net: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block2"], ["avg"], dtype="float16")
    with pytest.raises(ImageError, match="none of 1 images can be used, the last one: not an image"):
        compare_precisions(backbone, columns, scan_folder(tmp_path), device="cpu")


def test_cosines_by_hand() -> None:
    a = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [1, 1]], np.float32)
    b = np.array([[0, 1], [2, 2], [0, 0], [1, 0], [np.inf, 1]], np.float32)
    np.testing.assert_allclose(cosines(a, b), [0, 1, 1, 0, 0], atol=1e-12)


@pytest.mark.slow
def test_bf16_of_squeezenet_gives_the_features_of_fp32_on_real_photos(assets: Path) -> None:
    """mobilenet_v2 does not: benchmarks/precision.py says how far off it is."""
    backbone = load_backbone("squeezenet1_1", assets / "weights" / "squeezenet1_1.pth")
    columns = columns_for(backbone.layers, ["features.8", "features.12"], ["avg"], dtype="float16")
    scan = scan_folder(assets / "data" / "hymenoptera")
    found = compare_precisions(backbone, columns, scan, images=96, device="cpu", compilation="never")
    assert found.computed[1].worst >= 0.999
