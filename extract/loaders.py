"""The one way from the bytes of an image file to pixels that honours every ``decode``: a loader, for many threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
import torchvision
from icecore.store.contract import FULL

from . import nvjpeg
from .decoding import MAX_PIXELS, decoder_versions
from .device_decoding import DeviceLoader
from .images import load_image
from .preprocess import Preprocess

__all__ = ["Loader", "decoder_words", "open_loader", "require_decoder"]


class Loader(Protocol):
    """What gives the pixels of images. Close it."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Images that were given, by what decoded them: ``device`` and ``pillow``; empty where Pillow always does."""

    def load(self, data: bytes) -> np.ndarray:
        """Decode, resize and crop one image, as ``load_image`` does."""

    def close(self) -> None:
        """Let go of what it holds."""


class _PillowLoader:
    """Pillow, in the thread that asks."""

    def __init__(self, preprocess: Preprocess, max_pixels: int, crops: Sequence[str]) -> None:
        self._preprocess, self._max_pixels, self._crops = preprocess, max_pixels, crops
        self.counts: Mapping[str, int] = {}

    def load(self, data: bytes) -> np.ndarray:
        return load_image(data, self._preprocess, max_pixels=self._max_pixels, crops=self._crops)

    def close(self) -> None:
        return


def open_loader(
    preprocess: Preprocess,
    *,
    device: torch.device | str,
    max_pixels: int = MAX_PIXELS,
    crops: Sequence[str] = (FULL,),
) -> Loader:
    """Give what decodes as ``preprocess`` says.

    Parameters
    ----------
    preprocess, max_pixels, crops
        As ``load_image`` takes them.
    device
        Where the network runs, as ``choose_device`` gives it; ``nvjpeg`` decodes there.

    Raises
    ------
    DeviceError
        As ``require_decoder``.
    """
    if preprocess.decode != "nvjpeg":
        return _PillowLoader(preprocess, max_pixels, crops)
    platform = nvjpeg.platform_for(torch.device(device))
    return DeviceLoader(preprocess, platform, max_pixels=max_pixels, crops=crops)


def require_decoder(preprocess: Preprocess, device: torch.device | str) -> None:
    """Return when ``preprocess`` can be followed with a device.

    Raises
    ------
    DeviceError
        When it says ``nvjpeg`` and the device is not a CUDA device, or torchvision has no nvJPEG for it.
    """
    if preprocess.decode == "nvjpeg":
        nvjpeg.platform_for(torch.device(device))


def decoder_words(preprocess: Preprocess) -> str:
    """Give the libraries that decode, with their versions."""
    versions = decoder_versions()
    if preprocess.decode == "nvjpeg":
        versions |= {"nvjpeg of torchvision": torchvision.__version__, "CUDA": torch.version.cuda or "none"}
    return ", ".join(f"{name} {version}" for name, version in versions.items())
