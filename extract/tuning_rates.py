"""Who learns how fast, and when: AdamW's groups, their peaks by depth, warm-up, cosine, and when each begins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import AdamW

from .tuning_layers import Group, is_plain
from .tuning_options import TuningOptions

__all__ = ["HEAD", "factor_at", "first_epochs", "make_optimizer", "peak_rates", "set_rates"]

HEAD = "head"
"""Name of the head's group."""


def peak_rates(groups: Sequence[Group], options: TuningOptions) -> dict[str, float]:
    """Give the peak learning rate of each block, in the order of the network, and of the head, last.

    The block next to the head has ``learning_rate``; each one before it ``layer_decay`` times that of the next.
    """
    depth = len(groups) - 1
    rates = {
        group.name: options.learning_rate * options.layer_decay ** (depth - index) for index, group in enumerate(groups)
    }
    return {**rates, HEAD: options.head_learning_rate}


def first_epochs(groups: Sequence[Group], options: TuningOptions) -> dict[str, int]:
    """Give the epoch, from 1, in which each block, and the head, begins to learn; nearer to the head first."""
    depth = len(groups) - 1
    begins = {
        group.name: 1 + options.head_epochs + options.gradual * (depth - index) for index, group in enumerate(groups)
    }
    return {**begins, HEAD: 1}


def make_optimizer(
    parameters: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float], options: TuningOptions
) -> AdamW:
    """Give AdamW with two groups for each block: what decays, and biases and norms, which do not.

    Parameters
    ----------
    parameters
        By block, the head under ``HEAD``: parameters by name.
    rates
        Peaks, as ``peak_rates`` gives them.
    options
        ``weight_decay`` is taken from them.
    """
    found = []
    for block, named in parameters.items():
        for plain in (False, True):
            chosen = [parameter for name, parameter in named.items() if is_plain(name, parameter) is plain]
            if chosen:
                decay = 0.0 if plain else options.weight_decay
                found.append({"params": chosen, "lr": rates[block], "weight_decay": decay, "block": block})
    return AdamW(found)


def set_rates(
    optimizer: AdamW, rates: Mapping[str, float], *, step: int, steps: int, begins: Mapping[str, int], warmup: float
) -> dict[str, float]:
    """Set the learning rates of a step, from 0; give them by block.

    Parameters
    ----------
    optimizer
        As ``make_optimizer`` gives it.
    rates
        Peaks.
    step, steps
        Steps done, and in all.
    begins
        Step with which each block begins.
    warmup
        Share of a block's steps in which its rate rises.
    """
    now = {block: peak * factor_at(step, steps, begins[block], warmup) for block, peak in rates.items()}
    for group in optimizer.param_groups:
        group["lr"] = now[group["block"]]
    return now


def factor_at(step: int, steps: int, begin: int, warmup: float) -> float:
    """Give the multiple of the peak at a step: 0 before the begin, a linear rise, then a cosine down to 0."""
    if step < begin:
        return 0.0
    done, whole = step - begin, max(1, steps - begin)
    rise = max(1, round(warmup * whole))
    if done < rise:
        return (done + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / max(1, whole - rise)))
