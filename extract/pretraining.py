"""Train a small network from random initialisation, to have a frozen one where no published weights can be had.

For images that fit in memory; `icecore demo` makes its source task with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from icecore.store.durable import write_bytes
from torch import Tensor, nn

from .builders import find_builder
from .devices import choose_device
from .loaders import open_loader
from .preprocess import Preprocess

__all__ = ["PretrainReport", "pretrain"]


@dataclass(frozen=True)
class PretrainReport:
    """What came of it."""

    loss: float
    """cross-entropy of the last epoch, with label smoothing"""
    accuracy: float
    """share of the training images called right at the end"""
    parameters: int
    """trained parameters"""


def pretrain(
    name: str,
    images: Sequence[Path],
    labels: Sequence[int],
    out: Path,
    *,
    preprocess: Preprocess,
    epochs: int = 5,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PretrainReport:
    """Train a torchvision model on labelled images and save its weights; torch's random state stays as it was.

    AdamW under a one-cycle schedule (Smith & Topin 2018), label smoothing 0.1, random shifts of up to an eighth of
    the side. Weights of the classifier are saved too; extraction ignores what lies beyond its deepest layer.

    Parameters
    ----------
    name
        torchvision classification model.
    images, labels
        Image files, and the class of each as an integer from 0.
    out
        ``.safetensors`` file to write; it appears whole or not at all.
    preprocess
        Size and normalisation.
    epochs, batch_size, learning_rate, seed, device
        The usual; the same seed gives the same weights on the same machine and thread count.
    progress
        Called after each step with steps done and to do.

    Raises
    ------
    ValueError
        When there are fewer images than one batch, or not one label an image.
    ImageError
        When an image cannot be read.
    """
    from safetensors.torch import save

    if len(images) != len(labels) or len(images) < batch_size:
        raise ValueError(
            f"pretrain: {len(images)} images, {len(labels)} labels; give one each, and at least {batch_size}"
        )
    where = choose_device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        net, report = _train(name, images, labels, preprocess, where, epochs, batch_size, learning_rate, seed, progress)
    tensors = {key: tensor.cpu().contiguous() for key, tensor in net.state_dict().items()}
    write_bytes(out, save(tensors))
    return report


def _train(
    name: str,
    images: Sequence[Path],
    labels: Sequence[int],
    preprocess: Preprocess,
    where: torch.device,
    *schedule: Any,
) -> tuple[nn.Module, PretrainReport]:
    net = find_builder(name).build({"num_classes": max(labels) + 1}).requires_grad_(True).to(where)
    pixels = _pixels(images, preprocess, where).to(where)  # (N, 3, H, W)
    classes = torch.tensor(labels, device=where)  # (N,)
    loss = _fit(net, pixels, classes, *schedule)
    net.eval()
    with torch.inference_mode():
        called = torch.cat([net(chunk).argmax(1) for chunk in torch.split(pixels, 256)])
    accuracy = float((called == classes).float().mean())
    return net, PretrainReport(loss, accuracy, sum(p.numel() for p in net.parameters()))


def _pixels(images: Sequence[Path], preprocess: Preprocess, where: torch.device) -> Tensor:
    """Load all images, normalised: (N, 3, H, W) float32."""
    with closing(open_loader(preprocess, device=where)) as loader:
        raw = torch.from_numpy(np.stack([loader.load(path.read_bytes()) for path in images]))
    mean = torch.tensor(preprocess.mean)[:, None, None]
    std = torch.tensor(preprocess.std)[:, None, None]
    return (raw.float() / 255 - mean) / std


def _fit(
    net: nn.Module,
    pixels: Tensor,
    classes: Tensor,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> float:
    """Run the schedule; give the mean loss of the last epoch."""
    chance = torch.Generator().manual_seed(seed)
    steps = len(pixels) // batch_size
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    reach = pixels.shape[-1] // 8
    losses: list[float] = []
    net.train()
    for epoch in range(epochs):
        losses.clear()
        for step, chosen in enumerate(
            torch.randperm(len(pixels), generator=chance)[: steps * batch_size].view(steps, -1)
        ):
            shift = torch.randint(-reach, reach + 1, (2,), generator=chance).tolist()
            batch = pixels[chosen.to(pixels.device)].roll(shift, (2, 3))  # (B, 3, H, W)
            loss = criterion(net(batch), classes[chosen.to(pixels.device)])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress(epoch * steps + step + 1, epochs * steps)
    return sum(losses) / len(losses)
