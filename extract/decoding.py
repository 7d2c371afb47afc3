"""From the bytes of an image file to its pixels, upright 8-bit RGB, by Pillow: one interface, two ways to decode.

``exact`` gives every pixel of every kind of file. ``fast`` gives large JPEG files at 1/2, 1/4 or 1/8 of their size,
computed from the coefficients of the cosine transform, and all other files exactly. Both are Pillow's: no other
library that gives the same pixels is 10 % faster from the file to the resized image (benchmarks/decode_speed.py).
Decoding releases the GIL, so threads scale.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from .errors import ImageError
from .preprocess import LEAST_SCALE, Decode

__all__ = [
    "DECODERS",
    "MAX_PIXELS",
    "Box",
    "Decoded",
    "Decoder",
    "check_size",
    "decode_image",
    "decoder_versions",
    "orientation_of",
]

Box = tuple[float, float, float, float]
"""left, top, right, bottom, in pixels"""

MAX_PIXELS = 89_478_485
"""default limit of width x height, Pillow's own: 256 MiB of RGB"""

Image.init()  # loads all plugins once: the lazy loading inside Image.open is not made for threads

# Named, because Pillow also opens formats that run a program (EPS) or have no signature (TGA). AVIF, JPEG2000 and
# WEBP are there where Pillow was built with them; a JPEG with several pictures (MPO) counts as JPEG.
_FORMATS = tuple(sorted({"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & Image.OPEN.keys()))
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
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_MIRRORS_COLUMNS = frozenset({2, 3, 6, 7})  # after the sides were swapped
_MIRRORS_ROWS = frozenset({3, 4, 7, 8})
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9A-Fa-f]+>")


class Decoded(NamedTuple):
    """One picture."""

    image: Image.Image
    """upright 8-bit RGB: the picture itself, or one at a fraction of its size"""
    size: tuple[int, int]
    """width and height of the upright picture in the file, in pixels"""
    box: Box
    """where the picture lies in ``image``: all of it, but for a last row and column that are only partly covered when
    the size is no multiple of the fraction"""


class Decoder(Protocol):
    """What gives the picture in an image file under the policies of ``Preprocess``."""

    def __call__(self, data: bytes, *, side: int, max_pixels: int = MAX_PIXELS) -> Decoded:
        """Decode one image.

        Parameters
        ----------
        data
            Contents of the image file.
        side
            Length, in pixels, to which the shorter side will be resized.
        max_pixels
            Limit of width x height, held against the header before any pixel is decoded. Pillow's own limit,
            ``PIL.Image.MAX_IMAGE_PIXELS``, holds beside it.

        Raises
        ------
        ImageError
            With kind ``decode``, ``too-large`` or ``unsupported``.
        """


def _exact(data: bytes, *, side: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Give every pixel, whatever ``side`` is."""
    return _decode(data, None, max_pixels)


def _fast(data: bytes, *, side: int, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Give a large JPEG at the smallest fraction whose shorter side is ``LEAST_SCALE * side`` or more."""
    try:
        return _decode(data, LEAST_SCALE * side, max_pixels)
    except ImageError as exc:
        if exc.kind != "decode":
            raise
        return _decode(data, None, max_pixels)  # lossless JPEG has no fractions; what is broken fails as in exact


DECODERS: Mapping[Decode, Decoder] = MappingProxyType({"exact": _exact, "fast": _fast})


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Give the whole image, every pixel, as upright 8-bit RGB; see ``Preprocess`` for the policies.

    Raises
    ------
    ImageError
        With kind ``decode``, ``too-large`` or ``unsupported``.
    """
    return _decode(data, None, max_pixels).image


def decoder_versions() -> dict[str, str]:
    """Give the libraries that decode, with the versions on which pixels may depend."""
    turbo = features.version("libjpeg_turbo")
    jpeg = {"libjpeg-turbo": turbo} if turbo else {"libjpeg": features.version("jpg") or "none"}
    return {"pillow": PIL.__version__, **jpeg}


def orientation_of(image: Image.Image) -> int:
    """Give the EXIF orientation, 1 to 8 or a number without a meaning; 1 where there is none. Decodes no pixel."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - an EXIF block that cannot be parsed gives no orientation
        return 1


def check_size(width: int, height: int, max_pixels: int, when: str = "") -> None:
    """Refuse more pixels than the limit; ``when`` follows their number in the reason.

    Raises
    ------
    ImageError
        With kind ``too-large``.
    """
    if width * height > max_pixels:
        pixels = f"{width}x{height} is {width * height:,} pixels{when}"
        raise ImageError("too-large", f"{pixels}, the limit is {max_pixels:,}")


def _decode(data: bytes, least: int | None, max_pixels: int) -> Decoded:
    """Decode; where ``least`` is given, at a fraction whose sides have so many pixels or more, if there is one."""
    if not data:
        raise ImageError("decode", "empty file")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_size(*image.size, max_pixels)
            size, box = image.size, _scaled(image, least)
            image.load()
            return _upright(_to_rgb(image), size, box or (0, 0, *image.size), orientation_of(image))
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


def _scaled(image: Image.Image, least: int | None) -> Box | None:
    """Have a large JPEG decoded at a fraction; give the picture's place in it, or None for all pixels."""
    if least is None or not isinstance(image, JpegImageFile) or image.mode not in {"RGB", "L"}:
        return None
    if min(image.size) < 2 * least:
        return None
    drafted = image.draft(None, (least, least))
    return None if drafted is None else drafted[1]


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


def _upright(image: Image.Image, size: tuple[int, int], box: Box, orientation: int) -> Decoded:
    transpose = _TRANSPOSE.get(orientation)
    if transpose is None:
        return Decoded(image, size, box)
    upright = image.transpose(transpose)
    left, top, right, bottom = box
    if orientation in _SWAPS_SIDES:
        size, (left, top, right, bottom) = size[::-1], (top, left, bottom, right)
    if orientation in _MIRRORS_COLUMNS:
        left, right = upright.width - right, upright.width - left
    if orientation in _MIRRORS_ROWS:
        top, bottom = upright.height - bottom, upright.height - top
    return Decoded(upright, size, (left, top, right, bottom))


def _reason(exc: Exception) -> str:
    lines = _ADDRESS.sub("<...>", str(exc)).strip().splitlines()
    text = lines[0][:160] if lines else type(exc).__name__
    speaks = isinstance(exc, (OSError, Image.DecompressionBombError, Image.DecompressionBombWarning))
    return text if speaks else f"{type(exc).__name__}: {text}"
