"""The learning-rate finder: a short run in which the rate grows at each step, after Smith (2017), as fastai has it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from .backbone import Backbone
from .decoding import MAX_PIXELS
from .devices import choose_device
from .errors import TuningDivergedError, TuningError
from .tuning_data import Images, TrainingImage
from .tuning_loop import Loop
from .tuning_opening import StartHead, open_loop
from .tuning_options import TuningOptions

__all__ = ["FoundRate", "find_rate", "suggest"]

STEPS = 60
LEAST, MOST = 1e-7, 1.0
"""Rates of the first and of the last step, of the block next to the head."""
SMOOTH = 0.9
"""Weight of what was before in the running mean of the loss."""
NEAR = 1.1
"""Multiple of the lowest loss that is near it."""
FEWEST = 10
"""Steps of which something can be told."""
DIVERGED = 4.0
"""Multiple of the lowest loss at which it stops."""


@dataclass(frozen=True)
class FoundRate:
    """What the run showed."""

    rates: list[float]
    """rate of each step"""
    losses: list[float]
    """smoothed loss of each step"""
    suggested: float
    """a third of the largest rate at which the loss is near its lowest"""


def find_rate(
    backbone: Backbone,
    images: Sequence[TrainingImage],
    *,
    classes: Sequence[str],
    options: TuningOptions | None = None,
    start_head: StartHead | None = None,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> FoundRate:
    """Train some steps with ever larger rates; the weights are thrown away.

    Parameters are those of ``finetune_backbone``. All blocks learn, at the ratios of their peaks; nothing is kept of
    the frozen part, and the weights are not averaged.

    Raises
    ------
    TuningError
        As ``finetune_backbone``, and when the steps are too few to tell.
    """
    options = replace(options or TuningOptions(), head_epochs=0, gradual=0, keep_prefix="never", average=0.0)
    where = choose_device(device, precision=options.precision)
    with tempfile.TemporaryDirectory(prefix="icecore-rate-") as folder:
        work = copy.copy(backbone)
        object.__setattr__(work, "module", copy.deepcopy(backbone.module))
        opened = open_loop(
            work,
            Images(images, backbone.preprocess, augment=options.augment, seed=options.seed, max_pixels=max_pixels),
            classes=classes,
            options=options,
            start_head=start_head,
            device=where,
            workers=workers,
            threads=threads,
            folder=Path(folder),
        )
        with opened as loop, torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            torch.manual_seed(options.seed)
            loop.unlock(options.epochs)
            return _ramp(loop, options)


def _ramp(loop: Loop, options: TuningOptions) -> FoundRate:
    rates, losses, mean = list[float](), list[float](), 0.0
    batches = chain.from_iterable(loop.feed(epoch) for epoch in range(1, STEPS + 1))
    for step, (inputs, targets) in zip(range(STEPS), batches, strict=False):
        rate = LEAST * (MOST / LEAST) ** (step / (STEPS - 1))
        for group in loop.optimizer.param_groups:
            group["lr"] = rate * loop.rates[group["block"]] / options.learning_rate
        try:
            loss = loop.take(inputs, targets, f"step {step + 1}")
        except TuningDivergedError:
            break
        mean = SMOOTH * mean + (1 - SMOOTH) * loss
        rates.append(rate)
        losses.append(mean / (1 - SMOOTH ** (step + 1)))
        if losses[-1] > DIVERGED * min(losses):
            break
    return FoundRate(rates, losses, suggest(rates, losses))


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Give a third of the largest rate at which the loss is still near its lowest.

    A head that starts from a fitted model leaves no steep fall to look for: what shows is where learning breaks.

    Raises
    ------
    TuningError
        When there are too few steps to tell.
    """
    if len(rates) < FEWEST:
        raise TuningError(f"find_rate: only {len(rates)} steps, which tell nothing; take a smaller batch_size")
    lowest = int(np.argmin(losses))
    near = [step for step in range(lowest, len(losses)) if losses[step] <= NEAR * losses[lowest]]
    return rates[near[-1]] / 3
