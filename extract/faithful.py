"""Proof that a traced network gives what the network itself gives, by running both once.

torch.fx sees operations, not memory: where two names mean the same numbers, changing one in place changes the
other, and the graph does not know. torchvision's networks are proven by tests; one's own is proven when it is
loaded, layer by layer, on two images of noise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import TraceError
from .graph import trace

__all__ = ["is_close", "require_faithful"]

_TOLERANCE = 1e-4  # of the largest value: other kernels may add up in another order, a wrong tensor differs by 1


def require_faithful(network: nn.Module, *, size: int) -> None:
    """Return when the graph of ``network`` computes every layer as the network does.

    Parameters
    ----------
    network
        In eval mode, with its weights.
    size
        Side of the square input, in pixels.

    Raises
    ------
    TraceError
        Naming the first layer that differs; or when the network does not take images of this size.
    """
    kind, batch = type(network).__name__, torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced = trace(network)
    keeper = _Keeper(traced.graph_module)
    try:
        with torch.inference_mode():
            expected = _run_plain(network, batch.clone(), traced.graph_module.graph)
            keeper.run(batch.clone())
    except Exception as exc:
        raise TraceError(f"{kind}: does not take images of 3 x {size} x {size}: {exc}") from exc
    for node, (value, copy) in keeper.seen.items():
        name = traced.names.get(node, "its result")
        if not _same(value, copy) or (node in expected and not _same(copy, expected[node])):
            raise TraceError(
                f"{kind}: {name} differs between the network and its graph; its forward must not change a tensor in "
                f"place that is read under another name, nor draw random numbers: write x = x + y, not x += y, and "
                f"ReLU(inplace=False)"
            )


class _Keeper(fx.Interpreter):
    """Runs a graph and keeps what every node gave: as it is at the end, and as it was then."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.seen: dict[fx.Node, tuple[list[Tensor], list[Tensor]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n] = list(_tensors(value)), _copied(value)
        return value


def _run_plain(network: nn.Module, batch: Tensor, graph: fx.Graph) -> dict[fx.Node, list[Tensor]]:
    """Run the network itself; give what each module gave in each of its calls, and the result, by graph node."""
    calls: dict[str, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    given: dict[str, list[list[Tensor]]] = {target: [] for target in calls}
    with ExitStack() as hooks:
        for target, outputs in given.items():
            keep = _keep_in(outputs)
            hooks.callback(network.get_submodule(target).register_forward_hook(keep).remove)
        result = _copied(network(batch))
    found = {node: output for target, nodes in calls.items() for node, output in zip(nodes, given[target], strict=True)}
    return {**found, next(reversed(graph.nodes)): result}


def _keep_in(outputs: list[list[Tensor]]) -> Any:
    return lambda module, args, output: outputs.append(_copied(output))


def _copied(value: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(value)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def _same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(is_close(a, b) for a, b in zip(ours, theirs, strict=True))


def is_close(ours: Tensor, theirs: Tensor) -> bool:
    """Say whether two tensors are equal but for the last bits of their largest value."""
    if ours.shape != theirs.shape:
        return False
    if not theirs.is_floating_point() or not theirs.numel():
        return torch.equal(ours, theirs)
    scale = float(theirs.abs().nan_to_num().max())
    return torch.allclose(ours, theirs, rtol=0, atol=_TOLERANCE * scale, equal_nan=True)
