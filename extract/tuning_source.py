"""What the learning part is fed: batches of crossing tensors, kept from before or made anew from pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import TuningError
from .tuning_cache import KeptView, room_for
from .tuning_data import PLAIN, Images, Views, read_plain
from .tuning_options import TuningOptions
from .tuning_split import Frozen

__all__ = ["Fed", "Source", "default_workers"]

PASS = 16
"""Images of a pass of the frozen part where nothing learns meanwhile."""


class Fed(NamedTuple):
    """A batch for the learning part."""

    inputs: tuple[Tensor, ...]
    """crossing tensors, (B, ...) each, on the device; the pixels where nothing was divided off"""
    rows: NDArray[np.int64]
    """(B,) positions of their images"""


class Source:
    """Feeds the views of images through the frozen part. Close it.

    Parameters
    ----------
    images
        All images, training and validation.
    frozen
        The frozen part, on its device.
    options
        Which views there are, and whether to keep what is given for them.
    folder
        Where to keep it.
    device
        Where the network is.
    workers, threads
        Processes that make random views, and threads that read plain ones.

    Raises
    ------
    TuningError
        When views must be kept and there is no room for them.
    """

    def __init__(
        self,
        images: Images,
        frozen: Frozen,
        options: TuningOptions,
        folder: Path,
        *,
        device: torch.device,
        workers: int,
        threads: int,
    ) -> None:
        self._images, self._frozen, self._options, self._folder = images, frozen, options, folder
        self._device, self._workers, self._threads = device, workers, threads
        self._kept: dict[int, KeptView] = {}
        self._views: Views | None = None
        self.skipped: dict[int, str] = {}
        """positions of images that could not be read, with the reason"""
        self.keeps_plain = options.keep_prefix != "never" and self._fits(1)
        """whether what is given for plain views, of validation say, is kept"""
        self.keeps_views = self.keeps_plain and bool(options.fixed_views) and self._fits(1 + options.views)
        """whether what is given for training views is kept"""

        if options.keep_prefix == "always" and not self.keeps_views:
            raise TuningError(
                f"keep_prefix: always, and there is no room in {folder.parent} for what the frozen part gives; free "
                "some, take fewer views, or auto, which computes it anew"
            )

    def survey(self) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, ...]]]:
        """Go through the plain views of all images once: positions, and crossing tensors; keeps them where it can."""
        kept = KeptView(self._folder, "plain", len(self._images)) if self.keeps_plain else None
        for rows, inputs in self._plain(range(len(self._images))):
            if kept is not None:
                kept.write(rows.tolist(), inputs)
            yield rows, inputs
        if kept is not None:
            kept.finish(self.skipped)
            self._kept[PLAIN] = kept

    def has_survey(self) -> bool:
        """Say whether plain views need no reading: an earlier run kept them, or none are kept."""
        if not self.keeps_plain:
            return True
        kept = KeptView(self._folder, "plain", len(self._images))
        if kept.open():
            self.skipped.update(kept.skipped)
            self._kept[PLAIN] = kept
            return True
        return False

    def plain(self, rows: Sequence[int], size: int) -> Iterator[Fed]:
        """Feed the plain views of some images, in their order."""
        kept = self._kept.get(PLAIN)
        good = [row for row in rows if row not in self.skipped]
        if kept is None:
            yield from (Fed(inputs, found) for found, inputs in self._plain(good))
            return
        for start in range(0, len(good), size):
            part = good[start : start + size]
            yield Fed(self._placed(kept.read(part)), np.array(part))

    def training(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[Fed]:
        """Feed the views of an epoch, from 1, batch by batch; images that cannot be read are left out."""
        view = self._view_of(epoch)
        if self.keeps_views:
            kept = self._keep(view, sorted({row for batch in batches for row in batch}))
            for batch in batches:
                good = [row for row in batch if row not in self.skipped]
                yield Fed(self._placed(kept.read(good)), np.array(good, dtype=np.int64))
            return
        for rows, pixels in self._read([[(row, view) for row in batch] for batch in batches]):
            yield Fed(self._frozen(pixels.to(self._device)), rows)

    def pixels(self, batches: Sequence[Sequence[int]], epoch: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Give the pixels of an epoch's views on the device, for those who mix them before ``frozen``."""
        view = self._view_of(epoch)
        for rows, pixels in self._read([[(row, view) for row in batch] for batch in batches]):
            yield rows, pixels.to(self._device)

    def frozen(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Run the frozen part."""
        outputs: tuple[Tensor, ...] = self._frozen(pixels)
        return outputs

    def close(self) -> None:
        """End the processes that read."""
        if self._views is not None:
            self._views.close()

    def _view_of(self, epoch: int) -> int:
        if self._options.augment == "none":
            return PLAIN
        return (epoch - 1) % self._options.views if self._options.views else epoch - 1

    def _keep(self, view: int, rows: Sequence[int]) -> KeptView:
        if view not in self._kept:
            kept = KeptView(self._folder, f"view{view}", len(self._images))
            if not kept.open():
                for start in range(0, len(rows), 16 * PASS):
                    some = rows[start : start + 16 * PASS]
                    parts = [some[at : at + PASS] for at in range(0, len(some), PASS)]
                    for found, pixels in self._read([[(row, view) for row in part] for part in parts]):
                        kept.write(found.tolist(), self.frozen(pixels.to(self._device)))
                kept.finish(self.skipped)
            self.skipped.update(kept.skipped)
            self._kept[view] = kept
        return self._kept[view]

    def _read(self, keys: Sequence[Sequence[tuple[int, int]]]) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        good = [[key for key in batch if key[0] not in self.skipped] for batch in keys]
        if self._views is None:
            self._views = Views(self._images, workers=self._workers)
        for batch in self._views.batches([batch for batch in good if batch]):
            self.skipped.update(batch.failed)
            if len(batch.rows):
                yield batch.rows, batch.pixels

    def _plain(self, rows: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], tuple[Tensor, ...]]]:
        wanted = list(rows)
        waiting: list[tuple[int, np.ndarray]] = []
        for row, pixels in read_plain(self._images, wanted, threads=self._threads):
            if isinstance(pixels, str):
                self.skipped[row] = pixels
                continue
            waiting.append((row, pixels))
            if len(waiting) == PASS:
                yield self._forwarded(waiting)
                waiting = []
        if waiting:
            yield self._forwarded(waiting)

    def _forwarded(self, some: Sequence[tuple[int, np.ndarray]]) -> tuple[NDArray[np.int64], tuple[Tensor, ...]]:
        pixels = torch.from_numpy(np.stack([pixels for _, pixels in some])).to(self._device)
        return np.array([row for row, _ in some]), self.frozen(pixels)

    def _placed(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(_channels_last(tensor.to(self._device)) for tensor in tensors)

    def _fits(self, views: int) -> bool:
        side = self._images.preprocess.crop
        example = self.frozen(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self._device))
        each = sum(tensor.numel() * tensor.element_size() for tensor in example)
        return room_for(self._folder, each * len(self._images) * views)


def default_workers(device: torch.device) -> int:
    """Give the processes that make random views: a GPU must be fed; on a CPU the network needs the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores) if device.type == "cuda" else max(1, cores // 4)


def _channels_last(tensor: Tensor) -> Tensor:
    is_map = tensor.ndim == 4 and tensor.is_floating_point()
    return tensor.contiguous(memory_format=torch.channels_last) if is_map else tensor
