"""One forward pass through the network, cut after the deepest layer, with every column pooled on the device.

Every pass has the same shape: a batch that is not full is padded with black images, whose rows are thrown away.
So a row does not depend on how many others happened to be in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal, get_args

import numpy as np
import torch
from icecore.store import Column
from torch import Tensor, nn

from .backbone import Backbone
from .compiled import Forward, compiled_forward, is_kept, key_of, pays, seconds_of, speed_up
from .devices import choose_device, exact_fp32
from .errors import CompileError
from .graph import cut, fold_batch_norms, trace
from .hooked import HookedNetwork
from .pooling import pool
from .preprocess import Preprocess
from .view_passes import ViewPasses

__all__ = ["Compilation", "Trunk"]

Compilation = Literal["auto", "always", "never"]
"""whether the forward pass is compiled; ``auto``: where it was before, or so many images wait that it pays"""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FEWEST = 400
"""Images below which ``auto`` does not even measure whether to compile."""
_BODY = 1
"""Counts the changes of ``_Body`` after which what was compiled of it before is another function."""


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
    compilation
        ``auto``, ``always`` (CPU only) or ``never``.
    images
        Number of images that wait, by which ``auto`` decides.

    Raises
    ------
    DeviceError
        As ``choose_device``.
    CompileError
        When ``always`` is not possible.
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
        compilation: Compilation = "never",
        images: int = 0,
    ) -> None:
        if batch_size < 1 or not columns:
            raise ValueError(f"a trunk needs columns and a batch_size of at least 1, found {columns}, {batch_size}")
        if compilation not in get_args(Compilation):
            raise ValueError(f"expected compilation to be {', '.join(get_args(Compilation))}; found {compilation!r}")
        self.device = choose_device(device, precision=precision)
        self.columns, self.batch_size = tuple(columns), batch_size
        self._passes = ViewPasses(backbone.views, self.columns)
        self._crop = backbone.preprocess.crop
        layers = list(dict.fromkeys(column.layer for column in columns))
        backbone.require(layers)
        network: nn.Module
        if backbone.hooks:
            network = HookedNetwork(backbone.module, layers, (batch_size, 3, self._crop, self._crop))
        else:
            network = fold_batch_norms(cut(trace(backbone.module), layers).eval())
        self._body = _Body(network, self._passes.computed, layers, backbone.preprocess, precision)
        self._body.eval().to(self.device)
        self._forward: Forward = self._body
        self.engine = "eager"
        """``eager``, or ``compiled``"""
        self.why = ""
        """why it is not compiled, where that was to be decided"""
        with torch.inference_mode(), exact_fp32(self.device):
            self._choose_engine(backbone, precision, compilation, images)

    def forward(self, pixels: np.ndarray) -> dict[Column, np.ndarray]:
        """Compute every column for up to ``batch_size`` images, in one pass for each of their views.

        Parameters
        ----------
        pixels
            uint8 of shape (n, 3, crop, crop), as ``load_image`` gives them, 1 <= n <= batch_size; or
            (n, crops, 3, crop, crop) where the views need it, as ``crops_for`` says.

        Returns
        -------
        dict
            Column to float32 of shape (n, column.width), rows in the order of ``pixels``.

        Raises
        ------
        ValueError
            When shape or dtype is another.
        """
        n, shape = len(pixels), self._passes.shape(self._crop)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not 0 < n <= self.batch_size:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"expected uint8 pixels (1 to {self.batch_size}, {expected}), found {pixels.dtype} {pixels.shape}"
            )
        with torch.inference_mode(), exact_fp32(self.device):
            pooled = self._passes.run(lambda view: self._forward(self._padded(view)), pixels)
            return {column: rows[:n].cpu().numpy() for column, rows in zip(self.columns, pooled, strict=True)}

    def _padded(self, pixels: np.ndarray) -> Tensor:
        rows = len(pixels) if self._body.alone else self.batch_size
        batch = np.zeros((rows, *pixels.shape[1:]), np.uint8)
        batch[: len(pixels)] = pixels
        return torch.from_numpy(batch).to(self.device)  # (B, 3, S, S)

    def _choose_engine(self, backbone: Backbone, precision: str, compilation: Compilation, images: int) -> None:
        """Compile the pass where that is asked for, or was done before, or pays."""
        if compilation == "never":
            return
        if self.device.type != "cpu" and compilation == "auto":
            return
        if self.device.type != "cpu":
            raise CompileError(f"compilation = 'always' is for a CPU, and the device is {self.device}")
        if backbone.hooks:
            self.why = "layers are taken by forward hooks, and what has these cannot be compiled"
            if compilation == "always":
                raise CompileError(f"{self.why}: {backbone.hooks}")
            return
        key = key_of(
            {
                "body": _BODY,
                "contract": backbone.contract(precision=precision).hash,
                "columns": [[column.name, column.layout, column.width] for column in self._passes.computed],
                "batch_size": self.batch_size,
            }
        )
        example = self._example()
        if compilation == "auto" and not is_kept(key) and not self._would_pay(images, example):
            self.why = f"{images:,} images are too few to compile for"
            return
        try:
            forward = compiled_forward(key, self._body, example, precision=precision)
        except CompileError as exc:
            if compilation == "always":
                raise
            self.why = str(exc)
            return
        if compilation == "auto" and (speed_up(key) or 1.0) < 1.0:
            self.why = "compiled it was slower on this machine"
            return
        self._forward, self.engine = forward, "compiled"

    def _would_pay(self, images: int, example: Tensor) -> bool:
        return images >= FEWEST and pays(images, seconds_of(self._body, example) / self.batch_size)

    def _example(self) -> Tensor:
        """Give a batch of noise, the same each time."""
        noise = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, self._crop, self._crop)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)


class _Body(nn.Module):
    """From uint8 pixels, (B, 3, S, S), to the columns, float32 of (B, D) each."""

    def __init__(
        self,
        network: nn.Module,
        columns: Sequence[Column],
        layers: Sequence[str],
        preprocess: Preprocess,
        precision: str,
    ) -> None:
        super().__init__()
        self._network = network.to(memory_format=torch.channels_last)
        self.alone = isinstance(network, HookedNetwork) and network.alone
        """whether each image is run alone, so that no batch need be filled"""
        self._columns, self._layers = tuple(columns), tuple(layers)
        self._autocast = _AUTOCAST.get(precision)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _per_channel(preprocess.mean))
        self.register_buffer("std", _per_channel(preprocess.std))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Normalise, run the network, and pool."""
        images = pixels.float().div_(255).sub_(self.mean).div_(self.std)  # (B, 3, S, S)
        images = images.contiguous(memory_format=torch.channels_last)
        if isinstance(self._network, HookedNetwork):
            parts = torch.split(images, 1) if self.alone else (images,)
            rows = zip(*(self._pooled_or_nan(part) for part in parts), strict=True)
            return tuple(torch.cat(column) for column in rows)
        maps = dict(zip(self._layers, self._run(images), strict=True))
        return tuple(pool(maps[c.layer], c.layout, c.pooling) for c in self._columns)

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(images.device.type, dtype=self._autocast) if self._autocast else nullcontext():
            outputs: tuple[Tensor, ...] = self._network(images)
        return outputs

    def _pooled_or_nan(self, images: Tensor) -> list[Tensor]:
        """Pool what hooks gave; NaN, which the store refuses, where these images took a way round a layer."""
        maps: dict[str, Tensor | None] = dict(zip(self._layers, self._run(images), strict=True))
        found = []
        for c in self._columns:
            output = maps[c.layer]
            fits = output is not None and output.ndim == len(c.layout)
            rows = pool(output, c.layout, c.pooling) if output is not None and fits else None
            is_right = rows is not None and rows.shape == (len(images), c.width)
            found.append(rows if rows is not None and is_right else images.new_full((len(images), c.width), math.nan))
        return found


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
