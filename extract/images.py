"""From the bytes of an image file to the pixels that the network sees, by Pillow. Knows no files and no torch.

The pixels equal, bit for bit, what torchvision's ``ImageClassification`` preset makes of the same RGB image
before it normalises. Decoding and resizing release the GIL, so threads scale.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
from icecore.store.contract import FULL
from PIL import Image, UnidentifiedImageError

from .errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .preprocess import Preprocess

__all__ = ["MAX_PIXELS", "decode_image", "load_image"]

MAX_PIXELS = 89_478_485
"""default limit of width x height, Pillow's own: 256 MiB of RGB"""

Image.init()  # loads all plugins once: the lazy loading inside Image.open is not made for threads

# Named, because Pillow also opens formats that run a program (EPS) or have no signature (TGA). AVIF, JPEG2000 and
# WEBP are there where Pillow was built with them; a JPEG with several pictures (MPO) counts as JPEG.
_FORMATS = tuple(sorted({"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys()))
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_WIDE_GREY = frozenset({"PNG", "PPM"})
"""formats in which Pillow's mode I holds 16 bits; in others it holds 32, of which nobody says how many are used"""
_ORIENTATION = 0x0112  # EXIF tag
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9A-Fa-f]+>")


def load_image(
    data: bytes, preprocess: Preprocess, *, max_pixels: int = MAX_PIXELS, crops: Sequence[str] = (FULL,)
) -> np.ndarray:
    """Decode, orient, resize and crop one image.

    Parameters
    ----------
    data
        Contents of the image file.
    preprocess
        Sizes and interpolation; ``mean`` and ``std`` are applied later, on the device.
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
    """
    image = _resize(decode_image(data, max_pixels=max_pixels), preprocess, max_pixels)
    if tuple(crops) != (FULL,):
        return np.stack([_pixels(_crop(image, preprocess.crop, crop)) for crop in crops])  # (crops, 3, crop, crop)
    return _pixels(_crop(image, preprocess.crop))


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Give the whole image as upright 8-bit RGB; see ``Preprocess`` for the policies.

    Raises
    ------
    ImageError
        With kind ``decode``, ``too-large`` or ``unsupported``.
    """
    if not data:
        raise ImageError("decode", "empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(*image.size, max_pixels, "")
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except ImageError:
        raise
    except UnidentifiedImageError as exc:
        raise ImageError("decode", f"not an image: first bytes {data[:8]!r}") from exc
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ImageError("too-large", _reason(exc).partition(",")[0]) from exc
    except MemoryError as exc:
        raise ImageError("too-large", "not enough memory to decode it") from exc
    except Exception as exc:
        raise ImageError("decode", _reason(exc)) from exc


def _check_size(width: int, height: int, max_pixels: int, when: str) -> None:
    if width * height > max_pixels:
        pixels = f"{width}x{height} is {width * height:,} pixels{when}"
        raise ImageError("too-large", f"{pixels}, the limit is {max_pixels:,}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels (mode F) have no fixed range")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    if image.mode == "LAB":
        raise ImageError("unsupported", "LAB colours need a colour profile")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits by dropping the low byte; Pillow's own conversion clips at 255."""
    values = np.asarray(image)  # (H, W), 16 or 32 bits
    if values.dtype.itemsize > 2 and image.format not in _WIDE_GREY:
        raise ImageError("unsupported", "32-bit integer pixels have no fixed range")
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("unsupported", "integer pixels beyond 16 bits have no fixed range")
    grey = (values >> 8).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):  # all 16 bits count
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - an EXIF block that cannot be parsed gives no orientation
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _TRANSPOSE.get(orientation)
    return image if transpose is None else image.transpose(transpose)


def _resize(image: Image.Image, preprocess: Preprocess, max_pixels: int) -> Image.Image:
    """Bring the shorter side to ``preprocess.resize``, with torchvision's rounding of the longer one."""
    width, height = image.size
    longer = int(preprocess.resize * max(width, height) / min(width, height))
    size = (preprocess.resize, longer) if width <= height else (longer, preprocess.resize)
    if size == image.size:
        return image
    _check_size(*size, max_pixels, f" after resizing {width}x{height}")
    return image.resize(size, _RESAMPLING[preprocess.interpolation])


def _pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # (3, H, W)


def _crop(image: Image.Image, side: int, place: str = FULL) -> Image.Image:
    """Cut a square out of the centre, with torchvision's rounding, or a corner; what lies outside is black."""
    left, top = (_offset(length, side) for length in image.size)
    if place != FULL:
        left, top = ("right" in place) * (image.width - side), ("bottom" in place) * (image.height - side)
    return image.crop((left, top, left + side, top + side))


def _offset(length: int, side: int) -> int:
    return round((length - side) / 2.0) if length >= side else -((side - length) // 2)


def _reason(exc: Exception) -> str:
    lines = _ADDRESS.sub("<...>", str(exc)).strip().splitlines()
    text = lines[0][:160] if lines else type(exc).__name__
    speaks = isinstance(exc, (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning))
    return text if speaks else f"{type(exc).__name__}: {text}"
