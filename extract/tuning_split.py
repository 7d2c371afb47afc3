"""A network divided at the first tensor that learns: a frozen part, run without gradients, and one that learns.

What the frozen part gives is the same in every epoch for the same pixels, so it can be kept (``tuning_cache``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from .errors import UntraceableError
from .graph import trace
from .preprocess import Preprocess

__all__ = ["Divided", "Frozen", "Learning", "divide_network"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SEGMENTS = 4
"""Parts of the learning part that gradient checkpointing computes twice, one at a time."""


@dataclass(frozen=True)
class Divided:
    """Both parts; they share the network's tensors."""

    frozen: Frozen
    """from pixels to what the other part takes"""
    learning: Learning
    """from there to the sums of the classes"""
    why_whole: str
    """why nothing could be divided off, where that is so; empty otherwise"""


class Frozen(nn.Module):
    """From uint8 pixels (B, 3, S, S) to the tensors that cross the cut; without gradients, in eval mode.

    Where nothing is frozen before the first tensor that learns, it gives the pixels themselves.
    """

    def __init__(self, graph: fx.GraphModule | None, preprocess: Preprocess, precision: str) -> None:
        super().__init__()
        self._graph = graph
        self._normalise = _Normalise(preprocess)
        self._precision = precision
        self.eval()

    @property
    def is_empty(self) -> bool:
        """Whether it only hands the pixels on."""
        return self._graph is None

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Run it."""
        if self._graph is None:
            return (pixels,)
        with _autocast(pixels.device, self._precision):
            outputs: tuple[Tensor, ...] = self._graph(self._normalise(pixels))
        return tuple(output.float() for output in outputs)


class Learning(nn.Module):
    """From the tensors that cross the cut to the sums of the classes: (B, k) float32.

    Dropout and stochastic depth work in it while ``training`` is set; batch norms keep their statistics unless
    ``norms_learn``.
    """

    def __init__(
        self, parts: Sequence[nn.Module], normalise: nn.Module | None, precision: str, *, norms_learn: bool, twice: bool
    ) -> None:
        super().__init__()
        self._parts = nn.ModuleList(parts)
        self._normalise = normalise
        self._precision, self._norms_learn, self._twice = precision, norms_learn, twice

    def train(self, mode: bool = True) -> Learning:
        """Set the mode of all that behaves otherwise while it learns, batch norms as asked for."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and not self._learns(part):  # noqa: SLF001
                part.eval()
        return self

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run it."""
        values: tuple[Tensor, ...] = inputs
        with _autocast(inputs[0].device, self._precision):
            if self._normalise is not None:
                values = (self._normalise(inputs[0]),)
            for part in self._parts:
                if self._twice and torch.is_grad_enabled():
                    values = checkpoint(part, *values, use_reentrant=False)
                else:
                    values = part(*values)
        return values[0].float()

    def _learns(self, norm: nn.Module) -> bool:
        return self._norms_learn and any(parameter.requires_grad for parameter in norm.parameters())


def divide_network(
    network: nn.Module,
    learned: Collection[str],
    preprocess: Preprocess,
    *,
    precision: str = "fp32",
    norms_learn: bool = False,
    twice: bool = False,
) -> Divided:
    """Divide a network, in eval mode, before the first tensor that learns.

    Parameters
    ----------
    network
        With its head.
    learned
        Names of the parameters that learn; the head's are among them.
    preprocess
        Size and normalisation of its pixels.
    precision
        ``fp32``, ``bf16`` or ``fp16``: of the arithmetic; tensors that cross the cut are float32.
    norms_learn
        Whether the batch norms that learn take the statistics of what they see.
    twice
        Gradient checkpointing: activations of the learning part are computed again instead of kept.

    Returns
    -------
    Divided
        Nothing is divided off where torch.fx cannot follow the network, or where what crosses the cut is not one
        tensor an image: it says why.
    """
    try:
        graph = trace(network).graph_module
    except UntraceableError as exc:
        return _whole(_AsTuple(network), preprocess, precision, str(exc), norms_learn=norms_learn, twice=twice)
    nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    late = _depending(graph, learned)
    early = [node for node in nodes if node not in late]
    rest = [node for node in nodes if node in late]
    crossing = _crossing(early, rest, graph)
    why = "" if early else "its first layer learns"
    if not why and not _is_batch(graph, early, crossing, preprocess):
        why = "what crosses the cut is not one tensor an image"
    if why:
        early, rest, crossing = [], nodes, _inputs(graph)
    pieces = _pieces(graph, rest, crossing, count=_SEGMENTS if twice else 1)
    if why:
        normalise = _Normalise(preprocess)
        learning = Learning(pieces, normalise, precision, norms_learn=norms_learn, twice=twice)
        return Divided(Frozen(None, preprocess, precision), learning, why)
    frozen = Frozen(_subgraph(graph, early, _inputs(graph), crossing), preprocess, precision)
    return Divided(frozen, Learning(pieces, None, precision, norms_learn=norms_learn, twice=twice), "")


def _whole(
    network: nn.Module, preprocess: Preprocess, precision: str, why: str, *, norms_learn: bool, twice: bool
) -> Divided:
    learning = Learning([network], _Normalise(preprocess), precision, norms_learn=norms_learn, twice=twice)
    return Divided(Frozen(None, preprocess, precision), learning, why)


def _depending(graph: fx.GraphModule, learned: Collection[str]) -> set[fx.Node]:
    """Give the nodes whose value depends on a tensor that learns."""
    late: set[fx.Node] = set()
    for node in graph.graph.nodes:
        own = node.op in ("call_module", "get_attr") and any(
            name == node.target or name.startswith(f"{node.target}.") for name in learned
        )
        if own or any(before in late for before in node.all_input_nodes):
            late.add(node)
    return late


def _crossing(early: Sequence[fx.Node], late: Sequence[fx.Node], graph: fx.GraphModule) -> list[fx.Node]:
    """Give what the late nodes, or the output, read of the early ones or of the input, in the graph's order."""
    readers = {*late, *(node for node in graph.graph.nodes if node.op == "output")}
    given = [*_inputs(graph), *early]
    return [node for node in given if any(reader in readers for reader in node.users)]


def _inputs(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.op == "placeholder"][:1]


def _is_batch(
    graph: fx.GraphModule, early: Sequence[fx.Node], crossing: Sequence[fx.Node], preprocess: Preprocess
) -> bool:
    """Say whether two images give two rows in each crossing value, by trying it."""
    side = preprocess.crop
    with torch.no_grad():
        outputs = _subgraph(graph, early, _inputs(graph), crossing)(torch.zeros(2, 3, side, side))
    return all(isinstance(output, Tensor) and output.ndim >= 1 and len(output) == 2 for output in outputs)


def _pieces(
    graph: fx.GraphModule, nodes: list[fx.Node], given: Sequence[fx.Node], *, count: int
) -> list[fx.GraphModule]:
    """Cut a run of nodes into parts of about the same length, each taking what the one before gives."""
    [output] = [node for node in graph.graph.nodes if node.op == "output"]
    [last] = output.all_input_nodes
    size = -(-len(nodes) // count)
    parts = [nodes[at : at + size] for at in range(0, len(nodes), size)]
    pieces = []
    for number, part in enumerate(parts):
        later = {node for rest in parts[number + 1 :] for node in rest}
        known = [*given, *part]
        is_last = number == len(parts) - 1
        wanted = [last] if is_last else [node for node in known if any(reader in later for reader in node.users)]
        pieces.append(_subgraph(graph, part, given, wanted))
        given = wanted
    return pieces


def _subgraph(
    whole: fx.GraphModule, nodes: Sequence[fx.Node], given: Sequence[fx.Node], wanted: Sequence[fx.Node]
) -> fx.GraphModule:
    """Make a graph of these nodes: a function of the given values that returns the wanted ones; modules are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(node.name) for node in given}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # a constant or parameter of the network, wherever it is read
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    graph.output(tuple(copied(node) for node in wanted))
    graph.lint()
    return fx.GraphModule(whole, graph)


class _Normalise(nn.Module):
    """From uint8 pixels, or floats from 0 to 255, to what a network takes."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() / 255 - self.mean) / self.std  # (B, 3, S, S)
        return images.contiguous(memory_format=torch.channels_last)


class _AsTuple(nn.Module):
    """A network whose output comes as a tuple of one, as a graph's does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.network(images),)


def _autocast(device: torch.device, precision: str) -> Any:
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
