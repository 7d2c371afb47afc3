"""One step of learning: forward, backward, clip, update; in parts where memory is short."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from .errors import DeviceError, TuningDivergedError
from .streams import is_shortage
from .tuning_options import TuningOptions

__all__ = ["Stepper", "class_weights", "diverged", "mixer"]


class Stepper:
    """Takes steps; remembers how many images fit into memory at once.

    Parameters
    ----------
    model
        From crossing tensors to sums of classes.
    optimizer
        Holds all that learns.
    options
        Smoothing, clipping, precision.
    weights
        (k,) weight of each class, or None.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: TuningOptions, weights: Tensor | None = None
    ) -> None:
        self._model, self._optimizer, self._options, self._weights = model, optimizer, options, weights
        self.at_once = options.batch_size
        """images of a forward pass; halved where memory runs out"""
        self.scaler: Any = torch.amp.GradScaler("cuda", enabled=options.precision == "fp16")
        """scales losses of half precision"""

    def take(self, inputs: Sequence[Tensor], targets: Tensor, *, where: str) -> float:
        """Learn from a batch; give its mean loss.

        Parameters
        ----------
        inputs
            Crossing tensors, (B, ...) each, on the device.
        targets
            (B,) int64 classes, or (B, k) shares of classes.
        where
            Says which step it is, for the error.

        Raises
        ------
        TuningDivergedError
            When the loss is NaN or infinite; nothing was updated.
        DeviceError
            When there is no memory for a single image.
        """
        norms_learn = self._options.batch_norm == "train"
        buffers = {name: value.clone() for name, value in self._model.named_buffers() if norms_learn}
        state = torch.get_rng_state()
        while True:
            try:
                loss = self._gradients(inputs, targets, where)
                break
            except RuntimeError as exc:
                if not is_shortage(exc):
                    raise
                if self.at_once == 1:
                    raise DeviceError(f"{where}: no memory left for one image at a time ({exc})") from exc
            self.at_once = -(-min(self.at_once, len(targets)) // 2)
            torch.set_rng_state(state)
            for name, value in self._model.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])
            if inputs[0].is_cuda:
                torch.cuda.empty_cache()
        self._update()
        return loss

    def _gradients(self, inputs: Sequence[Tensor], targets: Tensor, where: str) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        total = self._total(targets)
        lost = 0.0
        for start in range(0, len(targets), self.at_once):
            part = slice(start, start + self.at_once)
            loss = self._loss(self._model(*(value[part] for value in inputs)), targets[part]) / total
            if not bool(torch.isfinite(loss)):
                raise diverged(where, loss.item())
            self.scaler.scale(loss).backward()
            lost += float(loss.detach())
        return lost

    def _loss(self, sums: Tensor, targets: Tensor) -> Tensor:
        """Give the sum over images of their weighted cross-entropy."""
        return functional.cross_entropy(
            sums, targets, weight=self._weights, reduction="sum", label_smoothing=self._options.label_smoothing
        )

    def _total(self, targets: Tensor) -> float:
        """Give what the sum is divided by: the images, or their weights."""
        if self._weights is None:
            return float(len(targets))
        return float(self._weights[targets].sum())

    def _update(self) -> None:
        if self._options.clip:
            self.scaler.unscale_(self._optimizer)
            learned = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
            nn.utils.clip_grad_norm_(learned, self._options.clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()


def diverged(where: str, loss: float) -> TuningDivergedError:
    """Give the error of a loss that is no number any more."""
    return TuningDivergedError(
        f"{where}: the loss is {loss}; lower learning_rate and head_learning_rate, or clip gradients shorter. The best "
        "epoch before is kept: --finish takes it"
    )


def class_weights(labels: NDArray[np.int64], classes: int, device: torch.device) -> Tensor:
    """Give (k,) weights under which all classes count alike, their mean over the images being 1."""
    counts = np.bincount(labels, minlength=classes)
    return torch.tensor(len(labels) / (classes * np.maximum(counts, 1)), dtype=torch.float32, device=device)


def mixer(options: TuningOptions, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Give what mixes the images of a batch as asked, or None."""
    from torchvision.transforms import v2

    chosen: list[Any] = []
    if options.mixup:
        chosen.append(v2.MixUp(alpha=options.mixup, num_classes=classes))
    if options.cutmix:
        chosen.append(v2.CutMix(alpha=options.cutmix, num_classes=classes))
    if not chosen:
        return None
    pick = v2.RandomChoice(chosen)

    def mix(pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if len(pixels) < 2:
            return pixels.float(), functional.one_hot(labels, classes).float()
        mixed: tuple[Tensor, Tensor] = pick(pixels.float(), labels)
        return mixed

    return mix
