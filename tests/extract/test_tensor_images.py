"""Resize and crop of tensors: held against torchvision's, and against Pillow's path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from icecore.extract.images import crop_corner, resized_size
from icecore.extract.tensor_images import MOST_SCALE, crop_tensor, resize_tensor
from icecore.extract.views import CORNERS
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

MODES = {
    "nearest": (InterpolationMode.NEAREST_EXACT, Image.Resampling.NEAREST),
    "bilinear": (InterpolationMode.BILINEAR, Image.Resampling.BILINEAR),
    "bicubic": (InterpolationMode.BICUBIC, Image.Resampling.BICUBIC),
}
SIDES = st.integers(1, 90)
PLACES = ("full", *CORNERS)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apart(found: torch.Tensor, wanted: np.ndarray | torch.Tensor) -> int:
    return int((found.int() - torch.as_tensor(wanted).int()).abs().max())


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 60), st.sampled_from(sorted(MODES)))
@example(90, 1, 60, "bicubic")
@example(80, 60, 60, "bilinear")
def test_a_resize_is_that_of_torchvision_and_near_pillows(width: int, height: int, side: int, mode: str) -> None:
    """Those of torchvision are computed in float32 for both axes at once: values differ where they end in one half.

    Pillow rounds, and with bicubic clips, between the axes; these values are none that it would clip.
    """
    pixels, (theirs, pillow) = 80 + picture(width, height) // 3, MODES[mode]
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    size = resized_size(width, height, side, 10**9)
    found = resize_tensor(tensor, size, mode)  # type: ignore[arg-type]
    assert found.dtype == torch.uint8
    wanted = functional.resize(tensor.float(), list(size[::-1]), theirs, antialias=True).round().clamp(0, 255)
    assert apart(found, wanted) <= (mode != "nearest")
    if mode != "nearest":  # of two that are as near, Pillow may take the other
        by_pillow = np.array(Image.fromarray(pixels).resize(size, pillow)).transpose(2, 0, 1)
        assert apart(found, by_pillow) <= {"bilinear": 1, "bicubic": 2}[mode]


def test_most_values_are_those_of_pillow() -> None:
    pixels = picture(500, 375)
    found = resize_tensor(torch.from_numpy(pixels).permute(2, 0, 1), (341, 256), "bilinear")
    wanted = np.array(Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (np.asarray(found) == wanted).mean() > 0.7


def test_what_is_made_very_much_smaller_takes_the_same_filter() -> None:
    pixels = picture(40 * MOST_SCALE, 30 * MOST_SCALE)
    size = (20, 15)
    found = resize_tensor(torch.from_numpy(pixels).permute(2, 0, 1), size, "bicubic")
    wanted = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert apart(found, wanted) <= 1


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 100))
@example(60, 60, 61)
@example(61, 60, 90)
@example(90, 5, 60)
def test_crops_are_those_of_pillow_and_torchvision(width: int, height: int, side: int) -> None:
    pixels = picture(width, height)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    found = crop_tensor(tensor, side, PLACES)
    assert found.shape == (5, 3, side, side)
    for rows, place in zip(found, PLACES, strict=True):
        left, top = crop_corner(width, height, side, place)
        wanted = np.array(Image.fromarray(pixels).crop((left, top, left + side, top + side)))
        np.testing.assert_array_equal(rows.permute(1, 2, 0).numpy(), wanted)
    np.testing.assert_array_equal(found[0], functional.center_crop(tensor, [side, side]))
    if side <= min(width, height):
        corners = functional.five_crop(tensor, [side, side])[:4]
        np.testing.assert_array_equal(found[1:], torch.stack(corners))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", sorted(MODES))
@pytest.mark.parametrize("size", [(500, 375), (40, 30), (4032, 3024), (9000, 9000)])
def test_a_gpu_resizes_as_the_cpu_does(size: tuple[int, int], mode: str) -> None:
    tensor = torch.from_numpy(picture(*size)).permute(2, 0, 1)
    for side in (224, 64):  # 9000 to 64 is more than its kernel takes
        target = resized_size(*size, side, 10**9)
        found = resize_tensor(tensor.cuda(), target, mode)  # type: ignore[arg-type]
        assert found.is_cuda
        assert apart(found.cpu(), resize_tensor(tensor, target, mode)) <= 1  # type: ignore[arg-type]
        np.testing.assert_array_equal(crop_tensor(found, 50, PLACES).cpu(), crop_tensor(found.cpu(), 50, PLACES))
