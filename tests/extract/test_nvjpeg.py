"""``decode = "nvjpeg"`` from the config value to the features, on what stands for a GPU; and on a real one."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import (
    ImageError,
    Preprocess,
    backbone_for,
    compare_precisions,
    extract_images,
    features_of,
    load_backbone,
    nvjpeg,
)
from icecore.extract.comparing import cosines
from icecore.extract.decoding import decode_image
from icecore.extract.errors import DeviceError
from icecore.extract.images import load_image
from icecore.extract.layers import columns_for
from icecore.extract.loaders import open_loader
from icecore.extract.nvjpeg import CudaDecoder, decode_on, require_nvjpeg
from icecore.extract.pipeline import default_threads
from icecore.extract.precision import settle_precision
from icecore.extract.tensor_images import crop_tensor, resize_tensor
from icecore.extract.work import State
from icecore.extract.workers import Workers
from icecore.store import FeatureStore, scan_folder
from PIL import Image
from torch import Tensor

Extract = Callable[..., Any]
BY_DEVICE = Preprocess(resize=48, crop=32, decode="nvjpeg")
BY_PILLOW = Preprocess(resize=48, crop=32)


def waves(width: int, height: int, seed: int) -> Image.Image:
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phases, speeds = chance.uniform(0, 6, 3), chance.uniform(0.02, 0.2, (3, 2))
    channels = [np.sin(p + a * x + b * y) for p, (a, b) in zip(phases, speeds, strict=True)]
    return Image.fromarray((127.5 + 120 * np.stack(channels, axis=2)).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photos, of which two are no JPEG, and three files that are no whole image."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for n in range(10):
        waves(90 + 7 * n, 120 - 5 * n, n).save(folder / f"{n:02}.jpg", quality=90, progressive=n % 3 == 0)
    waves(70, 60, 20).save(folder / "10.png")
    waves(70, 60, 21).convert("CMYK").save(folder / "11.jpg")
    whole = (folder / "01.jpg").read_bytes()
    (folder / "12.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "13.jpg").write_bytes(b"")
    (folder / "14.jpg").write_bytes(b"not an image")
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)
    return folder


def rows_of(store: Path) -> tuple[list[str], np.ndarray]:
    with FeatureStore.open(store) as opened:
        ids, X = opened["photos"].matrix("block2")
        return ids, np.array(X)


@pytest.mark.usefixtures("jpeg_device")
def test_features_are_near_those_of_exact_and_each_row_is_its_images(
    extract: Extract, folder: Path, tmp_path: Path
) -> None:
    exact = extract(folder, preprocess=BY_PILLOW)
    ids, wanted = rows_of(tmp_path / "store")
    report = extract(folder, preprocess=BY_DEVICE, threads=7)
    found_ids, found = rows_of(tmp_path / "store")
    assert found_ids == ids == [f"{n:02}.{'png' if n == 10 else 'jpg'}" for n in range(12)]
    near = cosines(wanted, found)
    assert near.min() > 0.99
    others = [cosines(wanted, np.roll(found, shift, axis=0)) for shift in range(1, 12)]
    assert (near > np.max(others, axis=0)).all()  # a shifted row would be told
    assert report.decoded == {"device": 10, "pillow": 2}
    assert [(f.id, f.kind) for f in report.failures] == [(f.id, f.kind) for f in exact.failures]
    assert [f.reason for f in report.failures] == [f.reason for f in exact.failures]
    assert exact.decoded == {}
    assert report.contract_hash != exact.contract_hash
    assert "nvjpeg of torchvision" in report.decoder
    assert report.told()["decoded"] == {"device": 10, "pillow": 2}
    assert extract(folder, preprocess=BY_DEVICE).forwarded == 0


@pytest.mark.usefixtures("jpeg_device")
@pytest.mark.parametrize("threads", [0, 3, 40])
def test_threads_and_batches_do_not_change_a_feature(
    threads: int, extract: Extract, folder: Path, tmp_path: Path
) -> None:
    extract(folder, preprocess=BY_DEVICE)
    _, wanted = rows_of(tmp_path / "store")
    (tmp_path / "store").rename(tmp_path / "before")
    extract(folder, preprocess=BY_DEVICE, threads=threads)
    np.testing.assert_array_equal(rows_of(tmp_path / "store")[1], wanted)


@pytest.mark.usefixtures("jpeg_device")
def test_predictions_take_the_way_that_the_contract_says(extract: Extract, folder: Path, tmp_path: Path) -> None:
    report = extract(folder, preprocess=BY_PILLOW, decode="nvjpeg", views=["five-crop", "flip"])
    with FeatureStore.open(tmp_path / "store") as store:
        photos = store["photos"]
        wanted = np.array(photos.matrix("block2").X)
        backbone = backbone_for(photos.contract, source=photos.source)
    assert backbone.preprocess == BY_DEVICE
    files = sorted(folder.iterdir())[:12]
    for row, (_, found) in zip(wanted, features_of(backbone, report.columns, files, device="cpu"), strict=True):
        assert not isinstance(found, ImageError)
        np.testing.assert_allclose(found[report.columns[0]], row, rtol=1e-4, atol=1e-6)


def test_canaries_and_precisions_go_to_the_device_too(
    extract: Extract, folder: Path, own_net: str, jpeg_device: Any, tmp_path: Path
) -> None:
    extract(folder, preprocess=BY_DEVICE)
    assert sum(jpeg_device.calls) > 10  # those of the run, and its canaries
    jpeg_device.calls.clear()
    backbone = load_backbone(own_net, preprocess=BY_DEVICE)
    columns = columns_for(backbone.layers, ["block2"], ["avg"])
    assert len(compare_precisions(backbone, columns, scan_folder(folder), device="cpu").ids) == 12
    assert sum(jpeg_device.calls) == 10
    jpeg_device.calls.clear()
    settle_precision(backbone, columns, scan_folder(folder), torch.device("cpu"), stored=None)
    has_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    assert sum(jpeg_device.calls) == (8 if has_bf16 else 0)


def test_changed_pixels_of_the_device_stop_the_next_run(
    extract: Extract, folder: Path, jpeg_device: Any, tmp_path: Path
) -> None:
    from icecore.extract import NumericsMovedError

    extract(folder, preprocess=BY_DEVICE)
    waves(80, 80, 30).save(folder / "15.jpg")
    plain = jpeg_device.decode
    jpeg_device.decode = lambda files: [pixels // 2 for pixels in plain(files)]
    with pytest.raises(NumericsMovedError):
        extract(folder, preprocess=BY_DEVICE)
    jpeg_device.decode = plain
    assert extract(folder, preprocess=BY_DEVICE).forwarded == 1


def test_a_device_that_decodes_nothing_ends_the_run_and_keeps_the_set(
    extract: Extract, folder: Path, jpeg_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jpeg_device.refuses = lambda data: True
    monkeypatch.setattr("icecore.extract.device_decoding.TRUSTED", 9)
    with pytest.raises(DeviceError, match="decoded none of the first 9 JPEG files"):
        extract(folder, preprocess=BY_DEVICE)
    jpeg_device.refuses = lambda data: False
    report = extract(folder, preprocess=BY_DEVICE)
    assert report.decoded == {"device": 10, "pillow": 2}


def test_what_several_devices_decoded_is_summed(tmp_path: Path) -> None:
    writer: Any = SimpleNamespace(folder=tmp_path, generation="", retries=False)
    work: Any = None
    workers = Workers(work, ["cuda:0", "cuda:1"], [], writer, guard=lambda: None, images=9)
    states = [State(1.0, "graph", "", 4, (("device", 5), ("pillow", n))) for n in (1, 3)]
    workers._workers = [SimpleNamespace(state=pickle.loads(pickle.dumps(state))) for state in states]  # type: ignore[misc]
    assert dict(workers.state.decoded) == {"device": 10, "pillow": 4}


# --- without a device that decodes -------------------------------------------------------------------------------


def test_without_a_gpu_it_is_an_error_before_the_store_is_touched(
    extract: Extract, folder: Path, own_net: str, tmp_path: Path
) -> None:
    words = r'decode nvjpeg is the work of a CUDA device, and the device is cpu: set preprocess.decode = "exact", or'
    for dry_run in (True, False):
        with pytest.raises(DeviceError, match=words):
            extract(folder, preprocess=BY_DEVICE, dry_run=dry_run)
    with pytest.raises(DeviceError, match=words):
        extract(folder, preprocess=BY_DEVICE, precision="auto")
    assert not (tmp_path / "store").exists()
    backbone = load_backbone(own_net, preprocess=BY_DEVICE)
    columns = columns_for(backbone.layers, ["block2"], ["avg"])
    with pytest.raises(DeviceError, match=words):
        next(features_of(backbone, columns, [folder / "00.jpg"], device="cpu"))
    with pytest.raises(DeviceError, match=words):
        compare_precisions(backbone, columns, scan_folder(folder), device="cpu")


def test_a_torchvision_without_nvjpeg_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real operator, asked on a machine where it cannot work."""
    if torch.cuda.is_available():
        pytest.skip("here it works")

    class Without(CudaDecoder):
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def decode(self, files: Sequence[Tensor]) -> list[Tensor]:
            return decode_on(self.device, files)

        def within(self) -> Any:
            return warnings.catch_warnings()

    monkeypatch.setattr(nvjpeg, "CudaDecoder", Without)
    with pytest.raises(DeviceError, match=r"torchvision .* cannot decode by nvJPEG on cuda:0 \(.+\): set preprocess"):
        require_nvjpeg(torch.device("cuda", 0))


def test_pixels_that_are_not_the_photos_are_told(monkeypatch: pytest.MonkeyPatch, jpeg_device: Any) -> None:
    monkeypatch.setattr(nvjpeg, "CudaDecoder", lambda device: jpeg_device)
    require_nvjpeg.__wrapped__(torch.device("cuda", 0))
    plain = jpeg_device.decode
    jpeg_device.decode = lambda files: [pixels.flip(0) for pixels in plain(files)]
    with pytest.raises(DeviceError, match="gives other pixels than a photo has"):
        require_nvjpeg.__wrapped__(torch.device("cuda", 0))


def test_pillows_path_does_not_pass_for_the_devices() -> None:
    with pytest.raises(ValueError, match="take open_loader with a device"):
        load_image(b"", BY_DEVICE)


def test_the_deprecation_of_the_decoder_does_not_reach_users(folder: Path) -> None:
    file = torch.frombuffer(bytearray((folder / "01.jpg").read_bytes()), dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        decode_on(torch.device("cpu"), [file])
        warnings.warn("another one", DeprecationWarning, stacklevel=1)
    assert [str(warning.message) for warning in told] == ["another one"]


def test_threads_that_wait_are_many_enough_to_fill_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads, waiting in ((2, 2, 32), (16, 16, 64), (200, 32, 128)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: set(range(cores)))
        assert (default_threads(), default_threads("nvjpeg")) == (threads, waiting)


# --- on a real device --------------------------------------------------------------------------------------------

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def loader() -> Iterator[Any]:
    with closing(open_loader(Preprocess(decode="nvjpeg"), device="cuda:0")) as loader:
        yield loader


@pytest.mark.gpu
@GPU
def test_on_a_gpu_every_kind_of_file_comes_out_as_pillow_decodes_it(loader: Any) -> None:
    photo, exif = waves(500, 375, 0), Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[Image.Image, str, dict[str, Any], str]] = {
        "4:2:0": (photo, "JPEG", {"quality": 95}, "device"),
        "4:4:4": (photo, "JPEG", {"quality": 95, "subsampling": 0}, "device"),
        "4:2:2": (photo, "JPEG", {"quality": 95, "subsampling": 1}, "device"),
        "progressive": (photo, "JPEG", {"quality": 95, "progressive": True}, "device"),
        "grey": (photo.convert("L"), "JPEG", {"quality": 95}, "device"),
        "odd": (waves(501, 377, 1), "JPEG", {"quality": 95}, "device"),
        "large": (waves(4032, 3024, 2), "JPEG", {"quality": 95}, "device"),
        "tiny": (waves(3, 2, 3), "JPEG", {"quality": 95}, "device"),
        "turned": (photo, "JPEG", {"quality": 95, "exif": exif}, "pillow"),
        "cmyk": (photo.convert("CMYK"), "JPEG", {"quality": 95}, "pillow"),
        "png": (photo, "PNG", {}, "pillow"),
    }
    for name, (image, form, options, way) in files.items():
        buffer, before = io.BytesIO(), loader.counts
        image.save(buffer, form, **options)
        found = loader.load(buffer.getvalue()).astype(int)
        pillow = torch.from_numpy(np.array(decode_image(buffer.getvalue()))).permute(2, 0, 1)
        shorter = min(image.size)
        longer = int(256 * max(image.size) / shorter)
        size = (256, longer) if pillow.shape[2] <= pillow.shape[1] else (longer, 256)
        wanted = crop_tensor(resize_tensor(pillow, size, "bilinear"), 224, ("full",))[0].numpy()
        assert np.abs(found - wanted).mean() < 2, name  # the chroma of neighbours is interpolated otherwise
        if loader.counts[way] != before[way] + 1:
            assert name == "tiny", f"{name} went another way"  # nvJPEG may refuse it
    with pytest.raises(ImageError):
        loader.load(b"\xff\xd8 no image")


@pytest.mark.gpu
@GPU
def test_on_a_gpu_features_of_real_photos_are_near_those_of_exact(assets: Path, tmp_path: Path) -> None:
    found = {}
    for decode in ("exact", "nvjpeg"):
        report = extract_images(
            tmp_path / decode,
            "photos",
            assets / "data" / "hymenoptera",
            backbone_name="squeezenet1_1",
            weights=assets / "weights/squeezenet1_1.pth",
            layers=["features.12"],
            dtype="float32",
            device="cuda",
            decode=decode,  # type: ignore[arg-type]
        )
        assert not report.failures
        with FeatureStore.open(tmp_path / decode) as store:
            ids, X = store["photos"].matrix("features.12")
            found[decode] = ids, np.array(X)
    assert report.decoded["device"] >= 0.9 * len(ids)
    assert found["exact"][0] == found["nvjpeg"][0]
    near = cosines(found["exact"][1], found["nvjpeg"][1])
    assert near.min() > 0.98
    assert np.median(near) > 0.995


@pytest.mark.gpu
@GPU
def test_on_a_gpu_a_file_that_it_cannot_decode_leaves_the_others_whole(loader: Any) -> None:
    buffer = io.BytesIO()
    waves(500, 375, 0).save(buffer, "JPEG")
    whole = buffer.getvalue()
    broken = bytearray(whole)
    broken[broken.index(b"\xff\xda") + 4] = 77  # components of its scan
    before = loader.load(whole)
    for _ in range(5):
        with suppress(ImageError):  # whether it is refused is nvJPEG's affair
            loader.load(bytes(broken))
        np.testing.assert_array_equal(loader.load(whole), before)
