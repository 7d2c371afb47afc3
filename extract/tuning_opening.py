"""Make a backbone ready to learn: head, groups, both parts of the network, the images, and where the head starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .backbone import Backbone
from .errors import TuningError
from .pipeline import default_threads
from .tuning_data import Images, cut_validation, seed_of
from .tuning_head import Head, pooled_inputs, put_head, set_head
from .tuning_layers import Group, choose_groups, covers
from .tuning_loop import Loop
from .tuning_options import TuningOptions
from .tuning_source import Source, default_workers
from .tuning_split import divide_network
from .tuning_state import TuningState

__all__ = ["StartHead", "open_loop", "prepare_network"]

StartHead = Callable[[NDArray[np.float32], NDArray[np.int64]], tuple[NDArray[Any], NDArray[Any]]]
"""from frozen features (m, F) and classes (m,) to the weights (k, F) and the bias (k,) of a linear classifier"""


@contextmanager
def open_loop(
    backbone: Backbone,
    images: Images,
    *,
    classes: Sequence[str],
    options: TuningOptions,
    start_head: StartHead | None,
    device: torch.device,
    workers: int | None,
    threads: int | None,
    folder: Path,
    lost: Mapping[int, str] | None = None,
    state: TuningState | None = None,
) -> Iterator[Loop]:
    """Give a loop that can run, or go on from a state; its readers end with the block.

    Parameters
    ----------
    backbone
        Changed: its network gets a head and moves to the device.
    images
        Training and validation images.
    folder
        Of the job.
    lost
        Positions of images that cannot be read, with the reason.
    state
        What an earlier run had reached.

    Others are those of ``finetune_backbone``.
    """
    network = backbone.module
    head, groups = prepare_network(backbone, len(classes), options)
    network.to(device)
    learned = {*covers(groups), *(f"{head.name}.{name}" for name, _ in head.module.named_parameters())}
    divided = divide_network(
        network,
        learned,
        images.preprocess,
        precision=options.precision,
        norms_learn=options.batch_norm == "train",
        twice=options.recompute,
    )
    divided.frozen.to(device)
    divided.learning.to(device)
    source = Source(
        images,
        divided.frozen,
        options,
        folder / "kept",
        device=device,
        workers=default_workers(device) if workers is None else workers,
        threads=default_threads("exact") if threads is None else max(1, threads),
    )
    try:
        source.skipped.update(lost or {})
        source.skipped.update({int(row): why for row, why in state.skipped.items()} if state else {})
        labels = np.array([image.label for image in images.images], dtype=np.int64)
        held = cut_validation(images.images, options.validation, options.seed)
        if state is None or not source.has_survey():
            inputs = _survey(source, divided.learning, head)
            _check_classes(labels, [row for row in inputs if not held[row]], classes)
            if state is None and options.start == "logistic_regression":
                assert start_head is not None  # it was asked for
                _start(start_head, head, inputs, labels, held)
        loop = Loop(
            network,
            head,
            groups,
            divided,
            source,
            labels=labels,
            training=np.flatnonzero(~held),
            validation=np.flatnonzero(held),
            classes=len(classes),
            options=options,
            folder=folder,
        )
        if state is not None:
            loop.resume(state)
        yield loop
    finally:
        source.close()


def prepare_network(backbone: Backbone, classes: int, options: TuningOptions) -> tuple[Head, tuple[Group, ...]]:
    """Put a head on a backbone's network and choose what learns; all else is frozen.

    Raises
    ------
    TuningError, UnknownLayerError
        As ``put_head`` and ``choose_groups``; also when the weights lack a tensor before the head.
    """
    network = backbone.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("head", options.seed))
        head = put_head(network, classes)
    absent = sorted(
        name
        for name in {*backbone.loading.missing, *backbone.loading.misshapen}
        if name in network.state_dict() and not name.startswith(f"{head.name}.")
    )
    if absent:
        raise TuningError(
            f"{backbone.weights_words}: {len(absent)} tensors before the head are not in the file, {absent[0]} the "
            "first: a network is fine-tuned from whole weights"
        )
    groups = choose_groups(network, options.unfreeze, head=head.name)
    network.eval().requires_grad_(False)
    return head, groups


def _survey(source: Source, learning: nn.Module, head: Head) -> dict[int, NDArray[np.float32]]:
    """Go through all images once; gives what the head sees of each, (F,)."""
    found: dict[int, NDArray[np.float32]] = {}
    seen: list[torch.Tensor] = []
    handle = head.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    learning.eval()
    try:
        with torch.no_grad():
            for rows, inputs in source.survey():
                learning(*inputs)
                values = pooled_inputs(seen.pop().float()).cpu().numpy()
                found.update(zip(rows.tolist(), values, strict=True))
    finally:
        handle.remove()
    return found


def _check_classes(labels: NDArray[np.int64], rows: Sequence[int], classes: Sequence[str]) -> None:
    lacking = sorted(set(range(len(classes))) - set(labels[list(rows)].tolist()))
    if lacking:
        raise TuningError(
            f"class {classes[lacking[0]]!r}: no image of it is left to train on; add some, or lower validation"
        )


def _start(
    start_head: StartHead,
    head: Head,
    inputs: Mapping[int, NDArray[np.float32]],
    labels: NDArray[np.int64],
    held: NDArray[np.bool_],
) -> None:
    rows = [row for row in inputs if not held[row]]
    weight, bias = start_head(np.stack([inputs[row] for row in rows]), labels[rows])
    set_head(head, np.asarray(weight), np.asarray(bias))
