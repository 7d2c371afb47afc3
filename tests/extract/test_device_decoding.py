"""The loader that serves many threads from one device: right pixels to the right thread, whatever fails on the way."""

from __future__ import annotations

import io
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from icecore.extract import device_decoding
from icecore.extract.decoding import decode_image
from icecore.extract.device_decoding import DeviceLoader
from icecore.extract.errors import DeviceError, ImageError
from icecore.extract.images import load_image
from icecore.extract.preprocess import Preprocess
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

SMALL = Preprocess(resize=40, crop=32, decode="nvjpeg")
FIVE = ("full", "top-left", "top-right", "bottom-left", "bottom-right")


def waves(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, which JPEG keeps."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phases, speeds = chance.uniform(0, 6, 3), chance.uniform(0.02, 0.2, (3, 2))
    channels = [np.sin(p + a * x + b * y) for p, (a, b) in zip(phases, speeds, strict=True)]
    return Image.fromarray((127.5 + 120 * np.stack(channels, axis=2)).astype(np.uint8))


def encoded(image: Image.Image, form: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(waves(90, 60), exif=exif)


def witness(data: bytes, preprocess: Preprocess = SMALL) -> np.ndarray:
    """Pillow's pixels, resized and cropped by torchvision as tensors: (3, S, S)."""
    modes = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
    tensor = torch.from_numpy(np.array(decode_image(data))).permute(2, 0, 1).float()
    mode = modes[preprocess.interpolation]
    resized = functional.resize(tensor, [preprocess.resize], mode, antialias=True).round().clamp(0, 255)
    return functional.center_crop(resized, [preprocess.crop, preprocess.crop]).byte().numpy()


def apart(found: np.ndarray, wanted: np.ndarray) -> int:
    assert found.shape == wanted.shape
    assert found.dtype == np.uint8
    return int(np.abs(found.astype(int) - wanted).max())


Open = Callable[..., DeviceLoader]


@pytest.fixture
def opened(jpeg_device: Any) -> Iterator[Open]:
    loaders: list[DeviceLoader] = []

    def opened(preprocess: Preprocess = SMALL, **options: Any) -> DeviceLoader:
        loaders.append(DeviceLoader(preprocess, jpeg_device, **options))
        return loaders[-1]

    yield opened
    jpeg_device.free.set()
    for loader in loaders:
        loader.close()


GOOD = {
    "rgb": (encoded(waves(120, 90)), "device"),
    "tall": (encoded(waves(60, 200)), "device"),
    "progressive": (encoded(waves(120, 90), progressive=True), "device"),
    "grey": (encoded(waves(120, 90).convert("L")), "device"),
    "of the size asked for": (encoded(waves(40, 40)), "device"),
    "enlarged": (encoded(waves(9, 7)), "device"),
    "one pixel": (encoded(waves(1, 1)), "device"),
    "trailing bytes": (encoded(waves(120, 90)) + b"and more", "device"),
    "upright": (oriented(1), "device"),
    "turned": (oriented(6), "pillow"),
    "mirrored": (oriented(2), "pillow"),
    "cmyk": (encoded(waves(120, 90).convert("CMYK")), "pillow"),
    "png": (encoded(waves(120, 90), "PNG"), "pillow"),
    "alpha": (encoded(waves(120, 90).convert("RGBA"), "PNG"), "pillow"),
    "gif": (encoded(waves(50, 60), "GIF"), "pillow"),
}
WHOLE = encoded(waves(300, 200), quality=95)
BAD = {
    "cut short": (WHOLE[: len(WHOLE) // 2], "decode"),
    "progressive cut short": (encoded(waves(300, 200), progressive=True)[:-900], "decode"),
    "without its end": (WHOLE[:-2], "decode"),
    "garbage": (b"\xff\xd8" + bytes(range(256)), "decode"),
    "empty": (b"", "decode"),
    "huge": (encoded(Image.new("RGB", (1200, 1000))), "too-large"),
    "a strip": (encoded(Image.new("RGB", (5000, 1))), "too-large"),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_each_kind_of_file_takes_its_way_to_the_same_pixels(name: str, interpolation: Any, opened: Open) -> None:
    preprocess = SMALL.changed({"interpolation": interpolation})
    loader, (data, way) = opened(preprocess), GOOD[name]
    found = loader.load(data)
    assert apart(found, witness(data, preprocess)) <= (1 if way == "pillow" else 2)
    assert found.flags.c_contiguous
    assert loader.counts == {"device": 0, "pillow": 0, way: 1}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_image_fails_as_it_does_with_pillow(name: str, opened: Open, jpeg_device: Any) -> None:
    data, kind = BAD[name]
    loader = opened(max_pixels=10**6)
    with pytest.raises(ImageError) as caught:
        loader.load(data)
    assert caught.value.kind == kind
    with pytest.raises(ImageError) as wanted:
        load_image(data, Preprocess(resize=40, crop=32), max_pixels=10**6)
    assert str(caught.value) == str(wanted.value)
    assert jpeg_device.calls == []
    assert sum(loader.counts.values()) == 0


def with_odd_scan(data: bytes) -> bytes:
    """A photo from start to end, but for a scan of more components than it has."""
    broken = bytearray(data)
    broken[broken.index(b"\xff\xda") + 4] = 77
    return bytes(broken)


def test_what_the_device_gives_up_and_pillow_too_is_an_ordinary_failure(opened: Open, jpeg_device: Any) -> None:
    loader, broken = opened(), with_odd_scan(WHOLE)
    with pytest.raises(ImageError):
        loader.load(broken)
    assert jpeg_device.calls == [1]
    assert loader.counts == {"device": 0, "pillow": 0}


def test_five_crops_come_in_their_order_with_black_margins(opened: Open) -> None:
    data = encoded(waves(120, 90))
    roomy = SMALL.changed({"resize": 50})
    found = opened(roomy, crops=FIVE).load(data)
    assert found.shape == (5, 3, 32, 32)
    for row, place in zip(found, FIVE, strict=True):
        np.testing.assert_array_equal(row, opened(roomy, crops=(place,)).load(data).reshape(3, 32, 32))
    small = opened(SMALL.changed({"resize": 20})).load(data)
    assert not small[:, :6].any()
    assert small[:, 6:26].any()
    assert not small[:, 26:].any()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), threads=st.integers(2, 24))
def test_every_thread_gets_the_image_that_it_asked_for(seed: int, threads: int, opened: Open, jpeg_device: Any) -> None:
    """In groups of all sizes, with refused files, files for Pillow and files that fail among them."""
    chance = random.Random(seed)
    files = [encoded(waves(30 + n, 50, seed=n)) for n in range(12)]
    files += [encoded(waves(60, 30 + n, seed=n), "PNG") for n in range(4)] + [b"no image"]
    wanted = [witness(data) for data in files[:-1]]
    jpeg_device.refuses = lambda data: data == files[3]
    loader = opened()
    asked = [chance.randrange(len(files)) for _ in range(120)]

    def load(number: int) -> np.ndarray | None:
        try:
            return loader.load(files[number])
        except ImageError:
            return None

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(load, asked))
    for number, pixels in zip(asked, found, strict=True):
        if number == len(files) - 1:
            assert pixels is None
        else:
            assert pixels is not None
            assert apart(pixels, wanted[number]) <= 2, number
    by_pillow = sum(number == 3 or 12 <= number < 16 for number in asked)
    assert loader.counts == {"device": sum(number < 12 for number in asked) - asked.count(3), "pillow": by_pillow}


def together(loader: DeviceLoader, device: Any, files: list[bytes]) -> list[np.ndarray]:
    """Load files that all wait before the device is free: the first goes alone, the others together."""
    device.free.clear()
    with ThreadPoolExecutor(len(files)) as pool:
        first = pool.submit(loader.load, files[0])
        until(lambda: bool(device.calls))
        others = [pool.submit(loader.load, data) for data in files[1:]]
        until(lambda: len(loader._waiting) == len(others))
        device.free.set()
        return [future.result() for future in (first, *others)]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.001)


SOME = [encoded(waves(70, 50, seed=n)) for n in range(9)]


def check(found: list[np.ndarray], files: list[bytes]) -> None:
    for pixels, data in zip(found, files, strict=True):
        assert apart(pixels, witness(data)) <= 2


def test_what_waits_is_decoded_by_one_call(opened: Open, jpeg_device: Any) -> None:
    check(together(opened(), jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 8]


def test_a_group_is_bounded_by_images_and_by_pixels(
    opened: Open, jpeg_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoding, "MOST_IMAGES", 3)
    check(together(opened(), jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 3, 3, 2]
    jpeg_device.calls.clear()
    monkeypatch.setattr(device_decoding, "MOST_PIXELS", 2 * 70 * 50)
    files = [*SOME[:4], WHOLE, SOME[5]]  # one is larger than the limit
    check(together(opened(), jpeg_device, files), files)
    assert sum(jpeg_device.calls) == 6
    assert max(jpeg_device.calls) == 2
    jpeg_device.calls.clear()
    monkeypatch.setattr(device_decoding, "MOST_BYTES", 2 * 3 * 32 * 32)
    monkeypatch.setattr(device_decoding, "MOST_PIXELS", 10**9)
    check(together(opened(), jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 2, 2, 2, 2]


def test_an_image_that_grows_counts_with_what_it_becomes(
    opened: Open, jpeg_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoding, "MOST_PIXELS", 40 * 40 * 2)
    files = [encoded(waves(4, 4, seed=n)) for n in range(5)]
    check(together(opened(), jpeg_device, files), files)
    assert jpeg_device.calls == [1, 2, 2]


def test_a_group_with_a_file_that_fails_is_tried_one_by_one(opened: Open, jpeg_device: Any) -> None:
    jpeg_device.refuses = lambda data: data == SOME[5]
    loader = opened()
    check(together(loader, jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 8, *[1] * 8]
    assert loader.counts == {"device": 8, "pillow": 1}
    jpeg_device.calls.clear()
    check(together(loader, jpeg_device, SOME[:5]), SOME[:5])
    assert jpeg_device.calls == [1, 4]


def test_a_picture_of_another_size_than_its_header_says_is_not_believed(opened: Open, jpeg_device: Any) -> None:
    plain = jpeg_device.decode
    jpeg_device.decode = lambda files: [pixels[:, :-1] for pixels in plain(files)]
    loader = opened()
    assert apart(loader.load(SOME[0]), witness(SOME[0])) <= 1
    assert loader.counts == {"device": 0, "pillow": 1}


def test_a_shortage_of_memory_halves_the_groups(opened: Open, jpeg_device: Any) -> None:
    jpeg_device.most_pixels = 3 * 70 * 50
    loader = opened()
    check(together(loader, jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 8, 4, 2, 2, 4, 2, 2]
    assert loader.counts == {"device": 9, "pillow": 0}
    jpeg_device.calls.clear()
    check(together(loader, jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 2, 2, 2, 2]


def test_a_group_that_fails_though_each_of_it_decodes_was_too_large(opened: Open, jpeg_device: Any) -> None:
    """nvJPEG's own allocator tells its lack of memory by a number."""
    plain = jpeg_device.decode

    def decode(files: list[torch.Tensor]) -> list[torch.Tensor]:
        found: list[torch.Tensor] = plain(files)
        if len(files) > 4:
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5")
        return found

    jpeg_device.decode = decode
    loader = opened()
    check(together(loader, jpeg_device, SOME), SOME)
    jpeg_device.calls.clear()
    check(together(loader, jpeg_device, SOME), SOME)
    assert jpeg_device.calls == [1, 4, 4]
    assert loader.counts == {"device": 18, "pillow": 0}


def test_one_image_without_room_is_decoded_and_resized_on_the_cpu(
    opened: Open, jpeg_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = device_decoding.resize_tensor
    short = True

    def resize(pixels: torch.Tensor, *rest: Any) -> torch.Tensor:
        if short and not jpeg_device.recovered % 2:  # on the device; after the error on the CPU
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(pixels, *rest)

    jpeg_device.most_pixels = 100
    loader = opened()
    assert apart(loader.load(SOME[0]), witness(SOME[0])) <= 1
    monkeypatch.setattr(device_decoding, "resize_tensor", resize)
    jpeg_device.recovered = 0
    assert apart(loader.load(encoded(waves(60, 50), "PNG")), witness(encoded(waves(60, 50), "PNG"))) <= 1
    assert jpeg_device.recovered == 1
    assert loader.counts == {"device": 0, "pillow": 2}


def test_a_device_that_decodes_nothing_stops_the_run_and_says_why(opened: Open, jpeg_device: Any) -> None:
    jpeg_device.refuses = lambda data: True
    loader = opened()
    for n in range(63):
        loader.load(SOME[n % 9])
    with pytest.raises(DeviceError, match=r"decoded none of the first 64 JPEG files.*Error while decoding.*exact"):
        loader.load(SOME[0])


def test_files_that_pillow_refuses_too_do_not_speak_against_the_device(opened: Open, jpeg_device: Any) -> None:
    loader, broken = opened(), with_odd_scan(WHOLE)
    for _ in range(70):
        with pytest.raises(ImageError):
            loader.load(broken)
    loader.load(SOME[0])
    jpeg_device.refuses = lambda data: True
    for n in range(70):  # it has decoded one
        loader.load(SOME[n % 9])
    assert loader.counts == {"device": 1, "pillow": 70}


def test_a_device_that_decoded_none_of_a_few_files_is_told_in_the_log(
    opened: Open, jpeg_device: Any, caplog: pytest.LogCaptureFixture
) -> None:
    jpeg_device.refuses = lambda data: True
    loader = opened()
    loader.load(SOME[0])
    loader.close()
    assert "decoded none of 1 JPEG files (Error while decoding JPEG images: 7)" in caplog.text


def test_a_device_that_fails_tells_every_thread(opened: Open, jpeg_device: Any) -> None:
    def wait() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nof kernels")

    jpeg_device.wait = wait
    loader = opened()
    jpeg_device.free.clear()
    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(loader.load, data) for data in SOME]
        until(lambda: len(loader._waiting) + sum(jpeg_device.calls) == 9)
        jpeg_device.free.set()
        for future in futures:
            with pytest.raises(DeviceError, match=r"failed while it .* \(CUDA error: an illegal memory access"):
                future.result(timeout=30)
    with pytest.raises(DeviceError, match="an illegal memory access was encountered"):
        loader.load(SOME[0])


def test_closing_ends_the_threads_that_wait(opened: Open, jpeg_device: Any) -> None:
    loader = opened()
    jpeg_device.free.clear()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(loader.load, SOME[0])
        until(lambda: jpeg_device.calls == [1])
        others = [pool.submit(loader.load, data) for data in SOME[1:]]
        until(lambda: len(loader._waiting) == 8)
        closing_thread = threading.Thread(target=loader.close)
        closing_thread.start()
        for future in others:
            with pytest.raises(DeviceError, match="was ended while an image waited"):
                future.result(timeout=30)
        jpeg_device.free.set()
        assert apart(first.result(timeout=30), witness(SOME[0])) <= 2  # it was begun
        closing_thread.join(timeout=30)
    assert not any(thread.name == "icecore-device-decode" for thread in threading.enumerate())
    with pytest.raises(DeviceError, match="was ended"):
        loader.load(SOME[0])
    loader.close()


def test_pillow_decodes_no_more_images_at_once_than_without_a_device(
    opened: Open, jpeg_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wait for the device are many, and whole images of all of them would be too much memory."""
    lock, now, most = threading.Lock(), 0, 0

    def decode(data: bytes, **options: Any) -> Image.Image:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.002)
        with lock:
            now -= 1
        return decode_image(data, **options)

    monkeypatch.setattr(device_decoding, "decode_image", decode)
    monkeypatch.setattr(device_decoding, "default_threads", lambda: 3)
    loader = opened()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(loader.load, [encoded(waves(60, 50), "PNG")] * 48))
    assert most == 3
    assert loader.counts == {"device": 0, "pillow": 48}


def test_pixels_given_do_not_change_with_the_next_group(opened: Open) -> None:
    loader = opened()
    first = loader.load(SOME[0])
    kept = first.copy()
    for data in SOME:
        loader.load(data)
    np.testing.assert_array_equal(first, kept)
