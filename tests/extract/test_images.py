"""Every kind of image file becomes the pixels that its policy says, or a failure that says why not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.extract.errors import ImageError
from icecore.extract.images import decode_image, load_image
from icecore.extract.preprocess import Preprocess
from PIL import Image
from torchvision import models
from torchvision.transforms import InterpolationMode, functional

Encode = Callable[..., bytes]
Noise = Callable[..., Image.Image]


def failure(data: bytes, **options: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_image(data, Preprocess(resize=8, crop=8), **options)
    return caught.value


def corner(data: bytes) -> tuple[int, ...]:
    """RGB of the top left pixel."""
    return tuple(int(v) for v in np.asarray(decode_image(data))[0, 0])


# --- the same pixels as torchvision -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 70),
    crop=st.integers(1, 70),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    seed=st.integers(0, 5),
)
def test_resize_and_crop_equal_torchvision_bit_for_bit(
    width: int, height: int, resize: int, crop: int, interpolation: str, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    theirs = functional.resize(image, [resize], interpolation=InterpolationMode(interpolation), antialias=True)
    theirs = functional.pil_to_tensor(functional.center_crop(theirs, [crop])).numpy()
    ours = load_image(buffer.getvalue(), Preprocess(resize=resize, crop=crop, interpolation=interpolation))
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (256, 256), (255, 700), (20, 31), (1025, 257)])
@pytest.mark.parametrize(
    "entry", [models.MobileNet_V2_Weights.IMAGENET1K_V2, models.EfficientNet_B1_Weights.IMAGENET1K_V1]
)
def test_the_weights_own_preset_is_followed_to_the_last_bit(
    size: tuple[int, int], entry: models.WeightsEnum, noise: Noise, encode: Encode
) -> None:
    image, preset = noise(*size), entry.transforms()
    preprocess = Preprocess.from_transforms(preset)
    ours = torch.from_numpy(load_image(encode(image, "PNG"), preprocess))
    assert torch.equal(functional.normalize(ours.float() / 255, preset.mean, preset.std), preset(image))


# --- one policy per kind ----------------------------------------------------------------------------------------


def test_grey_is_replicated(encode: Encode) -> None:
    assert corner(encode(Image.new("L", (9, 9), 77), "PNG")) == (77, 77, 77)
    assert corner(encode(Image.new("1", (9, 9), 1), "PNG")) == (255, 255, 255)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, (200, 0, 0)), (128, (227, 127, 127))])
def test_transparency_is_laid_over_white(alpha: int, expected: tuple[int, ...], encode: Encode) -> None:
    assert corner(encode(Image.new("RGBA", (9, 9), (200, 0, 0, alpha)), "PNG")) == expected


def test_grey_with_alpha_and_a_transparent_colour_are_laid_over_white(encode: Encode) -> None:
    assert corner(encode(Image.new("LA", (9, 9), (10, 0)), "PNG")) == (255, 255, 255)
    rgb = Image.new("RGB", (9, 9), (1, 2, 3))
    assert corner(encode(rgb, "PNG", transparency=(1, 2, 3))) == (255, 255, 255)
    assert corner(encode(rgb, "PNG", transparency=(9, 9, 9))) == (1, 2, 3)


def test_a_palette_is_expanded_and_its_transparent_entry_laid_over_white(encode: Encode) -> None:
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 250, 128, 3])
    assert corner(encode(image, "PNG")) == (250, 128, 3)
    assert corner(encode(image, "PNG", transparency=1)) == (255, 255, 255)
    assert corner(encode(image, "PNG", transparency=bytes([0, 255]))) == (250, 128, 3)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(form: str, encode: Encode) -> None:
    ramp = np.arange(0, 1 << 16, 256, dtype=np.uint16).reshape(16, 16) + 255
    pixels = np.asarray(decode_image(encode(Image.fromarray(ramp), form)))
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(pixels[..., 1], pixels[..., 2])


def test_big_endian_and_portable_16_bit_grey_are_scaled_alike(encode: Encode) -> None:
    big = Image.frombytes("I;16B", (4, 4), np.full((4, 4), 0x4321, ">u2").tobytes())
    assert corner(encode(big, "TIFF")) == (0x43,) * 3
    assert corner(b"P5 2 1 65535\n\x43\x21\x00\x00") == (0x43,) * 3


@pytest.mark.parametrize("top", [255, 0x4321, 1 << 20])
def test_32_bit_integers_are_refused_because_their_range_is_not_told(top: int, encode: Encode) -> None:
    image = Image.fromarray(np.full((4, 4), top, np.int32))
    with pytest.raises(ImageError, match="32-bit integer pixels have no fixed range") as caught:
        decode_image(encode(image, "TIFF"))
    assert caught.value.kind == "unsupported"


def test_the_transparent_value_of_16_bit_grey_is_laid_over_white(encode: Encode) -> None:
    values = np.array([[0x4321, 0x4322], [0, 0xFFFF]], np.uint16)
    found = np.asarray(decode_image(encode(Image.fromarray(values), "PNG", transparency=0x4321)))
    np.testing.assert_array_equal(found[..., 0], [[255, 0x43], [0, 255]])


def test_cmyk_is_converted_as_pillow_does(noise: Noise, encode: Encode) -> None:
    data = encode(noise(16, 16).convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
        np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, form: str, encode: Encode) -> None:
    upright = Image.new("RGB", (32, 48), "black")
    upright.paste((255, 0, 0), (0, 0, 16, 16))  # red in the top left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that stores it turned
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.asarray(decode_image(encode(stored, form, exif=exif))).astype(int)
    assert pixels.shape == (48, 32, 3)
    assert pixels[4:12, 4:12, 0].min() > 200
    assert pixels[20:, 20:].max() < 60


def test_an_unreadable_exif_block_leaves_the_image_as_it_is(noise: Noise, encode: Encode) -> None:
    data = encode(noise(8, 8), "PNG", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\xff\xff")
    np.testing.assert_array_equal(np.asarray(decode_image(data)), np.asarray(noise(8, 8)))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(form: str, encode: Encode) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert corner(data) == (255, 0, 0)


def test_the_strays_of_real_folders_decode(assets: object) -> None:
    from pathlib import Path

    gif = Path(str(assets)) / "data/hymenoptera/train/ants/imageNotFound.gif"
    assert load_image(gif.read_bytes(), Preprocess()).shape == (3, 224, 224)


# --- what cannot be used, and why -------------------------------------------------------------------------------


def test_text_with_an_image_ending_is_told_by_its_first_bytes() -> None:
    error = failure(b"hello world, no image here")
    assert (error.kind, error.reason) == ("decode", "not an image: first bytes b'hello wo'")
    assert isinstance(error, ValueError)


def test_an_empty_file_is_told() -> None:
    assert (failure(b"").kind, failure(b"").reason) == ("decode", "empty file")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_a_file_cut_short_is_a_failure_never_grey_pixels(form: str, share: float, noise: Noise, encode: Encode) -> None:
    data = encode(noise(64, 64), form)
    first, second = (failure(data[: int(len(data) * share)]) for _ in range(2))
    assert first.kind == "decode"
    assert first.reason == second.reason
    assert " at 0x" not in first.reason


def test_too_many_pixels_are_told_from_the_header_before_decoding(noise: Noise, encode: Encode) -> None:
    error = failure(encode(noise(40, 30), "PNG"), max_pixels=1000)
    assert error.kind == "too-large"
    assert error.reason == "40x30 is 1,200 pixels, the limit is 1,000"


@pytest.mark.parametrize("side", [10_000, 40_000])  # Pillow itself warns about the first and refuses the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_too_large(side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    error = failure(png)
    assert error.kind == "too-large"
    assert f"{side * side}" in error.reason.replace(",", "")


def test_a_bomb_is_too_large_also_where_warnings_are_errors(encode: Encode) -> None:
    assert failure(encode(Image.new("1", (9500, 9500)), "PNG")).kind == "too-large"


def test_a_strip_that_would_explode_on_resizing_is_too_large(encode: Encode) -> None:
    data = encode(Image.new("L", (1, 60_000)), "PNG")
    with pytest.raises(ImageError) as caught:
        load_image(data, Preprocess())
    assert caught.value.kind == "too-large"
    assert caught.value.reason.startswith("256x15360000 is 3,932,160,000 pixels after resizing 1x60000")


def test_floating_point_pixels_are_unsupported(encode: Encode) -> None:
    error = failure(encode(Image.new("F", (9, 9), 0.5), "TIFF"))
    assert (error.kind, error.reason) == ("unsupported", "floating-point pixels (mode F) have no fixed range")


def test_integers_beyond_16_bits_are_unsupported(encode: Encode) -> None:
    assert failure(encode(Image.fromarray(np.full((3, 3), 1 << 20, np.int32)), "TIFF")).kind == "unsupported"


def test_postscript_is_never_run() -> None:
    error = failure(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert error.kind == "decode"


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_bytes_give_pixels_or_a_failure_and_nothing_else(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((20, 20)).convert("RGB").save(buffer, form)
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    reason = None
    try:
        pixels = load_image(bytes(raw), Preprocess(resize=8, crop=8), max_pixels=10**6)
    except ImageError as exc:
        reason = exc.reason
    assert " at 0x" not in reason if reason else pixels.shape == (3, 8, 8)
