"""Every torchvision classification model traces, and each of its layers is what the network itself gives.

The witness is the network as torchvision builds it, at the smallest input that it takes: forward hooks on its
modules, and torchvision's own graph for what no module gives. Both copy a value the moment it is there.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from icecore.extract import Backbone, LayerInfo, known_backbones, load_backbone
from icecore.extract.builders import find_builder
from icecore.extract.graph import cut, trace
from icecore.extract.layers import columns_for
from icecore.extract.trunk import Trunk
from safetensors.torch import save_file
from torch import fx, nn
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor

SIZES = {"alexnet": 63, "inception_v3": 75, "maxvit_t": 224, "vit_h_14": 28}
"""smallest inputs; all others take 32 x 32"""
FAMILIES = ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_32"]
POSITIONS = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,), "NC": ()}


def build(name: str) -> tuple[nn.Module, dict[str, Any], int]:
    """The network as torchvision builds it, with the arguments that it took, and the side of its input."""
    size = SIZES.get(name, 32)
    builder = find_builder(name)
    arguments = builder.arguments(builder.recipes[0])
    if name.startswith("vit_"):
        arguments["image_size"] = size
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, **quiet, **arguments).eval().requires_grad_(False)
    return network, arguments, size


def witnessed(network: nn.Module, batch: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What every module gave last, by hooks, and what every node of torchvision's graph gave."""
    by_module: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: by_module.update({name: copied(output)})

    with ExitStack() as hooks:
        for name, part in network.named_modules():
            hooks.callback(part.register_forward_hook(keep(name)).remove)
        network(batch.clone())
    leaves = [v for v in vars(torchvision.ops).values() if isinstance(v, type) and issubclass(v, nn.Module)]
    tracer = NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=leaves)
    graph = tracer.trace(network)
    keeper = Keeper(fx.GraphModule(tracer.root, graph))
    keeper.run(batch.clone())
    by_node = {name: keeper.seen[node] for node, name in tracer.node_to_qualname.items() if node in keeper.seen}
    return {name: value for name, value in by_module.items() if value is not None}, by_node


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else None


class Keeper(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.seen: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.seen[n] = value.clone()
        return value


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for weights of up to 2.6 GB, which are not kept."""
    yield tmp_path
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    gc.collect()


@torch.inference_mode()
def walk(name: str, folder: Path) -> None:
    network, arguments, size = build(name)
    file = folder / f"{name}.safetensors"
    save_file(network.state_dict(), file)
    changes = {"resize": size, "crop": size}
    backbone = load_backbone(name, file, arguments=arguments, preprocess_changes=changes)
    layers = [layer for layer in backbone.layers if layer.poolable]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    preset = next(iter(torchvision.models.get_model_weights(name))).transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
    batch = (torch.from_numpy(pixels).float() / 255 - mean) / std
    by_module, by_node = witnessed(network, batch)
    expected = {layer.name: by_node[layer.node] for layer in layers}
    every_layer_is_the_witness(backbone, layers, batch, expected, by_module)
    a_spread_of_layers_is_extracted(backbone, spread(layers), pixels, expected)


def every_layer_is_the_witness(
    backbone: Backbone,
    layers: list[LayerInfo],
    batch: torch.Tensor,
    expected: Mapping[str, torch.Tensor],
    by_module: Mapping[str, torch.Tensor],
) -> None:
    traced = trace(backbone.module)
    ends = {str(node.target): name for node, name in traced.names.items() if node.op == "call_module"}
    outputs = cut(traced, [layer.name for layer in layers])(batch.clone())
    hooked = 0
    for layer, output in zip(layers, outputs, strict=True):
        assert tuple(output.shape) == (len(batch), *layer.shape), layer
        torch.testing.assert_close(output, expected[layer.name], rtol=0, atol=0, equal_nan=True)
        if ends.get(layer.name) == layer.node:  # a module that the graph calls, under its own name
            torch.testing.assert_close(output, by_module[layer.name], rtol=0, atol=0, equal_nan=True)
            hooked += 1
    assert hooked > 10
    assert all(torch.isfinite(output).all() for output in outputs)
    assert sum(bool(output.any()) for output in outputs) > 0.9 * len(outputs)  # zeros would prove little


def spread(layers: list[LayerInfo]) -> list[LayerInfo]:
    """The first, the middle and the last layer, and one of each layout."""
    chosen = [layers[0], layers[len(layers) // 2], layers[-1]]
    for layout in POSITIONS:
        chosen += [layer for layer in layers if layer.layout == layout][-1:]
    return chosen


def a_spread_of_layers_is_extracted(
    backbone: Backbone, layers: list[LayerInfo], pixels: np.ndarray, expected: Mapping[str, torch.Tensor]
) -> None:
    columns = columns_for(backbone.layers, dict.fromkeys(layer.name for layer in layers), ["avg"])
    features = Trunk(backbone, columns, device="cpu", batch_size=3).forward(pixels)
    for column in columns:
        positions = POSITIONS[column.layout]
        theirs = expected[column.layer].double()
        pooled = (theirs.mean(positions) if positions else theirs).numpy()
        assert features[column].shape == (2, column.width)
        scale = np.abs(pooled).max()
        np.testing.assert_allclose(features[column], pooled, rtol=0, atol=2e-4 * scale, err_msg=column.name)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_of_a_family_is_what_the_network_gives(name: str, folder: Path) -> None:
    walk(name, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(known_backbones()) - set(FAMILIES)))
def test_every_layer_of_every_classifier_is_what_the_network_gives(name: str, folder: Path) -> None:
    walk(name, folder)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer3"), ("swin_t", "features.5")])
def test_a_layer_is_what_create_feature_extractor_gives(name: str, layer: str) -> None:
    network, _, size = build(name)
    batch = torch.randn(2, 3, size, size)
    theirs = create_feature_extractor(network, [layer], suppress_diff_warning=True)
    with torch.inference_mode():
        (ours,) = cut(trace(network), [layer])(batch)
        torch.testing.assert_close(ours, theirs(batch)[layer], rtol=0, atol=0)
