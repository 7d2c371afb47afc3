"""A network of one's own that torch.fx cannot follow gives its layers by forward hooks, as plain hooks see them."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import (
    Backbone,
    CompileError,
    ExtractReport,
    Preprocess,
    UnknownLayerError,
    WeightsError,
    backbone_for,
    features_of,
    load_backbone,
)
from icecore.extract.errors import TraceError
from icecore.extract.hooked import HookedNetwork
from icecore.extract.layers import columns_for
from icecore.extract.trunk import Trunk
from icecore.store import ContractMismatchError, FeatureStore

Extract = Callable[..., ExtractReport]
SMALL = Preprocess(resize=32, crop=32)
HELPER = "FACTOR = 2.0\n\ndef scale(x):\n    return x * FACTOR\n"
SOURCE = """
import hookhelp
import torch
from torch import nn

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid())
        self.deep = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 4)
        self.offset = torch.full((8, 1, 1), {offset})

class Shapes(Base):                                # looks at shapes only
    def forward(self, x):
        if x.shape[2] % 2:
            x = x[:, :, 1:, 1:]
        x = self.relu(self.norm(self.stem(x)))     # norm's output is changed in place
        x = hookhelp.scale(self.body(x) + self.offset)
        for _ in range(x.shape[2] // 8):
            x = self.body(x)                       # called again: two times more
        x = self.deep(x)
        return self.head(x.mean((2, 3)))

class Values(Base):                                # decides on values, of all images that it sees
    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.body(x) if x.mean() > {limit} else self.deep(x)
        return self.head(x.mean((2, 3)))

class Sometimes(Base):                             # the deep layer is for dark images only
    def forward(self, x):
        y = self.relu(self.norm(self.stem(x)))
        if x.mean() < {limit}:
            y = self.deep(y)
        return self.head(y.mean((2, 3)))

class Inference(Shapes):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)

class Random(Base):
    def forward(self, x):
        return self.stem(x + torch.rand(x.shape[-1] if x.shape[-1] % 2 == 0 else 1))

class Mixing(Base):
    def forward(self, x):
        x = self.stem(x - x.mean(0) if x.shape[0] > 1 else x)
        return self.head(x.mean((2, 3)))

class Bare(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Picky(Base):
    def forward(self, x):
        x = self.stem(x)
        if x.shape[2] != 16:
            raise ValueError("16 pixels only")
        return self.body(x).flatten(2)

def shapes(): return Shapes()
def values(): return Values()
def sometimes(): return Sometimes()
def inference(): return Inference()
def random(): return Random()
def mixing(): return Mixing()
def bare(): return Bare()
def picky(): return Picky()
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Function that writes the networks, with changes, and gives the name of their module."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(*, limit: float = 0.5, offset: float = 0.0, helper: str = HELPER, note: str = "") -> str:
        for name in ("hooknets", "hookhelp"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "hookhelp.py").write_text(helper)
        text = textwrap.dedent(SOURCE).replace("{limit}", str(limit)).replace("{offset}", str(offset))
        (tmp_path / "hooknets.py").write_text(text + note)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)  # changes within a second go unnoticed
        return "hooknets"

    return write


@pytest.fixture
def load(write: Callable[..., str]) -> Callable[..., Backbone]:
    return lambda name, **changes: load_backbone(f"{write(**changes)}:{name}", preprocess=SMALL)


def pixels(n: int) -> np.ndarray:
    """Noise of different brightness, so that networks decide now this way, now that."""
    noise = np.random.default_rng(0).integers(0, 128, (n, 3, 32, 32), dtype=np.uint8)
    return noise + (128 * (np.arange(n) % 2)).astype(np.uint8)[:, None, None, None]


@torch.inference_mode()
def hooked(module: torch.nn.Module, path: str, batch: np.ndarray) -> list[np.ndarray | None]:
    """The mean over the positions of a layer's last output for each image alone, by a plain forward hook."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (SMALL.mean, SMALL.std))
    found: list[np.ndarray | None] = []
    for image in (torch.from_numpy(batch).float() / 255 - mean) / std:
        seen: list[np.ndarray | None] = [None]
        hook = module.get_submodule(path).register_forward_hook(
            lambda part, args, output, seen=seen: seen.append(output.clone().mean((2, 3))[0].numpy())
        )
        module(image[None])
        hook.remove()
        found.append(seen[-1])
    return found


def compute(backbone: Backbone, layers: list[str], batch: np.ndarray, batch_size: int = 8) -> list[np.ndarray]:
    columns = columns_for(backbone.layers, layers, ["avg"], dtype="float32")
    return list(Trunk(backbone, columns, device="cpu", batch_size=batch_size).forward(batch).values())


@pytest.mark.parametrize("name", ["shapes", "inference"])
@pytest.mark.parametrize("layers", [["stem", "norm", "body", "deep"], ["norm"], ["body.0", "stem"]])
def test_layers_are_what_plain_hooks_see_also_before_an_inplace_relu_and_in_the_last_of_three_calls(
    layers: list[str], name: str, load: Callable[..., Backbone]
) -> None:
    backbone = load(name, offset=0.5)
    assert "torch.fx cannot follow it" in backbone.hooks
    for layer, rows in zip(layers, compute(backbone, layers, pixels(5)), strict=True):
        expected = np.stack(hooked(backbone.module, layer, pixels(5)))
        np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5, err_msg=layer)
    assert not any(part._forward_hooks for part in backbone.module.modules())


def test_a_network_that_looks_at_shapes_only_runs_in_batches_and_ends_after_the_last_layer(
    load: Callable[..., Backbone],
) -> None:
    module = load("shapes").module
    calls: list[str] = []
    for path in ("stem", "deep", "head"):
        module.get_submodule(path).register_forward_pre_hook(lambda part, args, path=path: calls.append(path))
    network = HookedNetwork(module, ["body"], (4, 3, 32, 32))
    calls.clear()
    (output,) = network(torch.randn(4, 3, 32, 32))
    assert (network.alone, tuple(output.shape), calls) == (False, (4, 8, 16, 16), ["stem"])


def test_a_network_that_decides_on_values_decides_for_each_image_alone(load: Callable[..., Backbone]) -> None:
    probe = load("values")
    limit = float(np.median(np.stack(hooked(probe.module, "relu", pixels(6))).mean(1)))
    backbone = load("values", limit=limit)
    ways = [row is None for row in hooked(backbone.module, "deep", pixels(6))]
    assert len(set(ways)) == 2
    for n in (1, 3, 6):
        (rows,) = compute(backbone, ["norm"], pixels(6)[:n])
        np.testing.assert_allclose(rows, np.stack(hooked(backbone.module, "norm", pixels(6)[:n])), rtol=1e-4, atol=1e-5)
    (rows,) = compute(backbone, ["head"], pixels(6))
    expected = [compute(backbone, ["head"], pixels(6)[i : i + 1])[0][0] for i in range(6)]
    np.testing.assert_array_equal(rows, np.stack(expected))


def test_an_image_that_takes_a_way_round_a_layer_is_a_recorded_failure(
    write: Callable[..., str], extract: Extract, photos: Path, tmp_path: Path, noise: Any
) -> None:
    for number in (0, 5):
        noise(40, 36, seed=number).point(lambda value: 200 + value // 5).save(photos / "a" / f"bright{number}.png")
    report = extract(backbone_name=f"{write()}:sometimes", layers=["deep"])
    assert [(failure.id, failure.kind) for failure in report.failures] == [
        ("a/bright0.png", "value"),
        ("a/bright5.png", "value"),
    ]
    with FeatureStore.open(tmp_path / "store") as store:
        assert len(store["photos"].matrix("deep").ids) == 9


def test_layers_are_modules_and_what_is_given_on_unchanged_is_one_layer(load: Callable[..., Backbone]) -> None:
    layers = {layer.name: layer for layer in load("shapes").layers}
    assert list(layers) == ["stem", "norm", "relu", "body.0", "body.1", "body", "deep", "head"]
    assert all(layer.hooks for layer in layers.values())
    assert (layers["stem"].shape, layers["stem"].layout) == ((8, 16, 16), "NCHW")
    assert layers["head"].layout == "NC"
    assert layers["body"].node == layers["body.1"].node != layers["body.0"].node
    assert layers["relu"].node != layers["norm"].node  # the same tensor, changed in between


def test_extract_and_predict_work_with_hooks(
    write: Callable[..., str], extract: Extract, photos: Path, tmp_path: Path
) -> None:
    report = extract(backbone_name=f"{write()}:values", layers=["norm", "relu"], views=["flip"], compilation="auto")
    assert report.source["layers"].startswith(
        "forward hooks, each image alone: Values: torch.fx cannot follow it (symbolically traced"
    )
    assert (report.forwarded, report.engine) == (8, "eager")
    assert "forward hooks, and what has these cannot be compiled" in report.why
    files = sorted(photos.rglob("*.png"))
    with FeatureStore.open(tmp_path / "store") as store:
        features = store["photos"]
        assert features.source["layers"] == report.source["layers"]
        backbone = backbone_for(features.contract, source=features.source)
        ids, X = features.matrix("relu")
        columns = [column for column in features.columns if column.layer == "relu"]
        found = dict(features_of(backbone, columns, files, device="cpu", batch_size=4))
    for image_id, row in zip(ids, X, strict=True):
        np.testing.assert_array_equal(found[photos / image_id][columns[0]], row)


def test_what_cannot_be_had_with_hooks_is_refused(load: Callable[..., Backbone]) -> None:
    backbone = load("shapes")
    columns = columns_for(backbone.layers, ["deep"], ["avg"])
    with pytest.raises(CompileError, match="forward hooks, and what has these cannot be compiled: Shapes: "):
        Trunk(backbone, columns, device="cpu", batch_size=2, compilation="always")
    with pytest.raises(UnknownLayerError, match="has no layer 'add'"):
        backbone.require(["add"])


def test_all_weights_are_needed_because_no_graph_says_which(write: Callable[..., str], tmp_path: Path) -> None:
    name = f"{write()}:shapes"
    state = load_backbone(name, preprocess=SMALL).module.state_dict()
    torch.save({key: value for key, value in state.items() if key != "head.bias"}, tmp_path / "w.pth")
    backbone = load_backbone(name, tmp_path / "w.pth", preprocess=SMALL)
    with pytest.raises(WeightsError, match=r"up to stem: 1 tensors that the layers need are missing: head\.bias"):
        backbone.require(["stem"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random", "Random: stem differs when the same images come again; it must not draw random numbers"),
        ("mixing", "Mixing: stem of an image depends on the other images of its batch"),
        ("bare", r"Bare: torch.fx cannot follow it \(.*\); and it calls no modules, whose outputs forward hooks"),
    ],
)
def test_a_network_that_hooks_cannot_serve_is_refused(name: str, words: str, load: Callable[..., Backbone]) -> None:
    with pytest.raises(TraceError, match=words):
        load(name)


def test_a_size_that_it_does_not_take_is_told(write: Callable[..., str]) -> None:
    with pytest.raises(TraceError, match="Picky: does not take images of 3 x 64 x 64: 16 pixels only"):
        load_backbone(f"{write()}:picky", preprocess=Preprocess(64, 64))


@pytest.mark.parametrize(
    "changes",
    [{"limit": 0.25}, {"offset": 1.0}, {"helper": HELPER.replace("2.0", "3.0")}, {"note": "# another remark\n"}],
)
def test_the_code_is_part_of_the_contract(changes: dict[str, Any], load: Callable[..., Backbone]) -> None:
    before, again = load("shapes"), load("shapes")
    assert before.contract() == again.contract()
    assert load("shapes", **changes).contract() != before.contract()
    with pytest.raises(ContractMismatchError, match="and the code as it was then"):
        backbone_for(before.contract(), source=before.source)


class Slow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return x + 1


def test_threads_that_run_the_same_network_do_not_get_each_others_layers() -> None:
    network = torch.nn.Sequential(Slow(), Slow(), Slow())
    batches = [torch.full((1, 3, 4, 4), float(n)) for n in range(4)]
    hooked_networks = [HookedNetwork(network, ["0", "1"], (1, 3, 4, 4)) for _ in batches]

    def several(hooks: HookedNetwork, batch: torch.Tensor) -> list[bool]:
        found = [hooks(batch) for _ in range(20)]
        return [torch.equal(first, batch + 1) and torch.equal(second, batch + 2) for first, second in found]

    with ThreadPoolExecutor(4) as pool:
        assert all(all(right) for right in pool.map(several, hooked_networks, batches))
