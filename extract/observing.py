"""What every layer of a network gives: shapes and dtypes, seen on torch's meta device wherever that is possible.

Three runs tell the axes apart: two sizes of the batch, and an input of twice the size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import TraceError, UntraceableError, first_line
from .graph import Trace, share_copy, trace
from .hooked import Watched, watch, watch_shapes
from .tokens import class_token_nodes

__all__ = ["BATCHES", "Observed", "observe"]

BATCHES = (2, 3)
"""Images of the first two runs."""


@dataclass(frozen=True)
class Observed:
    """The layers of a network with what they gave, which is (shape, dtype) of a tensor and else its type."""

    nodes: Mapping[str, str]
    """layer to the name of the node, or module, whose output it is"""
    outputs: tuple[Mapping[str, Any], ...]
    """by node: for 2 images, and for 3"""
    grown: Mapping[str, Any]
    """for images of twice the size; empty when the network takes one size only"""
    inputs: frozenset[str] = frozenset()
    """nodes that are the input itself"""
    class_token: frozenset[str] = frozenset()
    """nodes after a class token was laid before the patches, as far as the graph tells"""
    hooks: bool = False
    """whether forward hooks saw it, because torch.fx cannot follow it"""


def observe(network: nn.Module, *, size: int, larger: nn.Module) -> Observed:
    """Run a network in eval mode, which is not changed, for images of ``size``; ``larger`` takes twice the size.

    Raises
    ------
    TraceError
        When it can neither be followed nor watched, or does not take images of this size.
    """
    try:
        traced = trace(share_copy(network, device="meta"))
    except UntraceableError as exc:
        return _by_hooks(network, size, larger, str(exc))
    try:
        outputs = tuple(_of_graph(traced, batch, size) for batch in BATCHES)
    except Exception as exc:
        raise _not_taken(network, size, exc) from exc
    return Observed(
        nodes={layer: traced.names[node] for layer, node in traced.nodes.items()},
        outputs=outputs,
        grown=_grown(larger, 2 * size),
        inputs=frozenset(name for node, name in traced.names.items() if node.op == "placeholder"),
        class_token=class_token_nodes(network, traced),
    )


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every node gave."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.graph_module)
        self.names = traced.names
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.names:
            self.seen[self.names[n]] = _kind(value)
        return value


def _of_graph(traced: Trace, batch: int, size: int) -> dict[str, Any]:
    recorder = _Recorder(traced)
    with torch.inference_mode():
        recorder.run(torch.empty(batch, 3, size, size, device="meta"))
    return recorder.seen


def _grown(network: nn.Module, size: int) -> dict[str, Any]:
    try:
        return _of_graph(trace(share_copy(network, device="meta")), BATCHES[0], size)
    except Exception:  # noqa: BLE001 - it takes one size only: its axes are judged by shape then
        return {}


def _by_hooks(network: nn.Module, size: int, larger: nn.Module, why: str) -> Observed:
    try:
        runs = [_watched(network, batch, size) for batch in BATCHES]
    except Exception as exc:
        raise _not_taken(network, size, exc) from exc
    if not runs[0].calls:
        raise TraceError(f"{why}; and it calls no modules, whose outputs forward hooks could take")
    try:
        grown = _kinds(_watched(larger, BATCHES[0], 2 * size))
    except Exception:  # noqa: BLE001 - likewise
        grown = {}
    return Observed(nodes=runs[0].same_as, outputs=tuple(map(_kinds, runs)), grown=grown, hooks=True)


def _watched(network: nn.Module, batch: int, size: int) -> Watched:
    """Watch a run without values, or on noise where the network looks at values."""
    shape = (batch, 3, size, size)
    noise = torch.Generator().manual_seed(0)
    return watch_shapes(network, shape) or watch(network, torch.randn(*shape, generator=noise))


def _kinds(seen: Watched) -> dict[str, Any]:
    return {path: _kind(value) for path, value in seen.outputs.items()}


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    return value if isinstance(value, type) else type(value)


def _not_taken(network: nn.Module, size: int, exc: Exception) -> TraceError:
    kind = type(network).__name__
    return TraceError(f"{kind}: does not take images of 3 x {size} x {size}: {first_line(exc)}")
