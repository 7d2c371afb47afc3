"""What decides the values of one's own network beside its state dict: code, constants, other tensors.

torchvision's networks are named by the contract; for a function of one's own the name says nothing of what is in
it today. So its traced graph is written down in words that are the same in every process.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .graph import Trace

__all__ = ["code_sha256", "hidden_tensors"]

_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
_LIBRARIES = frozenset({"_operator", "builtins", "math", "operator", "torch", "torchvision"})


def code_sha256(traced: Trace) -> str:
    """Hash the graph: every step with its arguments, constants, and the settings of the modules it calls."""
    digest = hashlib.sha256()
    for line in _lines(traced.graph_module):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def hidden_tensors(traced: Trace, module: nn.Module) -> dict[str, Tensor]:
    """Give the tensors that ``state_dict`` leaves out: buffers that are not persistent, and plain attributes."""
    found = dict(module.named_buffers())
    for node in traced.graph_module.graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(traced.graph_module)
            found |= {node.target: value} if isinstance(value, Tensor) else {}
    return {name: tensor for name, tensor in found.items() if name not in module.state_dict()}


def _lines(graph_module: fx.GraphModule) -> Iterator[str]:
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node, index in place.items():
        target = node.target if isinstance(node.target, str) else _words(node.target, place)
        yield f"{index} {node.op} {target} {_words(node.args, place)} {_words(node.kwargs, place)}"
        if node.op == "call_module":
            for name, part in graph_module.get_submodule(str(node.target)).named_modules():
                yield f"  {name} {_words(type(part), place)} {_words(_settings(part), place)}"


def _settings(part: nn.Module) -> dict[str, Any]:
    """Give what a module keeps beside tensors and modules."""
    own = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
    return {key: value for key, value in own.items() if not isinstance(value, (Tensor, nn.Module))}


def _words(value: Any, place: Mapping[fx.Node, int]) -> str:
    """Write a value without memory addresses and without an order that may vary."""
    match value:
        case fx.Node():
            return f"%{place[value]}"
        case enum.Enum():
            return str(value)
        case slice():
            return f"slice{_words((value.start, value.stop, value.step), place)}"
        case Mapping():
            return "{" + ", ".join(sorted(f"{key}: {_words(item, place)}" for key, item in value.items())) + "}"
        case tuple() | list():
            return "(" + ", ".join(_words(item, place) for item in value) + ")"
        case set() | frozenset():
            return "{" + ", ".join(sorted(_words(item, place) for item in value)) + "}"
        case _ if isinstance(value, _PLAIN):
            return repr(value)
        case _ if callable(value):
            return _callable_words(value)
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def _callable_words(value: Callable[..., Any]) -> str:
    """Name a function or class; those that no library brings are given with their source."""
    home = getattr(value, "__module__", None) or "torch"  # torch's own builtins do not say
    name = f"{home}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if home.partition(".")[0] in _LIBRARIES:
        return name
    try:
        return f"{name} {inspect.getsource(value)}"
    except (OSError, TypeError):  # made at run time
        return name
