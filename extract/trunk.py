"""One forward pass through the network, cut after the deepest layer, with every column pooled on the device.

Every pass has the same shape: a batch that is not full is padded with black images, whose rows are thrown away.
So a row does not depend on how many others happened to be in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from icecore.store import Column
from torch import Tensor

from .backbone import Backbone
from .errors import DeviceError
from .graph import cut, trace
from .pipeline import default_threads
from .pooling import pool

__all__ = ["Trunk", "choose_device", "default_batch_size"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PRECISIONS = ("fp32", *_AUTOCAST)


def choose_device(device: str, *, precision: str = "fp32") -> torch.device:
    """Give the device to compute on.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: CUDA where there is one, else the CPU.
    precision
        ``fp32``, ``bf16`` or ``fp16`` (CUDA only).

    Returns
    -------
    torch.device
        With its index where it is a CUDA device.

    Raises
    ------
    DeviceError
        When the device is unknown or absent, or cannot compute in this precision. Another device is never
        taken instead.
    """
    if precision not in _PRECISIONS:
        raise DeviceError(f"precision is one of {', '.join(_PRECISIONS)}, found {precision!r}")
    chosen = _cuda_or_cpu(device)
    if precision == "fp16" and chosen.type != "cuda":
        raise DeviceError(f"precision fp16 needs a CUDA device, and the device is {chosen}: use fp32 or bf16")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f"{torch.cuda.get_device_name(chosen)} has no bf16: use fp32 or fp16")
    return chosen


def default_batch_size(device: torch.device) -> int:
    """Give the images of a pass: 64 on CUDA; on a CPU two a core, from 4 to 64.

    Large activations cost a CPU more in fresh memory than large batches win: on two cores mobilenet_v2 forwards 77
    images a second at 4, 57 at 16 and 38 at 64, squeezenet1_1 227, 196 and 81, resnet18 53, 45 and 38.
    """
    return 64 if device.type == "cuda" else min(64, max(4, 2 * default_threads()))


class Trunk:
    """A backbone cut after the deepest of the columns' layers, on its device.

    The backbone's module is moved to the device (it is shared, not copied).

    Parameters
    ----------
    backbone
        Network and preprocessing.
    columns
        What to compute, each layer under its pooling; at least one.
    device, precision
        As ``choose_device`` takes them.
    batch_size
        Images of every pass, 1 or more.

    Raises
    ------
    DeviceError
        As ``choose_device``.
    WeightsError
        When the weights lack a tensor that a layer needs.
    """

    def __init__(
        self,
        backbone: Backbone,
        columns: Sequence[Column],
        *,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int = 64,
    ) -> None:
        if batch_size < 1 or not columns:
            raise ValueError(f"a trunk needs columns and a batch_size of at least 1, found {columns}, {batch_size}")
        self.device = choose_device(device, precision=precision)
        self.columns, self.batch_size = tuple(columns), batch_size
        self._autocast = _AUTOCAST.get(precision)
        self._layers = list(dict.fromkeys(column.layer for column in columns))
        backbone.require(self._layers)
        network = cut(trace(backbone.module), self._layers).eval()
        self._network = network.to(self.device).to(memory_format=torch.channels_last)
        self._crop = backbone.preprocess.crop
        self._mean = _per_channel(backbone.preprocess.mean, self.device)
        self._std = _per_channel(backbone.preprocess.std, self.device)

    def forward(self, pixels: np.ndarray) -> dict[Column, np.ndarray]:
        """Compute every column for up to ``batch_size`` images in one pass.

        Parameters
        ----------
        pixels
            uint8 of shape (n, 3, crop, crop), as ``load_image`` gives them, 1 <= n <= batch_size.

        Returns
        -------
        dict
            Column to float32 of shape (n, column.width), rows in the order of ``pixels``.

        Raises
        ------
        ValueError
            When shape or dtype is another.
        """
        n = len(pixels)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (3, self._crop, self._crop) or not 0 < n <= self.batch_size:
            raise ValueError(
                f"expected uint8 pixels (1 to {self.batch_size}, 3, {self._crop}, {self._crop}), "
                f"found {pixels.dtype} {pixels.shape}"
            )
        with torch.inference_mode(), _exact_fp32():
            maps = self._run(self._normalise(self._padded(pixels)))
            pooled = {c: pool(maps[c.layer], c.layout, c.pooling)[:n] for c in self.columns}
            return {column: rows.cpu().numpy() for column, rows in pooled.items()}

    def _padded(self, pixels: np.ndarray) -> Tensor:
        batch = np.zeros((self.batch_size, *pixels.shape[1:]), np.uint8)
        batch[: len(pixels)] = pixels
        return torch.from_numpy(batch).to(self.device)  # (B, 3, S, S)

    def _normalise(self, batch: Tensor) -> Tensor:
        images = batch.float().div_(255).sub_(self._mean).div_(self._std)  # (B, 3, S, S)
        return images.contiguous(memory_format=torch.channels_last)

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        enabled = self._autocast is not None
        with torch.autocast(self.device.type, dtype=self._autocast or torch.bfloat16, enabled=enabled):
            return dict(zip(self._layers, self._network(images), strict=True))


def _cuda_or_cpu(device: str) -> torch.device:
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if available else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as exc:
        raise DeviceError(f"no device {device!r}: it is auto, cpu, cuda or cuda:N") from exc
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise DeviceError(f"no device {device!r}: it is auto, cpu, cuda or cuda:N")
    index = chosen.index or 0
    if index >= available:
        raise DeviceError(f"device {device!r} is not there: torch finds {available} CUDA devices; use cpu or auto")
    return torch.device("cuda", index)


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Keep float32 products in float32 (cuDNN takes TF32 by default) and convolutions repeatable."""
    backends: list[Any] = [
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    ]
    before = [backend.fp32_precision for backend in backends]
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark
