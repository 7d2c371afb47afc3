"""One pass gives what plain forward hooks see, whatever the batch, on the device that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from icecore.extract import Preprocess, choose_device, load_backbone
from icecore.extract.errors import DeviceError, TraceError
from icecore.extract.graph import cut, trace
from icecore.extract.layers import columns_for
from icecore.extract.trunk import Trunk
from icecore.store import Column
from torch import nn
from torch.nn import functional


def hooked(network: nn.Module, names: list[str], batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each module gives, copied at that moment, in the plain untouched network."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, args, output: seen.update({name: output.clone()})

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.inference_mode():
        network(batch)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["layer4.0.bn2", "bn1", "layer1", "layer2.0.downsample", "layer4.0.bn1"]),
        ("densenet121", ["features.norm0", "features.denseblock1.denselayer2.norm1", "features.norm5"]),
        ("mobilenet_v3_small", ["features.1", "features.4.block.2", "features.12"]),
        ("googlenet", ["inception3a.branch1.bn", "inception5b.branch2.0.bn"]),
        ("efficientnet_b0", ["features.2.0", "features.8"]),
        ("shufflenet_v2_x0_5", ["stage2.1.branch2.1"]),
        ("squeezenet1_1", ["features.3.squeeze", "features.12"]),
        ("swin_t", ["features.1.0.norm1", "features.3"]),
    ],
)
@torch.inference_mode()
def test_a_layer_is_what_it_was_when_the_layer_gave_it_not_what_an_inplace_relu_made_of_it(
    name: str, layers: list[str]
) -> None:
    torch.manual_seed(0)
    quiet = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **quiet).eval()
    batch = torch.randn(2, 3, 96, 96)
    expected = hooked(network, layers, batch)
    outputs = cut(trace(network), layers)(batch)
    for layer, output in zip(layers, outputs, strict=True):
        torch.testing.assert_close(output, expected[layer], rtol=0, atol=0)


class Careless(nn.Module):
    """Changes tensors in place in every way and reads the changed ones later."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.relu(x)  # the result is not used: x itself has changed
        y = self.second(x)
        functional.leaky_relu(y, 0.1, True)
        torch.sigmoid_(y)
        y.add_(x)
        return y * x


@torch.inference_mode()
def test_tensors_changed_in_place_are_read_as_changed_afterwards() -> None:
    network = Careless().eval()
    batch = torch.randn(2, 3, 9, 9)
    expected = hooked(network, ["first", "second"], batch)
    whole = network(batch.clone())
    first, second, end = cut(trace(network), ["first", "second", "mul"])(batch)
    torch.testing.assert_close(first, expected["first"], rtol=0, atol=0)
    torch.testing.assert_close(second, expected["second"], rtol=0, atol=0)
    torch.testing.assert_close(end, whole, rtol=0, atol=0)


class Aliasing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        x.flatten(1).mul_(2)
        return x


def test_a_network_that_writes_through_a_view_is_refused() -> None:
    with pytest.raises(TraceError, match="in place while add, which it is a view of, is still used"):
        trace(Aliasing().eval())


def test_the_network_is_cut_after_the_deepest_layer() -> None:
    network = torchvision.models.resnet18().eval()
    short = cut(trace(network), ["layer2", "layer1"])
    assert not [name for name, _ in short.named_parameters() if name.startswith(("layer3", "layer4", "fc"))]
    assert len([node for node in short.graph.nodes if node.op == "call_module"]) < 40


@pytest.fixture
def columns(own_net: str) -> tuple[Trunk, tuple[Column, ...]]:
    backbone = load_backbone(own_net, preprocess=Preprocess(resize=32, crop=32))
    columns = columns_for(backbone.layers, ["block1", "block2", "mean"], ["avg", "max", "gem"], dtype="float32")
    return Trunk(backbone, columns, device="cpu", batch_size=8), columns


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def test_columns_equal_plain_torch(columns: tuple[Trunk, tuple[Column, ...]], own_net: str) -> None:
    trunk, names = columns
    network = load_backbone(own_net, preprocess=Preprocess(resize=32, crop=32)).module
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = hooked(network, ["block1"], (torch.from_numpy(pixels(5)).float() / 255 - mean) / std)
    features = trunk.forward(pixels(5))
    assert list(features) == list(names)
    assert all(rows.dtype == np.float32 and rows.shape == (5, 8) for rows in features.values())
    expected = {"avg": seen["block1"].mean((2, 3)), "max": seen["block1"].amax((2, 3))}
    for column in names[:2]:
        np.testing.assert_allclose(features[column], expected[column.pooling.name], rtol=1e-5, atol=1e-6)


def test_rows_do_not_depend_on_how_full_the_batch_is(columns: tuple[Trunk, tuple[Column, ...]]) -> None:
    trunk, names = columns
    whole = trunk.forward(pixels(8))
    for n in (1, 3, 7):
        part = trunk.forward(pixels(8)[:n])
        for column in names:
            np.testing.assert_array_equal(part[column], whole[column][:n])


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (9, 3, 32, 32), (2, 3, 31, 32), (2, 1, 32, 32)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...], columns: tuple[Trunk, tuple[Column, ...]]) -> None:
    with pytest.raises(ValueError, match="expected uint8 pixels \\(1 to 8, 3, 32, 32\\)"):
        columns[0].forward(np.zeros(shape, np.uint8))


def test_bf16_is_near_fp32(own_net: str) -> None:
    backbone = load_backbone(own_net, preprocess=Preprocess(resize=32, crop=32))
    columns = columns_for(backbone.layers, ["block2"], ["avg"])
    exact, rough = (
        Trunk(backbone, columns, device="cpu", precision=p, batch_size=4).forward(pixels(4))[columns[0]]
        for p in ("fp32", "bf16")
    )
    assert rough.dtype == np.float32
    assert np.abs(exact - rough).max() > 0
    np.testing.assert_allclose(exact, rough, rtol=0.05, atol=0.02)  # bf16 has 8 bits of mantissa


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        ("tpu", "fp32", "no device 'tpu': it is auto, cpu, cuda or cuda:N"),
        ("meta", "fp32", "no device 'meta'"),
        ("cpu", "fp16", "fp16 needs a CUDA device, and the device is cpu"),
        ("cpu", "int8", "precision is one of fp32, bf16, fp16, found 'int8'"),
        ("cuda:99", "fp32", "device 'cuda:99' is not there"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_never_another_device(device: str, precision: str, words: str) -> None:
    with pytest.raises(DeviceError, match=words):
        choose_device(device, precision=precision)


def test_auto_takes_cuda_where_there_is_one_else_the_cpu() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch finds 0 CUDA devices"):
            choose_device("cuda")


def test_the_backends_are_left_as_they_were(columns: tuple[Trunk, tuple[Column, ...]]) -> None:
    def settings() -> list[object]:
        backends = torch.backends
        return [backends.cudnn.conv.fp32_precision, backends.cuda.matmul.fp32_precision, backends.cudnn.deterministic]

    before = settings()
    columns[0].forward(pixels(1))
    assert settings() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_agrees_with_the_cpu(precision: str, assets: Path) -> None:
    backbone = load_backbone("squeezenet1_1", assets / "weights/squeezenet1_1.pth")
    columns = columns_for(backbone.layers, ["features.6", "features.12"], ["avg"])
    batch = np.random.default_rng(0).integers(0, 256, (4, 3, 224, 224), dtype=np.uint8)
    exact = Trunk(backbone, columns, device="cpu", batch_size=4).forward(batch)
    found = Trunk(backbone, columns, device="cuda", precision=precision, batch_size=4).forward(batch)
    for column in columns:
        tolerance = 1e-4 if precision == "fp32" else 0.05  # TF32 would give 1e-3
        scale = np.abs(exact[column]).max()
        np.testing.assert_allclose(found[column], exact[column], atol=tolerance * scale)
