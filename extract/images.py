"""From the bytes of an image file to the pixels that the network sees, by Pillow. Knows no files and no torch.

With ``decode = "exact"`` the pixels equal, bit for bit, what torchvision's ``ImageClassification`` preset makes of
the same RGB image before it normalises. Decoding and resizing release the GIL, so threads scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from icecore.store.contract import FULL
from PIL import Image

from .decoding import DECODERS, MAX_PIXELS, Decoded, check_size, decode_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .preprocess import Preprocess

__all__ = ["MAX_PIXELS", "crop_corner", "decode_image", "load_image", "resized_size"]

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def load_image(
    data: bytes, preprocess: Preprocess, *, max_pixels: int = MAX_PIXELS, crops: Sequence[str] = (FULL,)
) -> np.ndarray:
    """Decode, orient, resize and crop one image by Pillow; ``open_loader`` also knows the way of a device.

    Parameters
    ----------
    data
        Contents of the image file.
    preprocess
        Way of decoding, ``exact`` or ``fast``, sizes and interpolation; ``mean`` and ``std`` are applied later, on the
        device.
    max_pixels
        Limit of width x height, checked before any pixel is decoded, and again for the resized image (a strip of
        1 x 90,000 pixels grows with the square of the size asked for). Pillow's own limit,
        ``PIL.Image.MAX_IMAGE_PIXELS``, holds beside it.
    crops
        ``full``, the centre, and ``top-left``, ``top-right``, ``bottom-left``, ``bottom-right``.

    Returns
    -------
    numpy.ndarray
        uint8 of shape (3, crop, crop): red, green, blue; contiguous and owned by the caller. With other crops than
        ``full`` alone they come in their order: (crops, 3, crop, crop).

    Raises
    ------
    ImageError
        With kind ``decode``, ``too-large`` or ``unsupported``.
    ValueError
        When the way of decoding is not one of Pillow's.
    """
    if preprocess.decode not in DECODERS:
        raise ValueError(f"Pillow does not decode by {preprocess.decode}: take open_loader with a device")
    decoded = DECODERS[preprocess.decode](data, side=preprocess.resize, max_pixels=max_pixels)
    image = _resize(decoded, preprocess, max_pixels)
    if tuple(crops) != (FULL,):
        return np.stack([_pixels(_crop(image, preprocess.crop, crop)) for crop in crops])  # (crops, 3, crop, crop)
    return _pixels(_crop(image, preprocess.crop))


def resized_size(width: int, height: int, side: int, max_pixels: int) -> tuple[int, int]:
    """Give width and height with the shorter one brought to ``side``, with torchvision's rounding of the longer one.

    Raises
    ------
    ImageError
        With kind ``too-large``, when these are more pixels than the limit.
    """
    longer = int(side * max(width, height) / min(width, height))
    size = (side, longer) if width <= height else (longer, side)
    if size != (width, height):
        check_size(*size, max_pixels, f" after resizing {width}x{height}")
    return size


def crop_corner(width: int, height: int, side: int, place: str) -> tuple[int, int]:
    """Give left and top of a square in the centre, with torchvision's rounding, or in a corner; below 0 outside."""
    if place != FULL:
        return ("right" in place) * (width - side), ("bottom" in place) * (height - side)
    return _offset(width, side), _offset(height, side)


def _resize(decoded: Decoded, preprocess: Preprocess, max_pixels: int) -> Image.Image:
    image, (width, height), box = decoded
    size = resized_size(width, height, preprocess.resize, max_pixels)
    if size == image.size:
        return image
    return image.resize(size, _RESAMPLING[preprocess.interpolation], box=box)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # (3, H, W)


def _crop(image: Image.Image, side: int, place: str = FULL) -> Image.Image:
    """Cut a square out of the image; what lies outside is black."""
    left, top = crop_corner(*image.size, side, place)
    return image.crop((left, top, left + side, top + side))


def _offset(length: int, side: int) -> int:
    return round((length - side) / 2.0) if length >= side else -((side - length) // 2)
