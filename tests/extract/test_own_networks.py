"""A network of one's own gives what it gives without icecore, or is refused; and its code is part of its contract."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from icecore.extract import Backbone, Preprocess, backbone_for, load_backbone
from icecore.extract.errors import TraceError
from icecore.store import ContractMismatchError

SMALL = Preprocess(resize=16, crop=16)
BODY = """
import math
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, scale=1.0, eps=1e-5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=eps)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners={corners})
        self.drop, self.relu, self.scale = nn.Dropout(0.1), nn.ReLU(inplace=True), scale
        self.register_buffer("gain", torch.full((8, 1, 1), {gain}), persistent=False)
        self.plain = torch.full((8, 1, 1), {plain})

    def forward(self, x):
        x = self.norm(self.conv(x))
        {change}
        return self.up(x) * self.gain * {constant} + self.plain

def net(**arguments):
    return Net(**arguments)
"""
DEFAULTS = {"corners": "False", "gain": "1.0", "plain": "0.0", "constant": "2.0", "change": "x = self.relu(x)"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Function that writes a module with a network and gives its name: ``own(constant="3.0")``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    number = itertools.count()

    def own(**parts: str) -> str:
        name = f"net{next(number)}_of_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(BODY).format(**{**DEFAULTS, **parts}))
        return f"{name}:net"

    return own


@pytest.fixture
def load(own: Callable[..., str]) -> Callable[..., Backbone]:
    return lambda **parts: load_backbone(own(**parts), preprocess=SMALL)


Load = Callable[..., Backbone]


@pytest.mark.parametrize(
    "change",
    [
        "x = x + self.relu(self.drop(x))",  # in eval mode Dropout gives its input itself
        "v = x[:, :4]; self.relu(x); x = torch.cat([v, x[:, 4:]], 1)",
        "x = x + x.contiguous().relu_()",
        "y = self.drop(x); y += 1; x = x * y",
        "y = x.float(); x = y.mul_(2) + x",
        "x = x + torch.rand(8, 16, 16)",
    ],
)
def test_a_network_whose_graph_gives_something_else_is_refused(change: str, load: Load) -> None:
    with pytest.raises(TraceError, match=r"Net: .* differs between the network and its graph"):
        load(change=change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("x = x * 1; x.zero_()", r"Tensor.zero_ writes into a tensor in place"),
        ("x.copy_(x + 1)", r"Tensor.copy_ writes"),
        ("y = x * 0; torch.add(x, 1, out=y); x = y", r"add\(out=...\) writes"),
    ],
)
def test_an_operation_that_can_only_write_in_place_is_refused(change: str, words: str, load: Load) -> None:
    with pytest.raises(TraceError, match=words):
        load(change=change)


@pytest.mark.parametrize(
    "change",
    [
        "x = self.relu(self.drop(x))",
        "y = self.norm(x); y += x; x = self.relu(y)",
        "F.hardtanh_(x)",
        "x.relu_(); torch.sigmoid_(x); x = F.elu(x, inplace=True).sub_(1)",
        "x, _ = x.chunk(2, 1); x = torch.cat([x, x.abs()], 1)",
    ],
)
def test_careful_use_of_inplace_operations_is_no_fault(change: str, load: Load) -> None:
    load(change=change)


def test_a_size_that_the_network_does_not_take_is_told(own: Callable[..., str]) -> None:
    with pytest.raises(TraceError, match="Net: does not take images of 3 x 16 x 16"):
        load_backbone(own(change="x = x.view(-1, 8, 32, 32)[:, :, :16, :16] + x"), preprocess=SMALL)


@pytest.mark.parametrize(
    "parts",
    [
        {"constant": "3.0"},
        {"gain": "7.0"},
        {"plain": "7.0"},
        {"corners": "True"},
        {"change": "x = F.gelu(x)"},
        {"change": "x = F.leaky_relu(x, 0.2)"},
        {"change": "x = self.relu(x); x = x * math.pi"},
    ],
)
def test_what_changes_values_changes_the_contract(parts: dict[str, str], load: Load) -> None:
    assert load(**parts).weights_sha256 != load().weights_sha256


def test_what_does_not_change_values_leaves_the_contract_as_it_was(load: Load) -> None:
    same = load(change="x = self.relu(x)  # as it was")
    assert load().weights_sha256 == load().weights_sha256 == same.weights_sha256


@pytest.mark.slow
def test_code_hashes_alike_in_another_process(own: Callable[..., str], tmp_path: Path) -> None:
    name = own(change="x = self.relu(x); x = torch.einsum('nchw->nchw', x).to(torch.float32)[..., 1:]")
    code = (
        f"from icecore.extract import *; print(load_backbone({name!r}, preprocess=Preprocess(16, 16)).weights_sha256)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == load_backbone(name, preprocess=SMALL).weights_sha256 + "\n"


def test_a_function_that_brings_its_own_weights_is_found_again(own: Callable[..., str], tmp_path: Path) -> None:
    name = own()
    original = load_backbone(name, preprocess=SMALL)
    assert original.source["weights"] is None
    assert backbone_for(original.contract(), source=original.source).contract() == original.contract()
    module = tmp_path / f"{name.partition(':')[0]}.py"
    # Of another length: a cached bytecode file is told from its source by size and second.
    module.write_text(module.read_text().replace("* 2.0", "* 2.25"))
    del sys.modules[module.stem]
    with pytest.raises(
        ContractMismatchError, match=rf"(?s)the weights that {name} builds: not the .* and the code as it was then"
    ):
        backbone_for(original.contract(), source=original.source)
