"""What decides the values of one's own network beside its state dict: code, constants, other tensors.

torchvision's networks are named by the contract; for a function of one's own the name says nothing of what is in
it today. So its traced graph is written down in words that are the same in every process. Where there is no graph,
the source files count instead: those of its modules, and those of one's own that they name.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from .graph import Trace

__all__ = ["code_sha256", "hidden_tensors", "plain_tensors", "source_sha256"]

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


def source_sha256(module: nn.Module) -> str:
    """Hash the source of a network that was not traced: its files, and the settings of its modules.

    A file counts as a whole, comments too, with those that it names and that no library brings.
    """
    digest = hashlib.sha256()
    for path, part in module.named_modules():
        digest.update(f"{path} {_words(type(part), {})} {_words(_settings(part), {})}\n".encode())
    for name, source in sorted(_own_sources(module).items()):
        digest.update(f"{name}\n{source}\n".encode())
    return digest.hexdigest()


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Give the tensors that ``state_dict`` leaves out: buffers that are not persistent, and plain attributes."""
    found = dict(module.named_buffers())
    for path, part in module.named_modules():
        own = {key: value for key, value in vars(part).items() if isinstance(value, Tensor)}
        found |= {f"{path}.{key}".lstrip("."): value for key, value in own.items()}
    return {name: tensor for name, tensor in found.items() if name not in module.state_dict()}


def _own_sources(module: nn.Module) -> dict[str, str]:
    """Give the source of each module of Python that the network's classes are in, or that one of these names."""
    waiting, found = [type(part).__module__ for part in module.modules()], dict[str, str]()
    while waiting:
        name = waiting.pop()
        home = sys.modules.get(name)
        if home is None or name in found or not _is_own(home):
            continue
        try:
            found[name] = inspect.getsource(home)
        except (OSError, TypeError):  # made at run time
            found[name] = ""
        values = vars(home).values()
        waiting += [value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
                    for value in values if isinstance(value, ModuleType) or callable(value)]  # fmt: skip
    return found


def _is_own(home: ModuleType) -> bool:
    """Say whether a module of Python is neither of the standard library nor of an installed package."""
    top, file = home.__name__.partition(".")[0], getattr(home, "__file__", None)
    is_library = top in _LIBRARIES or top in sys.stdlib_module_names
    return not is_library and file is not None and not {"site-packages", "dist-packages"} & set(Path(file).parts)


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
