"""Small networks and images for the tests of extraction."""

from __future__ import annotations

import io
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import ExtractReport, Preprocess, extract_images
from icecore.extract.nvjpeg import decode_on
from icecore.extract.trunk import Trunk
from icecore.store import FeatureStore
from PIL import Image
from torch import Tensor

Extract = Callable[..., ExtractReport]
SMALL = Preprocess(resize=32, crop=32)

NETWORK = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)) + x)


class Net(nn.Module):
    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.block1 = Block(width)
        self.block2 = Block(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        x = self.block2(F.relu(self.block1(x), inplace=True))
        return self.head(x.mean((2, 3)))


def net(width=8, classes=4):
    return Net(width, classes)


def not_a_network():
    return 3


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def branching():
    return Branching()
"""


@pytest.fixture(scope="session", autouse=True)
def _one_thread_each() -> None:
    """Let the workers of the test run share the processors."""
    torch.set_num_threads(1)


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a function of one's own, ``module:net``, that builds a small network in 10 ms."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "ownnets.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "ownnets", raising=False)
    return "ownnets:net"


@pytest.fixture
def encode() -> Callable[..., bytes]:
    """Function that gives the bytes of an image file: ``encode(image, "PNG", **options)``."""

    def encode(image: Image.Image, form: str, **options: object) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def noise() -> Callable[..., Image.Image]:
    """Function that gives a random RGB image: ``noise(width, height, seed=0)``."""

    def noise(width: int, height: int, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return noise


@pytest.fixture
def photos(tmp_path: Path, noise: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine images in two folders; ``b/copy.png`` repeats ``a/1.png``."""
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for n in range(8):
        noise(40 + n, 36, seed=n).save(folder / ("a" if n < 4 else "b") / f"{n}.png")
    shutil.copy(folder / "a/1.png", folder / "b/copy.png")
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else every file is too fresh to be trusted for 2 s
    return folder


@pytest.fixture
def extract(tmp_path: Path, photos: Path, own_net: str) -> Extract:
    def extract(source: Any = photos, **options: Any) -> ExtractReport:
        settings: dict[str, Any] = {
            "backbone_name": own_net,
            "weights": None,
            "layers": ["block2"],
            "preprocess": SMALL,
            "dtype": "float32",
            "device": "cpu",
            "batch_size": 4,
            "threads": 2,
        }
        return extract_images(tmp_path / "store", "photos", source, **{**settings, **options})

    return extract


@pytest.fixture
def matrix(tmp_path: Path) -> Callable[..., tuple[list[str], np.ndarray]]:
    def matrix(*layers: str) -> tuple[list[str], np.ndarray]:
        with FeatureStore.open(tmp_path / "store") as store:
            ids, X = store["photos"].matrix(list(layers) or ["block2"])
            return ids, np.array(X)

    return matrix


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of images of each forward pass of a run, but for those of its canaries."""
    seen: list[int] = []

    class Counting(Trunk):
        def start(self, pixels: np.ndarray) -> Any:
            seen.append(len(pixels))
            return super().start(pixels)

    monkeypatch.setattr("icecore.extract.one_device.Trunk", Counting)
    return seen


class JpegDevice:
    """The CPU as a device that decodes JPEG files, by the function that decodes them on a GPU."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[int] = []
        """files of each call"""
        self.recovered = 0
        self.most_pixels = 10**9
        """pixels for which one call has memory"""
        self.refuses: Callable[[bytes], bool] = lambda data: False
        self.free = threading.Event()
        """cleared: the device is busy"""
        self.free.set()

    def decode(self, files: Sequence[Tensor]) -> list[Tensor]:
        self.calls.append(len(files))
        self.free.wait()
        if any(self.refuses(file.numpy().tobytes()) for file in files):
            raise RuntimeError("Error while decoding JPEG images: 7")
        found = decode_on(self.device, files)
        if sum(pixels[0].numel() for pixels in found) > self.most_pixels:
            raise RuntimeError("Error while decoding JPEG images: CUDA out of memory. Tried to allocate 2 GiB")
        return found

    def within(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def locked(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 99, dtype=torch.uint8)  # what was there before

    def wait(self) -> None:
        return

    def recover(self) -> None:
        self.recovered += 1


@pytest.fixture
def jpeg_device(monkeypatch: pytest.MonkeyPatch) -> JpegDevice:
    """What stands for the GPU's decoder, wherever one is asked for."""
    device = JpegDevice()
    monkeypatch.setattr("icecore.extract.nvjpeg.platform_for", lambda where: device)
    return device
