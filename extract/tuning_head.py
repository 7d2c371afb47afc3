"""The classifier at the end of a network: where it is, and a new one in its place.

A head is the last linear layer, or the last 1 x 1 convolution, as SqueezeNet has one. All before it stays, also
layers of the old classifier such as those of VGG. What turns the sums of a convolution into classes comes after it
and stays, but for a ReLU, which would cut off what is below zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .errors import TuningError

__all__ = ["Head", "pooled_inputs", "put_head", "set_head"]


@dataclass(frozen=True)
class Head:
    """A new classifier within a network."""

    name: str
    """path of its module"""
    module: nn.Linear | nn.Conv2d
    """the module itself: a linear map of ``width`` numbers, at one place or at many"""
    width: int
    """its input's length, F"""


def put_head(network: nn.Module, classes: int) -> Head:
    """Put a new, untrained head in place of the network's classifier; changes ``network``.

    Raises
    ------
    TuningError
        When the network has no linear layer and no 1 x 1 convolution.
    """
    found = [
        (name, part)
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1))
    ]
    # within multi-head attention the projection is no module that is called by itself
    found = [(name, part) for name, part in found if type(part) in (nn.Linear, nn.Conv2d)]
    if not found:
        kind = type(network).__name__
        raise TuningError(f"{kind}: no linear layer and no 1 x 1 convolution that could be its classifier")
    name, old = found[-1]
    new: nn.Linear | nn.Conv2d
    if isinstance(old, nn.Linear):
        width = old.in_features
        new = nn.Linear(width, classes)
    else:
        width = old.in_channels
        new = nn.Conv2d(width, classes, 1)
    network.set_submodule(name, new)
    _drop_relu_after(network, name)
    nn.init.trunc_normal_(new.weight, std=0.01)
    assert new.bias is not None
    nn.init.zeros_(new.bias)
    return Head(name, new, width)


def set_head(head: Head, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> None:
    """Give a head the weights of a linear model.

    Parameters
    ----------
    weight, bias
        (k, F) and (k,): what multiplies the head's input, and what is added.

    Raises
    ------
    TuningError
        When shapes do not fit, or a number is not finite.
    """
    expected = head.module.weight.shape[:2]
    if weight.shape != tuple(expected) or bias.shape != (expected[0],):
        raise TuningError(f"head: weights of shape {weight.shape} and {bias.shape}, expected {tuple(expected)}")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise TuningError("head: its weights hold NaN or infinity")
    assert head.module.bias is not None
    with torch.no_grad():
        head.module.weight.copy_(torch.from_numpy(np.asarray(weight, np.float32)).view_as(head.module.weight))
        head.module.bias.copy_(torch.from_numpy(np.asarray(bias, np.float32)))


def pooled_inputs(inputs: Tensor) -> Tensor:
    """Give what a linear model sees of a head's input: itself, or the mean over the places: (N, F)."""
    return inputs.mean(dim=(2, 3)) if inputs.ndim == 4 else inputs


def _drop_relu_after(network: nn.Module, name: str) -> None:
    parent, _, last = name.rpartition(".")
    owner = network.get_submodule(parent) if parent else network
    if isinstance(owner, nn.Sequential) and last.isdigit():
        following = int(last) + 1
        if following < len(owner) and isinstance(owner[following], nn.ReLU):
            owner[following] = nn.Identity()
