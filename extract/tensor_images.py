"""Resize and crop of an image that is a tensor, on the CPU or a CUDA device, with the geometry of ``images``.

The shorter side, the rounding of the longer one, the crops and their black margins are those of Pillow's path; so is
the filter, but a tensor is summed in float32 and rounded once, where Pillow rounds and clips after each axis. Some
values differ by one, and more where bicubic overshoots; ``nearest`` may take the other of two pixels that are as near.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .images import crop_corner
from .preprocess import Interpolation

__all__ = ["crop_tensor", "resize_tensor"]

MOST_SCALE = 48
"""How many times as long as after the resize a side may be that is resized on CUDA: its kernel keeps the weights of 32
pixels in 48 KiB, which suffices up to 94 with bicubic (half of that on some devices). Beyond it the CPU resizes."""


def resize_tensor(pixels: Tensor, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize an image, antialiased but for ``nearest``.

    One axis is resized after the other, in float32, without rounding between: CUDA's kernel for both at once sums each
    row anew for every pixel below it, and its weights need twice the room.

    Parameters
    ----------
    pixels
        uint8 of shape (3, H, W).
    size
        Width and height to come to.
    interpolation
        ``nearest``, ``bilinear`` or ``bicubic``.

    Returns
    -------
    torch.Tensor
        uint8 of shape (3, height, width), on the device of ``pixels``; ``pixels`` itself where it has the size.
    """
    (height, width), (new_width, new_height) = pixels.shape[1:], size
    if (width, height) == size:
        return pixels
    if interpolation == "nearest":
        return functional.interpolate(pixels[None], (new_height, new_width), mode="nearest-exact")[0]
    device = pixels.device
    if max(width / new_width, height / new_height) > MOST_SCALE:
        pixels = pixels.cpu()
    values = _resize_rows(pixels[None].float(), new_width, interpolation)  # (1, 3, H, w)
    values = _resize_rows(values.transpose(2, 3).contiguous(), new_height, interpolation)  # (1, 3, w, h)
    rounded = values.round_().clamp_(0, 255).to(torch.uint8)
    return rounded[0].transpose(1, 2).to(device)  # (3, h, w)


def crop_tensor(pixels: Tensor, side: int, places: Sequence[str]) -> Tensor:
    """Cut squares out of an image; what lies outside is black.

    Parameters
    ----------
    pixels
        uint8 of shape (3, H, W).
    side
        Of the squares, in pixels.
    places
        ``full``, the centre, or a corner.

    Returns
    -------
    torch.Tensor
        uint8 of shape (places, 3, side, side), in the order of ``places``.
    """
    height, width = pixels.shape[1:]
    cuts = []
    for place in places:
        left, top = crop_corner(width, height, side, place)
        margins = (-left, left + side - width, -top, top + side - height)  # below 0: cut off
        cuts.append(functional.pad(pixels, margins))
    return torch.stack(cuts)


def _resize_rows(values: Tensor, width: int, interpolation: Interpolation) -> Tensor:
    size = (values.shape[2], width)
    return functional.interpolate(values, size, mode=interpolation, align_corners=False, antialias=True)
