"""Train a network from random initialisation, to have a frozen one where no published weights can be had.

The loop is that of fine-tuning, with everything unfrozen; `icecore demo` makes its source task with it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from icecore.store.durable import write_bytes

from .backbone import Backbone
from .builders import find_builder
from .devices import choose_device
from .preprocess import Preprocess
from .tuning_data import Images, TrainingImage
from .tuning_loop import Epoch
from .tuning_opening import open_loop
from .tuning_options import TuningOptions
from .tuning_state import TuningState
from .weights import Loading, hashed_names

__all__ = ["PretrainReport", "pretrain"]


@dataclass(frozen=True)
class PretrainReport:
    """What came of it."""

    loss: float
    """cross-entropy of the images kept for validation"""
    accuracy: float
    """share of these called right"""
    parameters: int
    """trained parameters"""
    epoch: int
    """epoch whose weights these are"""


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
    workers: int = 0,
    progress: Callable[[Epoch], None] = lambda epoch: None,
) -> PretrainReport:
    """Train a torchvision model on labelled images and save its weights; torch's random state stays as it was.

    All of it learns at one rate, batch norms included, on images shifted by up to an eighth of their side. The epoch
    with the lowest loss on a validation part of 15 % is kept. Weights of the classifier are saved too; extraction
    ignores what lies beyond its deepest layer.

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
    epochs, batch_size, learning_rate, seed, device, workers
        As ``TuningOptions`` and ``finetune_backbone`` take them; the same seed gives the same weights on the same
        machine and thread count.
    progress
        Called after each epoch.

    Raises
    ------
    ValueError
        When there is not one label an image.
    TuningError
        When images cannot be read, or are too few to keep some for validation.
    """
    from safetensors.torch import save

    if len(images) != len(labels):
        raise ValueError(f"pretrain: {len(images)} images, {len(labels)} labels; give one each")
    classes = [str(label) for label in range(max(labels) + 1)]
    options = TuningOptions(
        unfreeze="all",
        epochs=epochs,
        head_epochs=0,
        start="random",
        learning_rate=learning_rate,
        head_learning_rate=learning_rate,
        layer_decay=1.0,
        batch_size=batch_size,
        batch_norm="train",
        augment="shift",
        patience=0,
        seed=seed,
    )
    rows = [TrainingImage(str(path), path, label) for path, label in zip(images, labels, strict=True)]
    backbone = _untrained(name, len(classes), preprocess)
    with tempfile.TemporaryDirectory(prefix="icecore-pretrain-") as folder:
        opened = open_loop(
            backbone,
            Images(rows, preprocess, augment=options.augment, seed=seed),
            classes=classes,
            options=options,
            start_head=None,
            device=choose_device(device),
            workers=workers,
            threads=None,
            folder=Path(folder),
        )
        with opened as loop:
            state = loop.run(TuningState(), progress)
    assert state.best is not None  # the backbone learns from the first epoch on
    best = next(epoch for epoch in state.history if epoch["epoch"] == state.best.epoch)
    tensors = {**backbone.module.state_dict(), **state.best.tensors}
    write_bytes(out, save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}))
    parameters = sum(parameter.numel() for parameter in backbone.module.parameters())
    return PretrainReport(best["validation_loss"], best["validation_accuracy"], parameters, state.best.epoch)


def _untrained(name: str, classes: int, preprocess: Preprocess) -> Backbone:
    builder = find_builder(name)
    arguments = {"num_classes": classes}
    module = builder.build(arguments)
    return Backbone(
        builder=builder,
        module=module,
        arguments=arguments,
        preprocess=preprocess,
        weights_sha256="",
        source={"backbone": builder.name, "weights": None, "preprocess": "given field by field"},
        loading=Loading(hashed_names(module), frozenset(), {}, frozenset()),
    )
