"""``icecore layers`` lists what can be extracted; shapes are those of the networks' papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Icecore = Callable[..., Any]


@pytest.mark.parametrize(
    ("backbone", "layer", "shape", "layout", "width", "poolings"),
    [
        ("resnet18", "layer4", [512, 7, 7], "NCHW", 512, "avg max gem"),
        ("resnet18", "fc", [1000], "NC", 1000, "flat"),
        ("vit_b_16", "encoder.ln", [197, 768], "NLC", 768, "avg max gem cls mean"),  # 14 x 14 patches, class token
        ("vit_b_16", "conv_proj", [768, 14, 14], "NCHW", 768, "avg max gem"),
        ("swin_t", "features.7", [7, 7, 768], "NHWC", 768, "avg max gem"),
        ("swin_t", "features.1", [56, 56, 96], "NHWC", 96, "avg max gem"),
    ],
)
def test_convnet_vit_and_swin_are_listed_with_shape_layout_and_width(
    icecore: Icecore, backbone: str, layer: str, shape: list[int], layout: str, width: int, poolings: str
) -> None:
    done = icecore("layers", backbone, "--json")
    assert (done.code, done.outcome["backbone"]) == (0, backbone)
    found = {row["name"]: row for row in done.outcome["layers"]}
    seen = {"name": layer, "shape": shape, "layout": layout, "width": width, "why_not": "", "hooks": False}
    assert found[layer] == {**seen, "poolings": poolings.split()}
    assert all(row["width"] for row in found.values())
    told = icecore("layers", backbone).text.splitlines()
    assert told[0].split() == ["layer", "shape", "layout", "pooled", "width", "poolings"]
    assert [layer, "x".join(map(str, shape)), layout, str(width), *poolings.split()] in [line.split() for line in told]


def test_patterns_choose_and_keep_the_order_of_the_network(icecore: Icecore) -> None:
    done = icecore("layers", "resnet18", "layer4", "layer[12]", "--json")
    assert [row["name"] for row in done.outcome["layers"]] == ["layer1", "layer2", "layer4"]


def test_the_size_of_the_input_decides_the_maps_not_the_width(icecore: Icecore) -> None:
    done = icecore("layers", "resnet18", "layer4", "--size", "448", "--json")
    assert done.outcome["layers"][0]["shape"] == [512, 14, 14]
    assert done.outcome["layers"][0]["width"] == 512


def test_all_shows_what_cannot_be_pooled_and_why(icecore: Icecore) -> None:
    plain, everything = (icecore("layers", "vit_b_16", *more, "--json").outcome for more in ((), ("--all",)))
    assert len(everything["layers"]) > len(plain["layers"])
    assert any(row["why_not"] == "it is the input itself" for row in everything["layers"])
    assert "it is the input itself" in icecore("layers", "vit_b_16", "--all").text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("resnte18",), 4, "no backbone 'resnte18'; did you mean 'resnet18'?"),
        (("a.b",), 4, "no backbone 'a.b'; it is one of torchvision's"),
        (("",), 4, "no backbone ''"),
        (("resnet18", "laier4"), 4, "backbone resnet18 has no layer 'laier4'; did you mean 'layer4'?"),
        (("resnet18", "nosuch*"), 4, "backbone resnet18 has no layer 'nosuch*'; `icecore layers resnet18` lists its"),
        (("vit_b_16", "--size", "232"), 4, "vit_b_16: cannot be built with {'image_size': 232}"),
        (("os:getcwd",), 4, "os:getcwd: gives a str, expected a torch.nn.Module"),
        (("os:getcdw",), 4, "os has no function 'getcdw'"),
    ],
)
def test_what_is_not_there_is_named_with_what_was_meant(
    icecore: Icecore, words: tuple[str, ...], code: int, message: str
) -> None:
    done = icecore("layers", *words)
    assert (done.code, done.out) == (code, b"")
    assert message in done.told


def test_one_page_of_text_for_people_and_one_line_for_machines(icecore: Icecore) -> None:
    assert len(icecore("layers", "squeezenet1_1").out.splitlines()) > 50
    assert len(icecore("layers", "squeezenet1_1", "--json").out.splitlines()) == 1


def test_a_size_that_a_transformer_cannot_have_is_told(icecore: Icecore) -> None:
    done = icecore("layers", "vit_b_16", "--size", "225")
    assert done.code == 4
    assert "vit_b_16: cannot be built with {'image_size': 225}" in done.told
