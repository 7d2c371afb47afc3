"""Both ways to decode: exact gives Pillow's pixels, fast a fraction of them in the same place, and both fail alike."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from icecore.extract import ExtractReport, PreprocessError, backbone_for, features_of
from icecore.extract.decoding import DECODERS, Decoded, decoder_versions
from icecore.extract.errors import ImageError
from icecore.extract.images import load_image
from icecore.extract.preprocess import Preprocess
from icecore.store import FeatureStore
from PIL import Image, ImageOps, JpegImagePlugin, features

Encode = Callable[..., bytes]
Noise = Callable[..., Image.Image]

SIDE = 16
EXACT = Preprocess(resize=SIDE, crop=SIDE)
FAST = Preprocess(resize=SIDE, crop=SIDE, decode="fast")
STORE_TURNED = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""orientation: Pillow's transpose by which an upright picture is stored so"""
KINDS: dict[str, dict[str, object]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "optimised": {"optimize": True},
}


def jpeg(image: Image.Image, orientation: int = 1, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose(STORE_TURNED[orientation])) if orientation > 1 else image
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", **{"quality": 95, "subsampling": 0, "exif": exif, **options})
    return buffer.getvalue()


def waves(width: int, height: int) -> Image.Image:
    """Soft colours that differ at every place and have no symmetry; a shift of a pixel of 16 changes them by 6 to 9."""
    x = np.linspace(0, 1, width)[None, :] + np.zeros((height, 1))
    y = np.linspace(0, 1, height)[:, None] + np.zeros((1, width))
    red, green, blue = 30 + 140 * x, 40 + 150 * y, 30 + 70 * x + 100 * y * y
    return Image.fromarray(np.stack([red, green, blue], axis=2).round().astype(np.uint8))


def plain(data: bytes) -> np.ndarray:
    """What Pillow's documented way gives; none of our code."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def decoded(data: bytes, decode: str, **options: int) -> Decoded:
    return DECODERS[decode](data, **{"side": SIDE, **options})


def outcome(data: bytes, preprocess: Preprocess) -> tuple[str, str] | None:
    try:
        load_image(data, preprocess)
    except ImageError as exc:
        return exc.kind, exc.reason
    return None


# --- exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 48), (61, 47), (1, 33), (200, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_exact_gives_every_pixel_as_pillow_does(kind: str, size: tuple[int, int], mode: str, noise: Noise) -> None:
    data = jpeg(noise(*size).convert(mode), orientation=6, **KINDS[kind])
    image, upright, box = decoded(data, "exact")
    np.testing.assert_array_equal(np.asarray(image), plain(data))
    assert image.size == upright == size
    assert box == (0, 0, *size)


def test_real_photos_decode_to_the_pixels_of_pillow(assets: Path) -> None:
    photos = sorted((assets / "data" / "hymenoptera").rglob("*.jpg"))[::20]
    assert len(photos) > 15
    for path in photos:
        image, _, _ = DECODERS["exact"](path.read_bytes(), side=256)
        with Image.open(path) as photo:
            assert image.tobytes() == photo.convert("RGB").tobytes(), path.name


# --- fast: which files, and how much of them --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700), side=st.integers(1, 90), orientation=st.integers(1, 8))
@example(width=511, height=600, side=32, orientation=1)
@example(width=512, height=512, side=32, orientation=1)
def test_a_fraction_is_the_smallest_that_leaves_twice_the_side(
    width: int, height: int, side: int, orientation: int
) -> None:
    image, size, box = decoded(jpeg(Image.new("RGB", (width, height)), orientation), "fast", side=side)
    fractions = [n for n in (1, 2, 4, 8) if n == 1 or min(width, height) // n >= 2 * side]
    assert size == (width, height)
    assert image.size == tuple(-(-length // fractions[-1]) for length in size)
    assert (box[2] - box[0], box[3] - box[1]) == (width / fractions[-1], height / fractions[-1])
    assert min(box) >= 0
    assert box[2] <= image.width
    assert box[3] <= image.height


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_decode_exactly(form: str, noise: Noise, encode: Encode) -> None:
    data = encode(noise(200, 300), form)
    np.testing.assert_array_equal(load_image(data, FAST), load_image(data, EXACT))


@pytest.mark.parametrize("size", [(63, 500), (500, 63), (1, 5000), (5000, 1), (20, 20)])
def test_small_photos_and_thin_strips_decode_exactly(size: tuple[int, int], noise: Noise) -> None:
    data = jpeg(noise(*size))
    np.testing.assert_array_equal(load_image(data, FAST), load_image(data, EXACT))


def test_cmyk_decodes_exactly(noise: Noise) -> None:
    data = jpeg(noise(200, 300).convert("CMYK"))
    np.testing.assert_array_equal(load_image(data, FAST), load_image(data, EXACT))


def test_lossless_jpeg_has_no_fractions_and_decodes_exactly() -> None:
    """Made by hand: every difference is 0, so every pixel is 128."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

    frame = segment(0xC3, struct.pack(">BHHB", 8, 100, 128, 1) + bytes([1, 0x11, 0]))
    table = segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    data = b"\xff\xd8" + frame + table + segment(0xDA, bytes([1, 1, 0, 1, 0, 0])) + bytes(1601) + b"\xff\xd9"
    assert (load_image(data, FAST) == 128).all()


def test_a_jpeg_with_several_pictures_is_scaled_too(noise: Noise, encode: Encode) -> None:
    data = encode(waves(400, 300), "MPO", save_all=True, append_images=[noise(400, 300)])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    assert decoded(data, "fast").image.size == (50, 38)
    assert np.abs(load_image(data, FAST).astype(int) - load_image(data, EXACT)).max() <= 3


# --- fast: where the pixels lie ---------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    shorter=st.integers(4 * SIDE, 20 * SIDE),
    shape=st.sampled_from([1.0, 1.01, 1.5, 2.7]),
    portrait=st.booleans(),
    orientation=st.integers(1, 8),
    kind=st.sampled_from(list(KINDS)),
    crop=st.sampled_from([SIDE, SIDE - 3, SIDE + 5]),
)
@example(shorter=8 * 2 * SIDE + 1, shape=1.01, portrait=False, orientation=3, kind="4:4:4", crop=SIDE)
@example(shorter=8 * 2 * SIDE + 1, shape=1.01, portrait=True, orientation=7, kind="4:4:4", crop=SIDE)
def test_fast_shows_the_same_picture_in_the_same_place(
    shorter: int, shape: float, portrait: bool, orientation: int, kind: str, crop: int
) -> None:
    size = (shorter, round(shorter * shape))
    data = jpeg(waves(*(size if portrait else size[::-1])), orientation, **KINDS[kind])
    exact = load_image(data, Preprocess(resize=SIDE, crop=crop)).astype(int)
    fast = load_image(data, Preprocess(resize=SIDE, crop=crop, decode="fast")).astype(int)
    assert np.abs(exact - fast).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(257, 258), (300, 401), (263, 256)])
def test_a_fraction_of_the_whole_is_that_of_a_plain_draft(orientation: int, size: tuple[int, int]) -> None:
    """Against Pillow's thumbnail of the stored picture, turned afterwards."""
    data = jpeg(waves(*size), orientation)
    with Image.open(io.BytesIO(data)) as stored:
        stored.draft("RGB", (2 * SIDE, 2 * SIDE))
        expected = np.asarray(ImageOps.exif_transpose(stored))
    np.testing.assert_array_equal(np.asarray(decoded(data, "fast").image), expected)


# --- what cannot be used ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_a_bomb_is_refused_before_a_pixel_is_decoded(
    decode: str, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg(noise(400, 300))

    def decode_pixels(self: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", decode_pixels)
    with pytest.raises(ImageError) as caught:
        decoded(data, decode, max_pixels=100_000)  # an eighth of each side would do
    assert caught.value.kind == "too-large"
    assert caught.value.reason == "400x300 is 120,000 pixels, the limit is 100,000"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.7, 0.97, 0.999])
def test_a_photo_cut_short_fails_alike(share: float, progressive: bool, noise: Noise) -> None:
    data = jpeg(noise(60, 40).resize((300, 200)), progressive=progressive)
    cut = data[: int(len(data) * share)]
    assert outcome(data, FAST) is None
    failed = outcome(cut, EXACT)
    assert failed is not None
    assert failed[0] == "decode"
    assert outcome(cut, FAST) == failed


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_photo_fails_alike_or_not_at_all(data: st.DataObject) -> None:
    raw = bytearray(jpeg(waves(150, 130), progressive=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 700) | st.integers(0, len(raw) - 1))  # most of the header lies before 700
        raw[place] = data.draw(st.integers(0, 255))
    assert outcome(bytes(raw), FAST) == outcome(bytes(raw), EXACT)


@pytest.mark.parametrize("decode", ["exact", "fast"])
def test_broken_photos_leave_no_memory_behind(decode: str) -> None:
    """A decoder that keeps the pixels of each (torchvision issue 9383) would hold 330 MB in the end."""
    memory = Path("/proc/self/statm")
    if not memory.is_file():
        pytest.skip("needs /proc/self/statm to see how much memory is in use")

    def used() -> int:
        return int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    data = jpeg(waves(1000, 750))
    cut = data[: len(data) // 2]

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(ImageError):
                decoded(cut, decode, side=256)

    fail(10)
    before = used()
    fail(150)
    assert used() - before < 50e6


# --- in an extraction --------------------------------------------------------------------------------------------


def test_an_extraction_decodes_as_asked_and_its_contract_brings_it_back(
    extract: Callable[..., ExtractReport], tmp_path: Path, own_net: str
) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    for n, size in enumerate([(300, 200), (60, 50)]):
        (folder / f"{n}.jpg").write_bytes(jpeg(waves(*size), quality=70))
    (tmp_path / "large" / "2.png").write_bytes((tmp_path / "photos" / "a" / "1.png").read_bytes())
    rows = {}
    for decode in ("exact", "fast"):
        report = extract(folder, decode=decode, preprocess=EXACT)
        assert (report.decode, report.forwarded) == (decode, 3)
        with FeatureStore.open(tmp_path / "store") as store:
            photos = store["photos"]
            rows[decode] = np.array(photos.matrix("block2").X)
            again = backbone_for(photos.contract, source=photos.source)
        assert again.preprocess.decode == decode
        files = [folder / name for name in ("0.jpg", "1.jpg", "2.png")]
        for row, (_, found) in zip(rows[decode], features_of(again, report.columns, files, device="cpu"), strict=True):
            assert not isinstance(found, ImageError)
            np.testing.assert_allclose(row, found[report.columns[0]], rtol=1e-4, atol=1e-6)
    assert (rows["exact"] != rows["fast"]).any(axis=1).tolist() == [True, False, False]
    assert extract(folder, preprocess=FAST).forwarded == 0
    assert extract(folder, preprocess=FAST, decode="exact").decode == "exact"
    with pytest.raises(PreprocessError, match="decode is one of exact, fast, nvjpeg, found 'quick'"):
        extract(folder, decode="quick")


# --- which libraries --------------------------------------------------------------------------------------------


def test_the_libraries_on_which_pixels_depend_are_told() -> None:
    import PIL

    found = decoder_versions()
    assert found["pillow"] == PIL.__version__
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    assert found[library][0].isdigit()
    assert list(found) == ["pillow", library]
