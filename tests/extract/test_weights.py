"""A network's own file loads, under every name and wrapping in which it is found in the wild."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from icecore.extract import load_backbone
from icecore.extract.builders import find_builder, known_backbones
from icecore.extract.weight_files import read_weights
from icecore.extract.weights import load_into
from torch import nn
from torchvision import models

Renaming = Callable[[str], str]


def built(name: str) -> nn.Module:
    """The network as torchvision builds it for its weights, in memory that nobody has written to."""
    builder = find_builder(name)
    return builder.build(builder.arguments(builder.recipes[0]), meta=True).to_empty(device="cpu")


def state_of(network: nn.Module, rename: Renaming = str) -> OrderedDict[str, torch.Tensor]:
    """A state dict for the network, every tensor all zeros in one number's memory."""
    tensors = network.state_dict().items()
    return OrderedDict(
        (rename(name), torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)) for name, tensor in tensors
    )


def require_whole(network: nn.Module, state: OrderedDict[str, torch.Tensor]) -> None:
    loading = load_into(network, state, where="file")
    assert (loading.missing, loading.misshapen, loading.extra) == (frozenset(), {}, frozenset())
    assert not any(tensor.any() for name, tensor in network.state_dict().items() if name in loading.loaded)


SAMPLE = ("densenet121", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v3_small", "squeezenet1_0", "swin_t")


@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_loads_its_own_state_dict(name: str) -> None:
    network = built(name)
    require_whole(network, state_of(network))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(known_backbones()) - set(SAMPLE)))
def test_every_network_loads_its_own_state_dict(name: str) -> None:
    network = built(name)
    require_whole(network, state_of(network))


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_mnasnet_loads_with_and_without_the_version_in_its_file(with_metadata: bool, tmp_path: Path) -> None:
    state = models.mnasnet0_5().state_dict()
    torch.save(state if with_metadata else dict(state), tmp_path / "w.pth")
    assert hasattr(read_weights(tmp_path / "w.pth"), "_metadata") == with_metadata
    load_backbone("mnasnet0_5", tmp_path / "w.pth").require(["layers", "classifier"])


def test_a_mnasnet_of_the_first_version_is_rebuilt_as_that() -> None:
    """Its stem was wider; torchvision swaps it in while loading, in training mode."""
    older = built("mnasnet0_5")
    first = copy.deepcopy(older)
    wide = built("mnasnet1_0").layers[:8]  # the stem of version 1, whatever the width of the rest
    for index, layer in enumerate([*wide, models.mnasnet._stack(16, 16, 3, 2, 3, 3, 0.1)]):
        first.layers[index] = layer
    state = state_of(first)
    state._metadata = OrderedDict({"": {"version": 1}})
    require_whole(older, state)
    assert not any(part.training for part in older.modules())
    assert not any(parameter.requires_grad for parameter in older.parameters())


def _old_vit(name: str) -> str:
    return re.sub(r"\.mlp\.(0|3)\.", lambda match: f".mlp.linear_{1 + int(match[1]) // 3}.", name)


def _old_densenet(name: str) -> str:
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)


@pytest.mark.parametrize(
    ("name", "rename"), [("vit_b_16", _old_vit), ("densenet121", _old_densenet)], ids=["vit", "densenet"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_names_of_older_published_files_are_followed(name: str, rename: Renaming, prefix: str) -> None:
    network = built(name)
    state = state_of(network, lambda name: prefix + rename(name))
    assert len(state.keys() - network.state_dict().keys()) > 40
    require_whole(network, state)


def test_a_network_that_has_such_names_itself_keeps_them() -> None:
    network: nn.Module = nn.BatchNorm2d(3)
    for name in ("1", "norm", "denselayer1", "module"):
        network = nn.ModuleDict({name: network})
    assert "module.denselayer1.norm.1.weight" in network.state_dict()
    require_whole(network, state_of(network))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module._orig_mod."]
)
@pytest.mark.parametrize("averaged", [True, False])
def test_prefixes_of_wrappers_come_off_in_any_order(prefix: str, averaged: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = state_of(network, lambda name: prefix + name)
    if averaged:
        state["n_averaged"] = torch.tensor(3)
    require_whole(network, state)


def test_the_version_of_a_wrapped_file_reaches_the_modules(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(models.mnasnet0_5())
    torch.save({"model": wrapped.state_dict()}, tmp_path / "w.pth")
    load_backbone("mnasnet0_5", tmp_path / "w.pth").require(["layers"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_format_is_told_by_the_first_bytes_not_by_the_name(suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / f"one{suffix}")
    torch.save({"a": torch.ones(2)}, tmp_path / f"two{suffix}")
    torch.save({"a": torch.ones(2)}, tmp_path / f"three{suffix}", _use_new_zipfile_serialization=False)
    for name in ("one", "two", "three"):
        assert read_weights(tmp_path / f"{name}{suffix}")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("beginning", [b"\x80", b"\x50\x4b"])
def test_a_safetensors_file_may_begin_like_a_pickle_or_a_zip_file(beginning: bytes, tmp_path: Path) -> None:
    """Its first bytes are the length of its header, a multiple of 8: any such number."""
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    for length in range(3_000):
        save_file({"a": torch.ones(2)}, path, metadata={"padding": "x" * (8 * length)})
        if path.read_bytes().startswith(beginning):
            break
    assert path.read_bytes().startswith(beginning)
    assert read_weights(path)["a"].tolist() == [1, 1]
