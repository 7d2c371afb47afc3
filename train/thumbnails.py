"""Small pictures of held-out images, as data URIs for the report."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Thumbnail", "make_thumbnail"]

SIDE = 192
"""Pixels of the longer side: sharp at the 96 CSS pixels that the report shows."""


@dataclass(frozen=True)
class Thumbnail:
    """A picture, or why there is none."""

    uri: str
    """``data:`` URI of a JPEG; empty when there is none"""
    reason: str
    """why there is none; empty when there is one"""


def make_thumbnail(path: Path) -> Thumbnail:
    """Read an image file and give a small JPEG of it, turned as its EXIF data says.

    A file that cannot be read gives the reason instead: a report must not fail for a picture.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(path) as image:
                image.draft("RGB", (SIDE, SIDE))  # JPEG files are decoded at a fraction of their size
                small = _in_8_bits(ImageOps.exif_transpose(image))
                small.thumbnail((SIDE, SIDE))
                return Thumbnail(_data_uri(_on_white(small)), "")
    except Exception as exc:  # noqa: BLE001  # a damaged file makes Pillow raise anything: struct.error, KeyError, ...
        return Thumbnail("", f"cannot be read: {_reason(exc)}")


def _reason(exc: Exception) -> str:
    text = getattr(exc, "strerror", None) or str(exc)
    return str(text).splitlines()[0] if text else type(exc).__name__


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Drop the low byte of 16-bit grey, as extraction does; Pillow's own conversion shows all but black as white."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """Flatten transparency on white."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.convert("RGBA")
    ground = Image.new("RGBA", clear.size, "white")
    return Image.alpha_composite(ground, clear).convert("RGB")


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
