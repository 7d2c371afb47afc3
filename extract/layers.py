"""Which layers a network has, what they give, and which of them a list of names and globs means.

Computed on torch's meta device: shapes without numbers, so neither weights nor time are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icecore.store import Column, Pooling
from torch import nn

from .builders import find_builder
from .errors import UnknownLayerError, UnpoolableLayerError, did_you_mean
from .globs import glob_expression, is_glob
from .observing import BATCHES, observe
from .pooling import pooling_for
from .preprocess import Preprocess
from .tokens import declared_layers

__all__ = ["LayerInfo", "columns_for", "describe_layers", "list_layers", "resolve_layers"]


@dataclass(frozen=True)
class LayerInfo:
    """One layer of a network."""

    name: str
    """node name, or path of a module that stands for the last node below it"""
    node: str
    """full name of the node whose output it is; equal for ``layer4`` and ``layer4.1.relu_1``"""
    shape: tuple[int, ...]
    """shape of its output for one image; empty when it gives no tensor"""
    layout: str
    """``NCHW``, ``NHWC``, ``NLC`` or ``NC``; empty when it cannot be pooled"""
    width: int
    """numbers an image after pooling; 0 when it cannot be pooled"""
    why_not: str
    """why it cannot be pooled; empty when it can"""
    class_token: bool = False
    """whether its first token is the class token"""
    hooks: bool = False
    """whether it is taken by a forward hook, because torch.fx cannot follow the network"""

    @property
    def poolable(self) -> bool:
        """Whether features can be taken from it."""
        return not self.why_not

    @property
    def poolings(self) -> tuple[str, ...]:
        """The poolings that differ on it: of a layer without positions ``flat`` only."""
        if not self.poolable:
            return ()
        positions = ("avg", "max", "gem") if self.layout != "NC" else ("flat",)
        return (*positions, "cls", "mean") if self.class_token else positions


def list_layers(
    name: str, *, size: int | None = None, arguments: Mapping[str, Any] | None = None
) -> tuple[LayerInfo, ...]:
    """List the layers of a backbone in the order of the network, without its weights.

    Parameters
    ----------
    name
        torchvision classification model or ``package.module:function``.
    size
        Side of the square input in pixels; default: the crop of the model's first published weights, 224 for
        one's own function.
    arguments
        Keyword arguments of the builder; default: those of the first published weights.

    Raises
    ------
    BackboneNotFoundError
        When there is no such backbone.
    TraceError
        When the network cannot be followed, or does not take images of this size.

    Examples
    --------
    >>> [layer.shape for layer in list_layers("resnet18") if layer.name == "layer4"]
    [(512, 7, 7)]
    """
    builder = find_builder(name)
    recipe = builder.recipes[0] if builder.recipes else None
    values = builder.arguments(recipe) if arguments is None else arguments
    side = size or (Preprocess.from_transforms(recipe.transforms()).crop if recipe is not None else 224)
    network = builder.build(values, meta=builder.is_torchvision)
    if size is not None:
        network = builder.build_for_size(values, network, side)
    return describe_layers(network, size=side, larger=builder.build_for_size(values, network, 2 * side))


def describe_layers(network: nn.Module, *, size: int, larger: nn.Module | None = None) -> tuple[LayerInfo, ...]:
    """List the layers of a network in eval mode, in its order.

    The axes of each output are told apart by what moves them: the first must follow the batch, those that grow
    with the input are positions, the rest are channels. An output of three axes that the network says to begin with a
    class token is (N, L, C), also where the network takes one size only.

    Parameters
    ----------
    network
        In eval mode; it is not changed, and its tensors are not copied.
    size
        Side of the square input, in pixels.
    larger
        The same network made for inputs of twice the size, where it takes one size only; default: itself.

    Raises
    ------
    TraceError
        When the network cannot be followed, or does not take images of this size.
    """
    seen = observe(network, size=size, larger=larger if larger is not None else network)
    declared = declared_layers(network, seen.nodes)
    tokens = seen.class_token | {seen.nodes[layer] for layer in declared}
    found = []
    for layer, node in seen.nodes.items():
        runs = [*(run.get(node, type(None)) for run in seen.outputs), seen.grown.get(node)]
        shape, layout, why_not = _describe(runs, tokens=node in tokens)
        if node in seen.inputs:
            layout, why_not = "", "it is the input itself"
        width = 0 if not layout else shape[0] if layout == "NCHW" else shape[-1]
        has_token = node in tokens and layout == "NLC"
        found.append(LayerInfo(layer, node, shape, layout, width, why_not, has_token, seen.hooks))
    return tuple(found)


def resolve_layers(available: Sequence[LayerInfo], patterns: Iterable[str], *, backbone: str = "NAME") -> list[str]:
    """Turn names and globs into layer names, in the order of the network, each once.

    ``*``, ``?`` and ``[...]`` stay within one dotted part, ``**`` crosses dots: ``features.*`` means the
    modules ``features.0`` to ``features.18``, not what is inside them. A glob passes over layers that cannot be
    pooled, and where several names it matches mean the same node, the shortest is taken.

    Raises
    ------
    UnknownLayerError
        When a name or glob matches nothing.
    UnpoolableLayerError
        When an exact name, or all that a glob matches, cannot be pooled.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        chosen |= _match_glob(available, pattern, backbone) if is_glob(pattern) else {pattern}
        if not is_glob(pattern):
            _require_layer(available, pattern, backbone)
    if not chosen:
        raise UnknownLayerError(f"no layers asked for; `icecore layers {backbone}` lists them")
    return [layer.name for layer in available if layer.name in chosen]


def columns_for(
    available: Sequence[LayerInfo], layers: Iterable[str], poolings: Iterable[str], *, dtype: str = "float16"
) -> tuple[Column, ...]:
    """Give the columns of every layer under every pooling; a layer without positions has the one column ``flat``.

    Raises
    ------
    ValueError
        When a pooling is unknown.
    UnpoolableLayerError
        When ``flat`` is asked of a layer with positions, or ``cls`` of one without a class token.
    """
    by_name = {layer.name: layer for layer in available}
    parsed = [Pooling.parse(text) for text in poolings]
    columns = [
        Column(name, _pooling_of(info, pooling), info.width, dtype, info.layout)  # type: ignore[arg-type]
        for name in layers
        for info in (by_name[name],)
        for pooling in parsed
    ]
    return tuple(dict.fromkeys(columns))


def _pooling_of(layer: LayerInfo, pooling: Pooling) -> Pooling:
    try:
        return pooling_for(layer.layout, pooling, class_token=layer.class_token)
    except ValueError as exc:
        raise UnpoolableLayerError(f"layer {layer.name!r}: {exc}") from exc


def _describe(seen: Sequence[Any], *, tokens: bool) -> tuple[tuple[int, ...], str, str]:
    """Give shape, layout and why it cannot be pooled."""
    if not all(isinstance(value, tuple) for value in seen[:2]):
        return (), "", f"it gives a {seen[0].__name__}, not one tensor"
    shapes = [tuple(value[0]) if isinstance(value, tuple) else None for value in seen]
    first, second, grown = shapes
    if not first or first[0] != BATCHES[0] or second != (BATCHES[1], *first[1:]):
        return first or (), "", "its first axis is not the images of the batch"
    if not seen[0][1].is_floating_point:
        return first[1:], "", f"it holds {seen[0][1]}, not activations"
    if grown is None or len(grown) != len(first):
        grown = None
    layout = _layout(first, grown)
    if not layout and tokens and grown is None and len(first) == 3:
        layout = "NLC"
    return first[1:], layout, "" if layout else f"the meaning of its axes {first[1:]} cannot be told"


def _layout(shape: tuple[int, ...], grown: tuple[int, ...] | None) -> str:
    moving = () if grown is None else tuple(axis for axis in range(1, len(shape)) if shape[axis] != grown[axis])
    if not moving:
        return _layout_by_shape(shape, fixed=grown is not None)
    return {(4, (2, 3)): "NCHW", (4, (1, 2)): "NHWC", (3, (1,)): "NLC"}.get((len(shape), moving), "")


def _layout_by_shape(shape: tuple[int, ...], *, fixed: bool) -> str:
    """Judge an output that does not grow with the input, or whose network takes one size only."""
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return "NLC" if fixed and shape[1] == 1 else ""
    if len(shape) == 4 and shape[2] == shape[3] != shape[1]:
        return "NCHW"
    if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
        return "NHWC"
    return ""


def _require_layer(available: Sequence[LayerInfo], name: str, backbone: str) -> None:
    for layer in available:
        if layer.name == name and layer.poolable:
            return
        if layer.name == name:
            raise UnpoolableLayerError(f"layer {name!r} of {backbone} cannot be pooled: {layer.why_not}")
    raise _unknown(available, name, backbone)


def _match_glob(available: Sequence[LayerInfo], pattern: str, backbone: str) -> set[str]:
    expression = glob_expression(pattern)
    matches = [layer for layer in available if expression.fullmatch(layer.name)]
    if not matches:
        raise _unknown(available, pattern, backbone)
    shortest: dict[str, str] = {}
    for layer in sorted(matches, key=lambda layer: len(layer.name)):
        if layer.poolable:
            shortest.setdefault(layer.node, layer.name)
    if not shortest:
        reasons = f"{matches[0].name}: {matches[0].why_not}"
        raise UnpoolableLayerError(f"no layer that {pattern!r} matches in {backbone} can be pooled; {reasons}")
    return set(shortest.values())


def _unknown(available: Sequence[LayerInfo], name: str, backbone: str) -> UnknownLayerError:
    known = [layer.name for layer in available if layer.poolable]
    return UnknownLayerError(
        f"backbone {backbone} has no layer {name!r}{did_you_mean(name, known)}; "
        f"`icecore layers {backbone}` lists its {len(known)} layers"
    )
