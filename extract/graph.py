"""A network as a graph whose nodes carry torchvision's names, cut after the layers asked for.

Names are those of ``torchvision.models.feature_extraction`` in eval mode; the path of a module stands for the
last node below it. The graph is made free of in-place operations first, so that the output of a layer is what
it was when the layer gave it, not what the next ReLU made of it.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import NodePathTracer

from .errors import TraceError, UntraceableError, first_line

__all__ = ["Trace", "cut", "fold_batch_norms", "share_copy", "tensors_needed", "trace"]

_VIEWS = frozenset({"chunk", "getitem", "narrow", "permute", "reshape", "select", "split", "t", "transpose", "unbind",
                    "unsqueeze", "squeeze", "view", "flatten", "expand", "movedim", "swapaxes"})  # fmt: skip
_INPLACE = re.compile(r"[^_]_$")
_LEAVES = [value for _, value in inspect.getmembers(torchvision.ops, inspect.isclass) if issubclass(value, nn.Module)]


@dataclass(frozen=True)
class Trace:
    """A traced network; shares its tensors with the module that it came from."""

    graph_module: fx.GraphModule
    """runs the graph"""
    nodes: Mapping[str, fx.Node]
    """layer name to node, node names and module paths alike, in the order of the network"""
    names: Mapping[fx.Node, str]
    """node to its own full name"""


def trace(module: nn.Module) -> Trace:
    """Follow an input through ``module``, which is in eval mode and stays as it is.

    Raises
    ------
    UntraceableError
        When the network decides on values, or uses what torch.fx cannot follow.
    TraceError
        When it changes a tensor in place where that cannot be undone: while another view of it is in use, or by an
        operation that has no other form.
    """
    tracer = NodePathTracer(leaf_modules=_LEAVES, autowrap_modules=(math, torchvision.ops))
    try:
        graph = tracer.trace(module)
    except Exception as exc:
        kind = type(module).__name__
        raise UntraceableError(f"{kind}: torch.fx cannot follow it ({first_line(exc)})") from exc
    graph_module = fx.GraphModule(tracer.root, graph, type(module).__name__)
    _remove_inplace(graph_module, module)
    names = {node: name for node, name in tracer.node_to_qualname.items() if node.graph is graph}
    return Trace(graph_module, _by_layer(names), names)


def cut(traced: Trace, layers: Iterable[str]) -> fx.GraphModule:
    """Make ``traced`` end at the layers: it then gives a tuple of their outputs, in the order asked.

    All that no layer needs is dropped. Uses ``traced`` up.
    """
    graph = traced.graph_module.graph
    for node in reversed(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    graph.output(tuple(traced.nodes[layer] for layer in layers))
    _drop_unused(graph)
    traced.graph_module.delete_all_unused_submodules()
    traced.graph_module.recompile()
    return traced.graph_module


def fold_batch_norms(network: fx.GraphModule) -> fx.GraphModule:
    """Fold each batch norm into the convolution before it, where nothing else reads that one; changes ``network``.

    Features change in their last bits: a scale is multiplied into the weights instead of into their sums.
    """
    modules = dict(network.named_modules())
    calls = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    for node in list(network.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        shared = calls.count(str(before.target)) > 1 or calls.count(str(node.target)) > 1
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats and not shared:
            network.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            network.graph.erase_node(node)
    network.delete_all_unused_submodules()
    network.recompile()
    return network


def tensors_needed(traced: Trace, module: nn.Module, layers: Iterable[str]) -> frozenset[str]:
    """Give the names of the parameters and buffers on which the layers depend."""
    state = module.state_dict().keys()
    waiting, seen = [traced.nodes[layer] for layer in layers], set[fx.Node]()
    needed: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting.extend(node.all_input_nodes)
        if node.op in {"call_module", "get_attr"}:
            target = str(node.target)
            needed |= {name for name in state if name == target or name.startswith(f"{target}.")}
    return frozenset(needed)


def share_copy(module: nn.Module, *, device: str | None = None) -> nn.Module:
    """Copy the modules but not their tensors, which are shared, or stand-ins on the ``meta`` device."""
    memo: dict[int, Any] = {}
    plain = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    for tensor in (*module.parameters(), *module.buffers(), *plain):
        other = tensor if device is None else torch.empty_like(tensor, device=device)
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(other, requires_grad=False) if device and is_parameter else other
    return copy.deepcopy(module, memo)


def _by_layer(names: Mapping[fx.Node, str]) -> dict[str, fx.Node]:
    last: dict[str, fx.Node] = {}
    place = {node: index for index, node in enumerate(names)}
    for node, name in names.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = node
    return dict(sorted(last.items(), key=lambda item: (place[item[1]], item[0].count("."))))


def _remove_inplace(graph_module: fx.GraphModule, root: nn.Module) -> None:
    """Let every in-place operation give a new tensor, and its later readers read that one."""
    place = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node in list(place):
        if not _make_out_of_place(node, graph_module, root):
            continue
        changed = node.all_input_nodes[0]
        _refuse_shared_view(node, changed, place)
        for reader in list(changed.users):
            if place[reader] > place[node]:
                reader.replace_input_with(changed, node)
    graph_module.recompile()


def _make_out_of_place(node: fx.Node, graph_module: fx.GraphModule, root: nn.Module) -> bool:
    """Change one node; True when it was going to write into its first input."""
    if node.op == "call_module":
        return _quieten_module(str(node.target), graph_module, root)
    if node.op == "call_function" and callable(node.target):
        return _quieten_function(node)
    return node.op == "call_method" and _quieten_method(node)


def _quieten_module(target: str, graph_module: fx.GraphModule, root: nn.Module) -> bool:
    original = root.get_submodule(target)
    if not any(getattr(part, "inplace", False) is True for part in original.modules()):
        return False
    quiet = share_copy(original)
    for part in quiet.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    graph_module.set_submodule(target, quiet.eval())
    return getattr(original, "inplace", False) is True


def _quieten_method(node: fx.Node) -> bool:
    name = str(node.target)
    if not _INPLACE.search(name):
        return False
    if not callable(getattr(torch.Tensor, name[:-1], None)):
        raise _no_twin(node, f"Tensor.{name}")
    node.target = name[:-1]
    return True


def _quieten_function(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", "")
    if node.kwargs.get("out") is not None:
        raise _no_twin(node, f"{name}(out=...)")
    homes = [home for home in (torch, functional) if getattr(home, name, None) is node.target]
    if homes and _INPLACE.search(name):
        twins = [getattr(home, name[:-1]) for home in (torch, functional) if hasattr(home, name[:-1])]
        if not twins:
            raise _no_twin(node, name)
        node.target = twins[0]
        return True
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature: none of them takes `inplace`
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _no_twin(node: fx.Node, name: str) -> TraceError:
    return TraceError(f"{node}: {name} writes into a tensor in place; give a new one instead")


def _refuse_shared_view(node: fx.Node, changed: fx.Node, place: Mapping[fx.Node, int]) -> None:
    """Refuse to go on where writing into ``changed`` would show through in another tensor."""
    base = changed
    while _is_view(base) and base.all_input_nodes:
        base = base.all_input_nodes[0]
        if any(place[reader] > place[node] for reader in base.users):
            raise TraceError(f"{node}: changes {changed} in place while {base}, which it is a view of, is still used")


def _is_view(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in {"call_function", "call_method"} and name in _VIEWS


def _drop_unused(graph: fx.Graph) -> None:
    # Graph.eliminate_dead_code keeps what it takes to have side effects, such as torch._assert on a shape: fine.
    graph.eliminate_dead_code()
    graph.lint()
