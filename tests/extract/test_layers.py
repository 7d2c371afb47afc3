"""Layers are named as torchvision names them, with shapes, and chosen by name or glob."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torchvision
from icecore.extract import known_backbones, list_layers, resolve_layers
from icecore.extract.errors import BackboneNotFoundError, TraceError, UnknownLayerError, UnpoolableLayerError
from icecore.extract.graph import trace
from icecore.extract.layers import LayerInfo, columns_for
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names


@cache
def by_name(name: str, **options: int) -> dict[str, LayerInfo]:
    return {layer.name: layer for layer in list_layers(name, **options)}


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "mobilenet_v3_small", "swin_t"])
def test_node_names_are_torchvisions_own_in_its_order(name: str) -> None:
    network = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {})).eval()
    theirs = get_graph_node_names(network, suppress_diff_warning=True)[1]
    assert list(trace(network).names.values()) == theirs


def test_a_module_path_means_the_node_that_torchvision_takes_for_it() -> None:
    network = torchvision.models.resnet18().eval()
    batch = torch.randn(1, 3, 64, 64)
    paths = ["layer1", "layer3.0", "layer3.0.downsample", "maxpool"]
    theirs = create_feature_extractor(network, paths, suppress_diff_warning=True).eval()
    nodes = trace(network)
    own = create_feature_extractor(network, {nodes.names[nodes.nodes[p]]: p for p in paths}, suppress_diff_warning=True)
    with torch.inference_mode():
        a, b = theirs(batch), own.eval()(batch)
    assert all(torch.equal(a[path], b[path]) for path in paths)


@pytest.mark.parametrize(
    ("name", "layer", "shape", "layout", "width"),
    [
        ("resnet18", "layer4", (512, 7, 7), "NCHW", 512),
        ("resnet18", "flatten", (512,), "NC", 512),
        ("squeezenet1_1", "features.12", (512, 13, 13), "NCHW", 512),
        ("mobilenet_v2", "features.18", (1280, 7, 7), "NCHW", 1280),
        ("vgg11", "avgpool", (512, 7, 7), "NCHW", 512),
        ("inception_v3", "Mixed_7c", (2048, 8, 8), "NCHW", 2048),
        ("swin_t", "features.7", (7, 7, 768), "NHWC", 768),
        ("swin_t", "permute", (768, 7, 7), "NCHW", 768),
        ("vit_b_16", "encoder.layers.encoder_layer_5", (197, 768), "NLC", 768),
        ("vit_b_16", "conv_proj", (768, 14, 14), "NCHW", 768),
        ("maxvit_t", "blocks.3", (512, 7, 7), "NCHW", 512),
        ("convnext_tiny", "features.7", (768, 7, 7), "NCHW", 768),
        ("regnet_y_400mf", "trunk_output", (440, 7, 7), "NCHW", 440),
    ],
)
def test_shape_layout_and_width_are_told(
    name: str, layer: str, shape: tuple[int, ...], layout: str, width: int
) -> None:
    info = by_name(name)[layer]
    assert (info.shape, info.layout, info.width, info.why_not) == (shape, layout, width, "")


def test_what_cannot_be_pooled_says_why() -> None:
    vit, swin = by_name("vit_b_16"), by_name("swin_t")
    assert vit["encoder.layers.encoder_layer_0.self_attention"].why_not == "it gives a tuple, not one tensor"
    assert vit["getitem"].why_not == "it gives a int, not one tensor"
    assert vit["x"].why_not == "it is the input itself"
    assert vit["reshape"].why_not == "the meaning of its axes (768, 196) cannot be told"
    table = "features.1.0.attn.features_1_0_attn_relative_position_bias_table"
    assert swin[table].why_not == "its first axis is not the images of the batch"
    assert not any(info.poolable for name, info in by_name("maxvit_t").items() if name.endswith("attn.softmax"))


def test_another_input_size_gives_other_shapes() -> None:
    assert by_name("resnet18", size=64)["layer4"].shape == (512, 2, 2)
    assert by_name("vit_b_16", size=64)["encoder.ln"].shape == (17, 768)
    with pytest.raises(BackboneNotFoundError, match=r"cannot be built with {'image_size': 200}"):
        list_layers("vit_b_16", size=200)


@pytest.fixture(scope="module")
def mobilenet() -> tuple[LayerInfo, ...]:
    return list_layers("mobilenet_v2")


def test_a_star_stays_within_one_part_of_the_name(mobilenet: tuple[LayerInfo, ...]) -> None:
    assert resolve_layers(mobilenet, ["features.*"]) == [f"features.{n}" for n in range(19)]
    assert resolve_layers(mobilenet, ["features.1?"]) == [f"features.{n}" for n in range(10, 19)]
    assert resolve_layers(mobilenet, ["features.[246]"]) == ["features.2", "features.4", "features.6"]
    assert resolve_layers(mobilenet, ["features.?.conv.[!0]"])[:2] == ["features.1.conv.1", "features.1.conv.2"]


def test_two_stars_cross_dots_and_name_every_node_once(mobilenet: tuple[LayerInfo, ...]) -> None:
    names = resolve_layers(mobilenet, ["features.3.**"])
    assert names == [*(f"features.3.conv.{n}" for n in range(3)), "features.3.conv", "features.3.add"]
    nodes = [layer.node for layer in mobilenet if layer.name in resolve_layers(mobilenet, ["**"])]
    assert len(nodes) == len(set(nodes)) == len({layer.node for layer in mobilenet if layer.poolable})


def test_layers_come_in_the_order_of_the_network_each_once(mobilenet: tuple[LayerInfo, ...]) -> None:
    asked = ["features.18", "features.6", "features.1?", "features.6"]
    assert resolve_layers(mobilenet, asked)[:2] == ["features.6", "features.10"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("features.6x", "no layer 'features.6x'; did you mean 'features.6'\\?"),
        ("feature.*", "no layer 'feature.*'"),
        ("layer4", "`icecore layers mobilenet_v2` lists"),
    ],
)
def test_a_name_that_matches_nothing_is_an_error_with_a_suggestion(
    pattern: str, words: str, mobilenet: tuple[LayerInfo, ...]
) -> None:
    with pytest.raises(UnknownLayerError, match=words):
        resolve_layers(mobilenet, ["features.1", pattern], backbone="mobilenet_v2")


def test_no_layers_at_all_is_an_error(mobilenet: tuple[LayerInfo, ...]) -> None:
    with pytest.raises(UnknownLayerError, match="no layers asked for"):
        resolve_layers(mobilenet, [])


def test_a_name_that_cannot_be_pooled_is_an_error_and_a_glob_passes_over_it() -> None:
    layers = list_layers("vit_b_16")
    with pytest.raises(UnpoolableLayerError, match="'getitem' of vit_b_16 cannot be pooled: it gives a int"):
        resolve_layers(layers, ["getitem"], backbone="vit_b_16")
    with pytest.raises(UnpoolableLayerError, match="no layer that 'getattr\\*' matches"):
        resolve_layers(layers, ["getattr*"], backbone="vit_b_16")
    assert resolve_layers(layers, ["get*"]) == ["getitem_5"]


def test_a_vector_layer_has_one_column_whatever_poolings_are_asked() -> None:
    columns = columns_for(list_layers("resnet18"), ["layer4", "flatten"], ["avg", "gem"], dtype="float32")
    assert [c.name for c in columns] == ["layer4:avg:float32", "layer4:gem3:float32", "flatten:flat:float32"]
    assert [c.width for c in columns] == [512, 512, 512]


def test_a_misspelt_backbone_gets_a_suggestion() -> None:
    with pytest.raises(BackboneNotFoundError, match="no backbone 'resnet81'; did you mean 'resnet18'\\?"):
        list_layers("resnet81")


def test_ones_own_network_is_listed(own_net: str) -> None:
    layers = by_name(own_net, size=32)
    assert layers["block1"].shape == (8, 16, 16)
    assert layers["mean"].layout == "NC"


@pytest.mark.parametrize(
    ("function", "error", "words"),
    [
        ("nett", BackboneNotFoundError, "no function 'nett'; did you mean 'net'"),
        ("not_a_network", BackboneNotFoundError, "gives a int, expected a torch.nn.Module"),
        ("branching", TraceError, "torch.fx cannot follow it"),
    ],
)
def test_ones_own_network_that_cannot_be_used_says_why(
    function: str, error: type[Exception], words: str, own_net: str
) -> None:
    with pytest.raises(error, match=words):
        list_layers(own_net.replace(":net", f":{function}"))


def test_a_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(BackboneNotFoundError, match="module 'no_such_module' cannot be imported"):
        list_layers("no_such_module:net")


@pytest.mark.slow
@pytest.mark.parametrize("name", known_backbones())
def test_every_torchvision_classifier_has_layers_with_a_known_layout(name: str) -> None:
    layers = list_layers(name)
    poolable = [layer for layer in layers if layer.poolable]
    assert poolable[-1].width == 1000
    assert all(layer.width > 0 for layer in poolable)
    maps = [layer for layer in poolable if layer.layout in {"NCHW", "NHWC", "NLC"} and layer.shape[-2] > 1]
    assert maps[-1].width >= 256  # AlexNet's; the others have 400 and more
    assert len(poolable) > 20
