"""Which files go to the device: each kind that a folder of photos holds takes the right way."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.extract.jpeg_files import size_for_device
from PIL import Image, JpegImagePlugin

SIZE = (90, 70)


def photo(mode: str = "RGB", form: str = "JPEG", **options: object) -> bytes:
    shape = (SIZE[1], SIZE[0], len(mode)) if len(mode) > 1 else SIZE[::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), mode).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(exif=exif)


def size(data: bytes, max_pixels: int = 10**6) -> tuple[int, int] | None:
    return size_for_device(data, max_pixels=max_pixels)


@pytest.mark.parametrize(
    "data",
    [
        photo(),
        photo("L"),
        photo(progressive=True),
        photo(progressive=True, subsampling=0),
        photo(restart_marker_rows=1),
        photo(comment="of a camera", dpi=(72, 72)),
        oriented(1),
        photo() + b"what a program put behind it",
        photo()[:2] + b"\xff" + photo()[2:],
        photo(quality=100, subsampling="4:2:2"),
    ],
    ids=["rgb", "grey", "progressive", "444", "restarts", "comment", "upright", "trailing", "fill", "422"],
)
def test_usual_jpeg_files_go_to_the_device(data: bytes) -> None:
    assert size(data) == SIZE


def with_components(ids: bytes) -> bytes:
    """A file whose picture names its components otherwise, in its frame and its scan."""
    data = bytearray(photo(subsampling=0))
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for n, name in enumerate(ids):
        data[frame + 10 + 3 * n] = data[scan + 5 + 2 * n] = name
    return bytes(data)


def two_pictures() -> bytes:
    buffer = io.BytesIO()
    first = Image.new("RGB", SIZE)
    first.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)])
    return buffer.getvalue()


def marked_as_rgb() -> bytes:
    """A file with Adobe's marker, which says that nothing was transformed."""
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)
    return photo()[:2] + marker + photo()[2:]


def of_kind(marker: int) -> bytes:
    return photo().replace(b"\xff\xc0", bytes([0xFF, marker]), 1)


def of_depth(bits: int) -> bytes:
    data = bytearray(photo())
    data[data.index(b"\xff\xc0") + 4] = bits
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        photo(form="PNG"),
        photo(form="WEBP"),
        photo("CMYK"),
        *map(oriented, range(2, 9)),
        with_components(b"RGB"),
        photo(keep_rgb=True),
        marked_as_rgb(),
        two_pictures(),
        of_kind(0xC1),
        of_kind(0xC3),
        of_kind(0xC9),
        of_depth(12),
        photo()[:-2],
        photo()[: len(photo()) // 2],
        photo(progressive=True)[:-700],
        photo()[:-2] + b"no end",
        bytes(1000),
        np.random.default_rng(0).bytes(1000),
        b"\xff\xd8" + np.random.default_rng(0).bytes(1000),
    ],
)
def test_all_others_are_pillows(data: bytes) -> None:
    assert size(data) is None


def test_a_picture_cut_short_is_not_whole_because_its_thumbnail_is() -> None:
    thumbnail = photo("L")
    segment = b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = photo()[:2] + segment + photo()[2:]
    assert size(data) == SIZE
    assert size(data[: len(data) * 3 // 4]) is None


def test_too_many_pixels_are_pillows_to_refuse() -> None:
    assert size(photo(), max_pixels=SIZE[0] * SIZE[1]) == SIZE
    assert size(photo(), max_pixels=SIZE[0] * SIZE[1] - 1) is None


def test_no_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", load)
    assert size(oriented(1)) == SIZE


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_header_is_no_error(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([photo(), oriented(6), photo(progressive=True)])))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    found = size(bytes(raw))
    if found is not None:
        with Image.open(io.BytesIO(raw)) as image:
            assert image.size == found
