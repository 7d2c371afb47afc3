"""``cls`` is the class token and ``mean`` the patches after it, where the network proves or says that there is one."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from icecore.extract import Backbone, Preprocess, list_layers, load_backbone
from icecore.extract.errors import TraceError, UnknownLayerError, UnpoolableLayerError
from icecore.extract.layers import columns_for
from icecore.extract.trunk import Trunk

SMALL = Preprocess(resize=32, crop=32)
SOURCE = """
import torch
from torch import nn
from torchvision.models import VisionTransformer

class Tokens(nn.Module):
    def __init__(self, names):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 17, 8))
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        if names is not None:
            self.class_token_layers = names

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

def tokens(names=None):
    return Tokens(names)

def wrapped():
    vit = VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    return nn.Sequential(vit, nn.Linear(1000, 3))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backbone]:
    """Function that loads a network of this file: ``own("tokens", names=["norm"])``."""
    (tmp_path / "tokennets.py").write_text(textwrap.dedent(SOURCE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tokennets", raising=False)
    return lambda name, **arguments: load_backbone(f"tokennets:{name}", preprocess=SMALL, arguments=arguments)


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def hooked(module: torch.nn.Module, path: str) -> np.ndarray:
    """What a plain forward hook sees: (3, L, C)."""
    seen: list[torch.Tensor] = []
    handle = module.get_submodule(path).register_forward_hook(lambda part, args, output: seen.append(output.clone()))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SMALL.mean, SMALL.std))
    with torch.inference_mode():
        module((torch.from_numpy(pixels(3)).float() / 255 - mean) / std)
    handle.remove()
    return seen[0].numpy()


def require_tokens(backbone: Backbone, layer: str) -> None:
    tokens = hooked(backbone.module, layer)
    columns = columns_for(backbone.layers, [layer], ["cls", "mean", "avg"])
    assert [column.name for column in columns] == [f"{layer}:cls", f"{layer}:mean", f"{layer}:avg"]
    features = Trunk(backbone, columns, device="cpu", batch_size=4).forward(pixels(3))
    expected = [tokens[:, 0], tokens[:, 1:].mean(1), tokens.mean(1)]
    assert not np.allclose(expected[1], expected[2], atol=1e-3)
    for column, rows in zip(columns, expected, strict=True):
        np.testing.assert_allclose(features[column], rows, rtol=1e-4, atol=1e-5, err_msg=column.name)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    torch.manual_seed(0)
    network = torchvision.models.vit_b_32(image_size=32)
    torch.nn.init.normal_(network.class_token)  # it begins as zeros
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(network.state_dict(), path)
    return load_backbone("vit_b_32", path, preprocess=SMALL, arguments={"image_size": 32})


def test_a_vits_class_token_and_its_patches_are_pooled_apart(own: Callable[..., Backbone]) -> None:
    require_tokens(own("wrapped"), "0.encoder.ln")


def test_of_torchvisions_vit_every_layer_after_the_token_was_laid_before_the_patches_has_it(vit: Backbone) -> None:
    layers = {layer.name: layer for layer in vit.layers if layer.poolable}
    with_token = {name for name, layer in layers.items() if layer.class_token}
    assert {"cat", "encoder", "encoder.dropout", "encoder.layers.encoder_layer_11.mlp", "encoder.ln"} <= with_token
    assert {name for name, layer in layers.items() if layer.layout == "NLC"} - with_token == {"permute", "expand"}
    assert layers["conv_proj"].poolings == ("avg", "max", "gem")
    assert layers["encoder.ln"].poolings == ("avg", "max", "gem", "cls", "mean")


def test_the_class_token_of_the_last_layer_is_what_the_head_sees(vit: Backbone) -> None:
    columns = columns_for(vit.layers, ["encoder.ln", "getitem_5"], ["cls"])
    assert [column.name for column in columns] == ["encoder.ln:cls", "getitem_5:flat"]
    token, seen = Trunk(vit, columns, device="cpu", batch_size=2).forward(pixels(2)).values()
    np.testing.assert_array_equal(token, seen)


@pytest.mark.parametrize(("backbone", "layer"), [("swin_t", "features.7"), ("resnet18", "layer4")])
def test_cls_is_refused_where_there_is_no_class_token_and_mean_is_avg(backbone: str, layer: str) -> None:
    layers = list_layers(backbone)
    with pytest.raises(UnpoolableLayerError, match=rf"layer '{layer}': pooling 'cls' is for .* has none: use mean"):
        columns_for(layers, [layer], ["avg", "cls"])
    assert columns_for(layers, [layer], ["mean", "avg"]) == columns_for(layers, [layer], ["avg"])


def test_ones_own_network_says_which_layers_begin_with_a_class_token(own: Callable[..., Backbone]) -> None:
    backbone = own("tokens", names=["blocks.?", "norm"])
    found = {layer.name for layer in backbone.layers if layer.class_token}
    assert found == {"blocks.0", "blocks.1", "norm", "blocks.0.1", "blocks.1.1", "blocks"}  # names of the same outputs
    require_tokens(backbone, "blocks.1")


def test_without_a_word_of_it_the_tokens_of_ones_own_network_are_not_guessed(own: Callable[..., Backbone]) -> None:
    layers = {layer.name: layer for layer in own("tokens").layers}
    assert not any(layer.class_token for layer in layers.values())
    assert "cannot be told" in layers["norm"].why_not  # it takes one size only, so nothing tells its axes apart


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["block.?"], UnknownLayerError, "Tokens: class_token_layers names 'block.?', and there is no such layer"),
        ("norm", TraceError, "Tokens: class_token_layers must be a list of layer names and globs, found 'norm'"),
    ],
)
def test_a_declaration_that_means_nothing_is_refused(
    names: object, error: type[Exception], words: str, own: Callable[..., Backbone]
) -> None:
    with pytest.raises(error, match=words.replace("?", "\\?")):
        _ = own("tokens", names=names).layers
