"""JPEG decoding on a CUDA device, by nvJPEG through torchvision: one call, ``decode_on``, which can be exchanged.

TorchCodec, which is to replace it, decodes JPEG on CUDA from 0.16 on, and always applies EXIF orientation.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, Protocol

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode

from .errors import DeviceError, first_line

__all__ = ["CudaDecoder", "JpegPlatform", "decode_on", "platform_for", "require_nvjpeg"]

_CURE = 'set preprocess.decode = "exact", or take a device that has it (compute.device)'


class JpegPlatform(Protocol):
    """What is asked of a device: to decode, and a queue that works beside the processor."""

    device: torch.device
    """where the pixels lie"""

    def decode(self, files: Sequence[Tensor]) -> list[Tensor]:
        """Decode JPEG files, uint8 of shape (bytes,) on the CPU, to uint8 of (3, H, W) on the device: all or none."""

    def within(self) -> AbstractContextManager[Any]:
        """Let what is ordered in the block go into the platform's queue."""

    def locked(self, shape: tuple[int, ...]) -> Tensor:
        """Give uint8 memory of the processor that the device copies to by itself."""

    def wait(self) -> None:
        """Wait for what was ordered in the queue."""

    def recover(self) -> None:
        """Wait for everything after an error, and give unused memory back."""


class CudaDecoder:
    """nvJPEG on a CUDA device, by its index."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def decode(self, files: Sequence[Tensor]) -> list[Tensor]:
        """Decode when the queue is empty."""
        # The hardware decoder waits for no queue: without this it overwrites memory that the allocator gives it while
        # kernels that were ordered before still read it (torchvision pull request 9606). It ends before the call does.
        self._queue.synchronize()
        return decode_on(self.device, files)

    def within(self) -> AbstractContextManager[Any]:
        """Make the stream the current one, and its device."""
        return torch.cuda.stream(self._queue)

    def locked(self, shape: tuple[int, ...]) -> Tensor:
        """Give page-locked memory."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=True)

    def wait(self) -> None:
        """Wait for the stream."""
        self._queue.synchronize()

    def recover(self) -> None:
        """Wait for every stream: torchvision's own may still write what a call that failed began."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


def decode_on(device: torch.device, files: Sequence[Tensor]) -> list[Tensor]:
    """Decode JPEG files, uint8 of shape (bytes,), to uint8 of (3, H, W) on a device.

    Raises
    ------
    RuntimeError
        When one of them cannot be decoded; of the others nothing is given then.
    """
    # Deprecated since torchvision 0.29. The filter stays: taking it back would undo what other threads set meanwhile.
    warnings.filterwarnings(
        "ignore", "The image decoding and encoding capabilities of TorchVision", DeprecationWarning, r"torchvision\.io"
    )
    found: list[Tensor] = torchvision.io.decode_jpeg(list(files), ImageReadMode.RGB, device)
    return found


def platform_for(device: torch.device) -> JpegPlatform:
    """Give the decoder of a device.

    Raises
    ------
    DeviceError
        As ``require_nvjpeg``.
    """
    require_nvjpeg(device)
    return CudaDecoder(device)


@cache
def require_nvjpeg(device: torch.device) -> None:
    """Return when a small photo comes out of the device as it went in.

    Raises
    ------
    DeviceError
        When the device is not a CUDA device, or this torchvision has no nvJPEG for it.
    """
    if device.type != "cuda":
        raise DeviceError(f"decode nvjpeg is the work of a CUDA device, and the device is {device}: {_CURE}")
    buffer = io.BytesIO()
    Image.new("RGB", (32, 16), (200, 120, 40)).save(buffer, "JPEG")
    try:
        decoder = CudaDecoder(device)
        with decoder.within():
            (pixels,) = decoder.decode([torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)])
            decoder.wait()
            means = pixels.float().mean((1, 2)).tolist()  # (3,)
    except RuntimeError as exc:
        told = f"torchvision {torchvision.__version__} cannot decode by nvJPEG on {device} ({first_line(exc)})"
        raise DeviceError(f"{told}: {_CURE}") from exc
    if pixels.shape != (3, 16, 32) or any(abs(a - b) > 4 for a, b in zip(means, (200, 120, 40), strict=True)):
        raise DeviceError(f"nvJPEG on {device} gives other pixels than a photo has: {_CURE}")
