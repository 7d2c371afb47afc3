"""Which tensors of a backbone learn: by globs, the last k layers, or all; and in which groups, by depth.

All others stay frozen. A group is a block of the network, such as ``layer4`` or ``features.12``; groups come in the
order of the network, so that those nearer to the head can learn faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from .errors import TuningError, UnknownLayerError, did_you_mean
from .globs import glob_expression
from .tuning_options import Unfreeze

__all__ = ["Group", "choose_groups", "covers", "is_plain", "is_weighted"]

_NUMBERED = re.compile(r"\d")
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """A block of the backbone that learns."""

    name: str
    """path of the block"""
    tensors: tuple[str, ...]
    """names of its parameters that learn, in the order of the network"""


def choose_groups(network: nn.Module, unfreeze: Unfreeze, *, head: str) -> tuple[Group, ...]:
    """Give the blocks that learn, in the order of the network; the head is none of them.

    Parameters
    ----------
    network
        With its head.
    unfreeze
        What learns beside the head.
    head
        Path of the head.

    Raises
    ------
    TuningError
        When ``unfreeze`` is a number below 0 or above that of the layers.
    UnknownLayerError
        When a glob matches no parameter.
    """
    names = [name for name, _ in network.named_parameters() if not _below(name, head)]
    groups: dict[str, list[str]] = {}
    for name in _chosen(network, names, unfreeze, head):
        groups.setdefault(_block_of(name), []).append(name)
    return tuple(Group(name, tuple(tensors)) for name, tensors in groups.items())


def is_plain(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is left out of weight decay: a bias, or of a norm."""
    return parameter.ndim <= 1 or name.endswith(".bias")


def is_weighted(part: nn.Module) -> bool:
    """Say whether a module is a layer in the sense of "the last four layers": it has weights and is no norm."""
    return not isinstance(part, _NORMS) and any(p.ndim > 1 for p in part.parameters(recurse=False))


def _chosen(network: nn.Module, names: list[str], unfreeze: Unfreeze, head: str) -> list[str]:
    if unfreeze == "all":
        return names
    if isinstance(unfreeze, (bool, str)):
        raise TuningError(f'unfreeze: a number of layers, "all", or a list of names and globs; found {unfreeze!r}')
    if isinstance(unfreeze, int):
        return _last(network, names, unfreeze, head)
    found: set[str] = set()
    for pattern in unfreeze:
        expression = glob_expression(pattern)
        matched = [name for name in names if any(map(expression.fullmatch, _prefixes(name)))]
        if not matched:
            known = list(dict.fromkeys(prefix for name in names for prefix in _prefixes(name)[:-1]))
            blocks = ", ".join(dict.fromkeys(map(_block_of, names)))
            hint = did_you_mean(pattern, known)
            raise UnknownLayerError(f"unfreeze: nothing in the network matches {pattern!r}{hint}; its blocks: {blocks}")
        found |= set(matched)
    return [name for name in names if name in found]


def _last(network: nn.Module, names: list[str], count: int, head: str) -> list[str]:
    """Take the last layers with weights, and all that comes after the first of them: its norms, its bias."""
    layers = [name for name, part in network.named_modules() if is_weighted(part) and not _below(name, head)]
    if not 0 <= count <= len(layers):
        raise TuningError(f"unfreeze: {count} layers; {type(network).__name__} has {len(layers)} before its head")
    if not count:
        return []
    first = next(index for index, name in enumerate(names) if _below(name, layers[-count]))
    return names[first:]


def _block_of(name: str) -> str:
    """Cut a parameter's name after its first numbered part: ``layer4``, ``features.12``, ``encoder.layers.layer_3``."""
    parts = name.split(".")[:-1]
    for depth, part in enumerate(parts, 1):
        if _NUMBERED.search(part):
            return ".".join(parts[:depth])
    return ".".join(parts) or name


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _below(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def covers(groups: Iterable[Group]) -> frozenset[str]:
    """Give the names of all parameters of these groups."""
    return frozenset(name for group in groups for name in group.tensors)
