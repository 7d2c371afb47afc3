"""Which image files the JPEG decoder of a device may be given, by their headers; decodes no pixel, knows no torch."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from .decoding import orientation_of

__all__ = ["size_for_device"]

_START, _SCAN, _END = b"\xff\xd8", 0xDA, b"\xff\xd9"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""markers that begin a frame; the three others in between begin tables"""
_DECODED = frozenset({0xC0, 0xC2})
"""baseline and progressive; not lossless, not arithmetic coding, not 12 bits"""
_TURNED = range(2, 9)
"""EXIF orientations that turn or mirror; the others beside 1 have no meaning"""
_RGB_IDS = (ord("R"), ord("G"), ord("B"))


class _Frame(NamedTuple):
    """What is said of the picture before its first byte."""

    marker: int
    precision: int
    size: tuple[int, int]
    components: tuple[int, ...]
    scan: int


def size_for_device(data: bytes, *, max_pixels: int) -> tuple[int, int] | None:
    """Give width and height of a picture that a device may decode, or None: Pillow decides on the file.

    A device decodes whole baseline and progressive JPEG files of 8 bits, in YCbCr or grey, upright, with one picture.
    A file is taken for whole when its last scan is ended by the marker that ends a picture; bytes may follow that.

    Parameters
    ----------
    data
        Contents of the image file.
    max_pixels
        Limit of width x height.
    """
    frame = _read_frame(data)
    if frame is None or frame.marker not in _DECODED or frame.precision != 8:
        return None
    width, height = frame.size
    if not 0 < width * height <= max_pixels or len(frame.components) not in (1, 3) or frame.components == _RGB_IDS:
        return None
    if data.rfind(_END, frame.scan) < 0:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            is_plain = image.format == "JPEG" and image.mode in {"RGB", "L"} and image.size == frame.size
            is_rgb = image.mode == "RGB" and image.info.get("adobe_transform") == 0
            return frame.size if is_plain and not is_rgb and orientation_of(image) not in _TURNED else None
    except Exception:  # noqa: BLE001 - what is wrong with it, Pillow tells when it decodes it
        return None


def _read_frame(data: bytes) -> _Frame | None:
    """Go from marker to marker up to the first scan; None where this is no JPEG, or an odd one."""
    if not data.startswith(_START):
        return None
    at, found = len(_START), None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fills
            at += 1
            continue
        if marker == _SCAN:
            return None if found is None else found._replace(scan=at)
        if marker in _FRAMES:
            if found is not None:
                return None
            found = _frame(marker, data[at + 4 : at + 2 + length])
        if length < 2 or 0xD0 <= marker <= 0xD9:  # these have no length
            return None
        at += 2 + length
    return None


def _frame(marker: int, segment: bytes) -> _Frame | None:
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    return _Frame(marker, segment[0], (width, height), tuple(segment[6 : 6 + 3 * segment[5] : 3]), 0)
