"""Which layers are token maps that begin with a class token: known from the graph, or said by the network itself.

torchvision's ``VisionTransformer`` lays its ``class_token`` before the patches; what follows keeps their order. A
network of one's own says it in an attribute, ``class_token_layers = ["blocks.*", "norm"]``: names and globs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx, nn
from torchvision.models import VisionTransformer

from .errors import TraceError, UnknownLayerError, did_you_mean
from .globs import glob_expression
from .graph import Trace

__all__ = ["class_token_nodes", "declared_layers"]

_ATTRIBUTE = "class_token_layers"


def class_token_nodes(network: nn.Module, traced: Trace) -> frozenset[str]:
    """Give the full names of the nodes that come after torchvision's class token was laid before the patches.

    Those of them with the layout (N, L, C) begin with that token.
    """
    found: set[str] = set()
    for path, part in network.named_modules():
        if type(part) is VisionTransformer:
            prefix = f"{path}." if path else ""
            inside = {node: name for node, name in traced.names.items() if name.startswith(prefix)}
            token = {node for node in traced.names if node.op == "get_attr" and node.target == f"{prefix}class_token"}
            joined = [node for node in _after(token, inside) if _is_token_first(node, token, inside)]
            found |= {inside[node] for node in _after(set(joined[:1]), inside)}
    return frozenset(found)


def declared_layers(network: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Give the layers that the network's attribute ``class_token_layers`` means; none where it has no such attribute.

    Raises
    ------
    TraceError
        When the attribute is not a list of strings.
    UnknownLayerError
        When one of them matches no layer.
    """
    patterns, known, found = getattr(network, _ATTRIBUTE, ()), list(names), set[str]()
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
        kind = type(network).__name__
        raise TraceError(f"{kind}: {_ATTRIBUTE} must be a list of layer names and globs, found {patterns!r}")
    for pattern in patterns:
        expression = glob_expression(pattern)
        matches = {name for name in known if expression.fullmatch(name)}
        if not matches:
            kind, hint = type(network).__name__, did_you_mean(pattern, known)
            raise UnknownLayerError(f"{kind}: {_ATTRIBUTE} names {pattern!r}, and there is no such layer{hint}")
        found |= matches
    return frozenset(found)


def _after(nodes: set[fx.Node], within: Iterable[fx.Node]) -> list[fx.Node]:
    """Give these nodes and all that is computed from them, in the order of the graph."""
    reached = set(nodes)
    for node in within:
        if reached.intersection(node.all_input_nodes):
            reached.add(node)
    return [node for node in within if node in reached]


def _is_token_first(node: fx.Node, token: set[fx.Node], within: Iterable[fx.Node]) -> bool:
    """Say whether a node joins tokens along their axis, the class token first."""
    if node.target is not torch.cat or node.kwargs.get("dim", node.args[1:] and node.args[1]) != 1:
        return False
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    first = parts[0] if isinstance(parts, (list, tuple)) and parts else None
    return isinstance(first, fx.Node) and first in _after(token, within)
