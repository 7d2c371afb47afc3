"""One forward pass through the network, cut after the deepest layer, with every column pooled on the device.

Every pass has the same shape: a batch that is not full is padded with black images, whose rows are thrown away.
So a row does not depend on how many others happened to be in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, get_args

import numpy as np
import torch
from icecore.store import Column
from torch import Tensor, nn

from .backbone import Backbone
from .compiled import compiled_forward, is_kept, key_of, pays, seconds_of, speed_up
from .devices import choose_device
from .errors import CompileError
from .graph import cut, fold_batch_norms, trace
from .hooked import HookedNetwork
from .lanes import Lanes, as_a_lane, default_lanes
from .pooling import pool
from .preprocess import Preprocess
from .streams import CudaPlatform, Halving, Streams, is_shortage
from .view_passes import ViewPasses

__all__ = ["Compilation", "Trunk", "compiled_key"]

Compilation = Literal["auto", "always", "never"]
"""whether the forward pass is compiled; ``auto``: where it was before, or so many images wait that it pays"""

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
FEWEST = 400
"""Images below which ``auto`` does not even measure whether to compile."""
_BODY = 2
"""Counts the changes of ``_Body`` after which what was compiled of it before is another function."""


class Trunk:
    """A backbone cut after the deepest of the columns' layers, on its device. Close it when it is no longer needed.

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
        ``auto``, ``always`` or ``never``: on a CPU, compile the pass; on a GPU, record it as a CUDA graph.
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
        self._views = ViewPasses(backbone.views, self.columns)
        self._crop = backbone.preprocess.crop
        layers = list(dict.fromkeys(column.layer for column in columns))
        backbone.require(layers)
        network: nn.Module
        if backbone.hooks:
            network = HookedNetwork(backbone.module, layers, (batch_size, 3, self._crop, self._crop))
        else:
            network = fold_batch_norms(cut(trace(backbone.module), layers).eval())
        self._body = _Body(network, self._views.computed, layers, backbone.preprocess, precision)
        self._body.eval().to(self.device)
        self.engine = "eager"
        """``eager``, ``compiled``, or ``graph``"""
        self.why = ""
        """why it is not compiled, where that was to be decided"""
        self._runner: Lanes | Halving
        if self.device.type == "cuda":
            self._runner = self._on_gpu(backbone, compilation)
        else:
            count = 1 if backbone.hooks else default_lanes()  # hooks take what a thread runs one after the other
            self._runner = lanes = Lanes(
                self._body, batch_size, count, threads=default_lanes() // count, fills=not self._body.alone
            )
            try:
                with as_a_lane():
                    self._choose_engine(lanes, backbone, precision, compilation, images)
            except BaseException:
                lanes.close()
                raise

    @property
    def at_once(self) -> int:
        """Batches that may be under way: on a CPU two for each core, on a GPU one more than it works at."""
        return self._runner.at_once

    @property
    def pass_size(self) -> int:
        """Images of a pass: ``batch_size``, or what of it the device's memory had room for."""
        return self._runner.size

    @property
    def seconds(self) -> float:
        """Time that the device was at work; on a CPU the mean of its lanes."""
        return self._runner.seconds

    def start(self, pixels: np.ndarray) -> Callable[[], dict[Column, np.ndarray]]:
        """Begin a batch: one pass for each view of its images.

        Parameters
        ----------
        pixels
            uint8 of shape (n, 3, crop, crop), as ``load_image`` gives them, 1 <= n <= batch_size; or
            (n, crops, 3, crop, crop) where the views need it, as ``crops_for`` says. Left alone until the passes
            have ended.

        Returns
        -------
        callable
            To be called once: waits for the end, and gives column to float32 of shape (n, column.width), rows in the
            order of ``pixels``.

        Raises
        ------
        ValueError
            When shape or dtype is another.
        """
        n, shape = len(pixels), self._views.shape(self._crop)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not 0 < n <= self.batch_size:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"expected uint8 pixels (1 to {self.batch_size}, {expected}), found {pixels.dtype} {pixels.shape}"
            )
        wait = self._views.start(self._runner.start, pixels)
        return lambda: dict(zip(self.columns, wait(), strict=True))

    def forward(self, pixels: np.ndarray) -> dict[Column, np.ndarray]:
        """Begin a pass and wait for it; see ``start``."""
        return self.start(pixels)()

    def close(self) -> None:
        """Wait for what has begun and let go of threads and memory."""
        self._runner.close()

    def _on_gpu(self, backbone: Backbone, compilation: Compilation) -> Halving:
        record = compilation != "never" and not self._is_hooked(backbone, compilation)
        platform = CudaPlatform(self.device)
        widths = [column.width for column in self._views.computed]

        def make(size: int) -> Streams:
            nonlocal record
            shape = (size, 3, self._crop, self._crop)
            if record:
                try:
                    return Streams(self._body, shape, widths, platform, record=True)
                except RuntimeError as exc:
                    if is_shortage(exc):
                        raise
                    why = f"cannot be recorded as a CUDA graph ({(str(exc).splitlines() or [''])[0]})"
                    if compilation == "always":
                        raise CompileError(why) from exc
                    record, self.engine, self.why = False, "eager", why
            return Streams(self._body, shape, widths, platform, record=False, fills=not self._body.alone)

        self.engine = "graph" if record else "eager"
        return Halving(make, self.batch_size, torch.cuda.empty_cache)

    def _is_hooked(self, backbone: Backbone, compilation: Compilation) -> bool:
        if not backbone.hooks:
            return False
        self.why = "layers are taken by forward hooks, and what has these cannot be compiled"
        if compilation == "always":
            raise CompileError(f"{self.why}: {backbone.hooks}")
        return True

    def _choose_engine(
        self, lanes: Lanes, backbone: Backbone, precision: str, compilation: Compilation, images: int
    ) -> None:
        """Compile the pass where that is asked for, or was done before, or pays."""
        if compilation == "never" or self._is_hooked(backbone, compilation):
            return
        key = compiled_key(backbone, self.columns, precision, self.batch_size)
        example = self._example()
        if compilation == "auto" and not is_kept(key) and not self._would_pay(images, example, lanes.count):
            self.why = f"{images:,} images are too few to compile for"
            return
        try:
            forward = compiled_forward(key, self._body, example, precision=precision, at_once=lanes.count)
        except CompileError as exc:
            if compilation == "always":
                raise
            self.why = str(exc)
            return
        if compilation == "auto" and (speed_up(key) or 1.0) < 1.0:
            self.why = "compiled it was slower on this machine"
            return
        lanes.forward, self.engine = forward, "compiled"

    def _would_pay(self, images: int, example: Tensor, at_once: int) -> bool:
        return images >= FEWEST and pays(images, seconds_of(self._body, example) / self.batch_size / at_once)

    def _example(self) -> Tensor:
        """Give a batch of noise, the same each time."""
        noise = torch.Generator().manual_seed(0)
        shape = (self.batch_size, 3, self._crop, self._crop)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise)


def compiled_key(backbone: Backbone, columns: Sequence[Column], precision: str, batch_size: int) -> str:
    """Give the name under which the compiled pass over so many images is kept."""
    computed = ViewPasses(backbone.views, columns).computed
    return key_of(
        {
            "body": _BODY,
            "contract": backbone.contract(precision=precision).hash,
            "columns": [[column.name, column.layout, column.width] for column in computed],
            "batch_size": batch_size,
        }
    )


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
