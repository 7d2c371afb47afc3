"""The weights are those of the file, of this architecture, whole up to the layers asked for, and hashed."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from icecore.extract import Preprocess, backbone_for, load_backbone
from icecore.extract.errors import PreprocessError, UnknownLayerError, WeightsError
from icecore.store import ContractMismatchError
from safetensors.torch import save_file
from torchvision import models

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of a ResNet-18 that nobody trained."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return dict(models.resnet18().state_dict())


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(content: object, name: str = "weights.pth") -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def test_a_frozen_backbone_is_in_eval_mode_and_does_not_learn(state: dict[str, torch.Tensor], save: Save) -> None:
    backbone = load_backbone("resnet18", save(state))
    assert not any(module.training for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    assert torch.equal(backbone.module.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])


def test_the_hash_is_of_the_tensors_not_of_the_file(state: dict[str, torch.Tensor], save: Save, tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    counters = {name: tensor + 7 if name.endswith("num_batches_tracked") else tensor for name, tensor in state.items()}
    files = [
        save(state, "a.pth"),
        tmp_path / "w.safetensors",
        save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "b.pth"),
        save({"model": dict(reversed(list(state.items())))}, "c.pt"),
        save(counters, "d.pth"),
        save({**state, "other_head.weight": torch.zeros(3)}, "e.pth"),
    ]
    assert len({load_backbone("resnet18", file).weights_sha256 for file in files}) == 1
    changed = {**state, "conv1.weight": state["conv1.weight"] + 1e-6}
    assert load_backbone("resnet18", save(changed)).weights_sha256 != load_backbone("resnet18", files[0]).weights_sha256


def test_the_hash_is_the_documented_one(state: dict[str, torch.Tensor], save: Save) -> None:
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith("num_batches_tracked")):
        array = state[name].numpy()
        digest.update(f"{name}\0torch.float32\0{array.shape}\0".encode() + array.astype("<f4").tobytes())
    assert load_backbone("resnet18", save(state)).weights_sha256 == digest.hexdigest()


def test_building_leaves_the_random_state_alone(state: dict[str, torch.Tensor], save: Save) -> None:
    before = torch.get_rng_state()
    load_backbone("resnet18", save(state))
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_end_before_the_classifier_serve_the_layers_they_hold(assets: Path) -> None:
    backbone = load_backbone("mobilenet_v2", assets / "weights/mobilenet_v2_features.pth")
    backbone.require(["features.6", "features.18", "adaptive_avg_pool2d"])
    with pytest.raises(WeightsError, match=r"2 tensors that the layers need are missing: classifier.1.bias"):
        backbone.require(["classifier"])
    assert backbone.preprocess == Preprocess(resize=256, crop=224)
    assert backbone.source["preprocess"].startswith("MobileNet_V2_Weights.IMAGENET1K_V1, the first published")


def test_a_missing_tensor_is_named_only_when_a_layer_needs_it(state: dict[str, torch.Tensor], save: Save) -> None:
    partial = {name: tensor for name, tensor in state.items() if not name.startswith(("layer4", "fc"))}
    backbone = load_backbone("resnet18", save(partial))
    backbone.require(["layer3"])
    with pytest.raises(
        WeightsError, match=r"does not fit resnet18 up to layer4: 25 tensors .* layer4.0.bn1.bias.* and 20 more"
    ):
        backbone.require(["layer4"])
    no_statistics = {name: tensor for name, tensor in state.items() if "running" not in name}
    with pytest.raises(WeightsError, match=r"tensors that the layers need are missing: bn1.running_mean"):
        load_backbone("resnet18", save(no_statistics)).require(["layer1"])


def test_another_number_of_classes_is_no_fault_below_the_head(state: dict[str, torch.Tensor], save: Save) -> None:
    backbone = load_backbone("resnet18", save({**state, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}))
    backbone.require(["flatten"])
    with pytest.raises(WeightsError, match=r"fc.bias has shape \(7,\), the network needs \(1000,\) and 1 more"):
        backbone.require(["fc"])


def test_the_weights_of_a_deeper_sister_are_refused_although_every_tensor_is_there(save: Save) -> None:
    sister = load_backbone("resnet18", save(models.resnet34().state_dict()))
    with pytest.raises(WeightsError, match=r"holds 80 tensors that the network does not have: layer1.2.bn1.bias"):
        sister.require(["layer4"])


def test_the_weights_of_another_architecture_are_refused_at_once(state: dict[str, torch.Tensor], save: Save) -> None:
    with pytest.raises(
        WeightsError, match=r"none of its 102 tensors fits .* it has conv1.weight.* has features.0.weight"
    ):
        load_backbone("squeezenet1_1", save(state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, state: dict[str, torch.Tensor], save: Save) -> None:
    broken = state["layer2.0.conv1.weight"].clone()
    broken[0, 0, 0, 0] = value
    with pytest.raises(WeightsError, match=r"layer2.0.conv1.weight holds NaN or infinity"):
        load_backbone("resnet18", save({**state, "layer2.0.conv1.weight": broken}))


class Payload:
    """Would run on loading."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


def test_a_file_that_would_run_code_is_refused(save: Save) -> None:
    with pytest.raises(WeightsError, match=r"could run code; save model.state_dict\(\) instead"):
        load_backbone("resnet18", save({"state_dict": Payload()}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a weights file, it is empty"),
        (b"<!DOCTYPE html><title>404</title>", "not a weights file, begins with b'<!DOCTYPE html>"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer, .* `git lfs pull`"),
        (None, "no such weights file"),
    ],
)
def test_a_damaged_or_absent_file_is_told_by_name(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        load_backbone("resnet18", path)
    assert str(path) in str(caught.value)


def test_a_file_cut_short_is_told(state: dict[str, torch.Tensor], save: Save) -> None:
    path = save(state)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load_backbone("resnet18", path)


def test_a_file_without_tensors_is_told(save: Save) -> None:
    with pytest.raises(WeightsError, match="holds no tensors; its keys are epoch"):
        load_backbone("resnet18", save({"epoch": 3}))


def test_random_weights_are_never_taken() -> None:
    with pytest.raises(WeightsError, match="without them features are random; give one of IMAGENET1K_V1"):
        load_backbone("resnet18")
    with pytest.raises(WeightsError, match="no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V1'"):
        load_backbone("resnet18", "IMAGENET1K_V3")


def test_published_weights_without_a_network_name_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(
        WeightsError, match=r"ResNet18_Weights.IMAGENET1K_V1: cannot be fetched .* give the path of a local"
    ):
        load_backbone("resnet18", "DEFAULT")


def test_published_weights_are_taken_from_torchvisions_cache_and_recorded_by_their_own_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: dict[str, torch.Tensor], save: Save
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save(state, cache / Path(models.ResNet18_Weights.DEFAULT.url).name)
    published, local = load_backbone("resnet18", "DEFAULT"), load_backbone("resnet18", save(state))
    assert published.source["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    assert published.contract() == local.contract()


@pytest.mark.parametrize(
    ("entry", "resize"),
    [("IMAGENET1K_V2", 232), ("ResNet50_Weights.IMAGENET1K_V1", 256), ("EfficientNet_B0_Weights.IMAGENET1K_V1", 256)],
)
def test_preprocessing_can_be_that_of_any_published_weights(entry: str, resize: int, save: Save) -> None:
    weights = save({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    backbone = load_backbone("resnet50", weights, preprocess=entry)
    assert backbone.preprocess.resize == resize
    assert entry.split(".")[-1] in backbone.source["preprocess"]


def test_preprocessing_can_be_changed_field_by_field(state: dict[str, torch.Tensor], save: Save) -> None:
    backbone = load_backbone("resnet18", save(state), preprocess_changes={"crop": 64, "resize": 72})
    assert (backbone.preprocess.resize, backbone.preprocess.crop) == (72, 64)
    assert backbone.source["preprocess"].endswith("for resnet18, crop=64, resize=72")
    assert {layer.name: layer.shape for layer in backbone.layers}["layer4"] == (512, 2, 2)
    with pytest.raises(PreprocessError, match=r"no torchvision weights entry 'ResNet_Weights.NONE'"):
        load_backbone("resnet18", save(state), preprocess="ResNet_Weights.NONE")


def test_inception_is_built_as_torchvision_builds_it_for_its_weights(save: Save) -> None:
    theirs = models.inception_v3(init_weights=False, transform_input=True)
    backbone = load_backbone("inception_v3", save(theirs.state_dict()))
    assert backbone.arguments == {"aux_logits": False, "transform_input": True}
    backbone.require(["Mixed_7c"])
    assert backbone.module.transform_input


def test_a_vision_transformer_follows_the_image_size_of_the_weights_entry(save: Save) -> None:
    weights = save({"conv_proj.weight": torch.zeros(768, 3, 16, 16)})
    entry = "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"
    backbone = load_backbone("vit_b_16", weights, preprocess=entry)
    assert backbone.arguments == {"image_size": 384}
    assert {layer.name: layer.shape for layer in backbone.layers}["encoder"] == (577, 768)


def test_ones_own_function_brings_weights_arguments_and_preprocessing(own_net: str) -> None:
    small = Preprocess(resize=32, crop=32)
    backbone = load_backbone(own_net, preprocess=small, arguments={"width": 4})
    again = load_backbone(own_net, preprocess_changes={"resize": 32, "crop": 32}, arguments={"width": 4})
    assert backbone.contract() == again.contract()
    assert backbone.contract().architecture == own_net
    assert backbone.module.stem.out_channels == 4
    with pytest.raises(PreprocessError, match="your own function, so say what its images need"):
        load_backbone(own_net)
    with pytest.raises(UnknownLayerError, match="has no layer 'blok1'; did you mean 'block1'"):
        backbone.require(["blok1"])


def test_the_backbone_of_a_contract_is_found_again_and_another_one_refused(
    state: dict[str, torch.Tensor], save: Save
) -> None:
    original = load_backbone("resnet18", save(state, "a.pth"), preprocess_changes={"crop": 96})
    contract = original.contract(precision="bf16")
    assert backbone_for(contract, source=original.source).contract(precision="bf16") == contract
    moved = backbone_for(contract, save(state, "moved.pth"), source=original.source)
    assert moved.contract(precision="bf16") == contract
    other = save({**state, "conv1.weight": state["conv1.weight"] * 2}, "other.pth")
    with pytest.raises(ContractMismatchError, match=r"other.pth: not the backbone asked for") as caught:
        backbone_for(contract, other)
    assert [difference.field for difference in caught.value.differences] == ["weights"]


def test_what_a_feature_does_not_depend_on_is_not_in_the_contract(state: dict[str, torch.Tensor], save: Save) -> None:
    one, two = load_backbone("resnet18", save(state, "x.pth")), load_backbone("resnet18", save(state, "y.pth"))
    assert one.contract().hash == two.contract().hash
    assert one.source != two.source
    assert one.contract(precision="bf16") != one.contract()
