"""The parts of fine-tuning: head, layers that learn, division of the network, rates, options, views."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import (
    Preprocess,
    TuningError,
    TuningOptions,
    UnknownLayerError,
    finetune_backbone,
    load_backbone,
)
from icecore.extract.augmentation import augmentation, random_view
from icecore.extract.builders import find_builder
from icecore.extract.rate_finder import suggest
from icecore.extract.tuning_cache import KeptView, room_for
from icecore.extract.tuning_data import Images, TrainingImage, Views, cut_validation
from icecore.extract.tuning_head import put_head, set_head
from icecore.extract.tuning_layers import Group, choose_groups, covers
from icecore.extract.tuning_rates import factor_at, first_epochs, make_optimizer, peak_rates, set_rates
from icecore.extract.tuning_split import divide_network
from icecore.extract.weight_files import read_weights
from PIL import Image
from safetensors.torch import save_file
from torch import nn

SIDE = 32
SMALL = Preprocess(resize=SIDE, crop=SIDE)
FAMILIES = {
    "vgg11": (["classifier.3"], 64),
    "alexnet": (2, 64),
    "resnet18": (["layer4"], 32),
    "mobilenet_v2": (["features.1[7-8]"], 32),
    "efficientnet_b0": (["features.7", "features.8"], 32),
    "convnext_tiny": (["features.7"], 32),
    "vit_b_32": (2, 32),
    "squeezenet1_1": (3, 32),
    "densenet121": (["features.denseblock4"], 32),
    "swin_t": (2, 32),
}


def network(name: str, side: int) -> nn.Module:
    arguments = {"image_size": side} if name.startswith("vit_") else {}
    return find_builder(name).build(arguments)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_divided_without_changing_what_it_computes_and_learns_in_one_step(name: str) -> None:
    unfreeze, side = FAMILIES[name]
    net = network(name, side)
    head = put_head(net, 3)
    net.eval().requires_grad_(False)
    groups = choose_groups(net, unfreeze, head=head.name)
    learned = {*covers(groups), *(f"{head.name}.{part}" for part, _ in head.module.named_parameters())}
    preprocess = Preprocess(resize=side, crop=side)
    divided = divide_network(net, learned, preprocess)
    pixels = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images = (pixels / 255 - torch.tensor(preprocess.mean).view(3, 1, 1)) / torch.tensor(preprocess.std).view(3, 1, 1)
    divided.learning.eval()
    with torch.no_grad():
        crossing = divided.frozen(pixels)
        found = divided.learning(*crossing)
    assert divided.why_whole == ""
    assert not divided.frozen.is_empty
    assert torch.allclose(found, net(images), atol=1e-5)
    for part, parameter in net.named_parameters():
        parameter.requires_grad_(part in learned)
    before = {part: value.clone() for part, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    divided.learning.train()
    nn.functional.cross_entropy(divided.learning(*crossing), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {part for part, value in net.state_dict().items() if not torch.equal(value, before[part])}
    assert changed <= learned
    assert f"{head.name}.bias" in changed
    assert {part for part, parameter in net.named_parameters() if parameter.grad is not None} == learned


def test_recomputing_activations_gives_the_same_gradients() -> None:
    found = {}
    for twice in (False, True):
        net = network("resnet18", SIDE)
        head = put_head(net, 3)
        torch.nn.init.constant_(head.module.weight, 0.01)
        groups = choose_groups(net, "all", head=head.name)
        learned = {*covers(groups), "fc.weight", "fc.bias"}
        divided = divide_network(net.requires_grad_(True), learned, SMALL, twice=twice)
        assert divided.why_whole == "its first layer learns"
        pixels = torch.full((2, 3, SIDE, SIDE), 90, dtype=torch.uint8)
        divided.learning.train()(*divided.frozen(pixels)).square().sum().backward()
        assert net.conv1.weight.grad is not None
        found[twice] = net.conv1.weight.grad
    assert torch.allclose(found[False], found[True], rtol=1e-5, atol=1e-7)


def test_a_head_of_places_equals_a_linear_model_of_their_mean() -> None:
    net = network("squeezenet1_1", SIDE)
    head = put_head(net, 3)
    generator = np.random.default_rng(0)
    weight, bias = generator.normal(size=(3, head.width)), generator.normal(size=3)
    set_head(head, weight, bias)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        mean = net.features(images).mean((2, 3)).double().numpy()
        found = net.eval()(images).numpy()
    assert np.allclose(found, mean @ weight.T + bias, atol=1e-4)


def test_a_head_refuses_weights_of_another_shape_or_that_are_no_numbers() -> None:
    head = put_head(network("resnet18", SIDE), 3)
    with pytest.raises(TuningError, match=r"expected \(3, 512\)"):
        set_head(head, np.zeros((2, 512)), np.zeros(2))
    with pytest.raises(TuningError, match="NaN"):
        set_head(head, np.full((3, 512), np.nan), np.zeros(3))


def test_a_network_without_linear_layers_has_no_head() -> None:
    with pytest.raises(TuningError, match="no linear layer"):
        put_head(nn.Sequential(nn.Conv2d(3, 4, 3)), 2)


def test_the_last_four_layers_of_vgg16_are_its_last_convolutions_and_linear_layers() -> None:
    net = find_builder("vgg16").build({}, meta=True)
    groups = choose_groups(net, 4, head="classifier.6")
    assert [group.name for group in groups] == ["features.26", "features.28", "classifier.0", "classifier.3"]
    assert groups[0].tensors == ("features.26.weight", "features.26.bias")


def test_the_last_layers_bring_their_norms_along() -> None:
    net = find_builder("resnet18").build({}, meta=True)
    [group] = choose_groups(net, 2, head="fc")
    names = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")
    assert group == Group("layer4", tuple(f"layer4.1.{name}" for name in names))


def test_globs_name_blocks_and_what_matches_nothing_is_told_with_the_blocks() -> None:
    net = find_builder("mobilenet_v2").build({}, meta=True)
    names = [group.name for group in choose_groups(net, ["features.1[0-2]*"], head="classifier.1")]
    assert names == ["features.10", "features.11", "features.12"]
    with pytest.raises(UnknownLayerError, match=r"'feature.10'; did you mean 'features.10'\?.*blocks: features.0"):
        choose_groups(net, ["feature.10"], head="classifier.1")


@pytest.mark.parametrize("wrong", [-1, 999, True, "layer4"])
def test_what_cannot_be_unfrozen_is_refused(wrong: Any) -> None:
    with pytest.raises(TuningError, match="unfreeze"):
        choose_groups(find_builder("resnet18").build({}, meta=True), wrong, head="fc")


def test_rates_fall_toward_the_input_and_are_what_the_optimizer_has() -> None:
    options = TuningOptions(learning_rate=1e-3, head_learning_rate=1e-2, layer_decay=0.5, weight_decay=0.05)
    groups = [Group(name, (f"{name}.weight", f"{name}.bias")) for name in ("a", "b", "c")]
    rates = peak_rates(groups, options)
    assert rates == {"a": 2.5e-4, "b": 5e-4, "c": 1e-3, "head": 1e-2}
    parameters = {
        name: {f"{name}.weight": nn.Parameter(torch.ones(2, 2)), f"{name}.bias": nn.Parameter(torch.ones(2))}
        for name in rates
    }
    optimizer = make_optimizer(parameters, rates, options)
    now = set_rates(optimizer, rates, step=5, steps=20, begins=dict.fromkeys(rates, 0), warmup=0.25)
    found = {(group["block"], group["weight_decay"]): group["lr"] for group in optimizer.param_groups}
    for name, peak in rates.items():
        expected = peak * factor_at(5, 20, 0, 0.25)
        assert now[name] == found[name, 0.05] == found[name, 0.0] == pytest.approx(expected)


def test_a_rate_rises_stays_below_its_peak_and_falls_by_a_cosine_to_nearly_zero() -> None:
    factors = [factor_at(step, 100, 20, 0.1) for step in range(100)]
    assert factors[:20] == [0.0] * 20
    assert factors[20:28] == pytest.approx([n / 8 for n in range(1, 9)])
    assert factors[28] == 1.0
    assert all(earlier > later for earlier, later in pairwise(factors[28:]))
    assert factors[64] == pytest.approx(0.5 * (1 + math.cos(math.pi * 36 / 72)))
    assert factors[99] < 0.001


def test_blocks_begin_after_the_head_and_one_after_the_other_when_gradual() -> None:
    groups = [Group(name, (name,)) for name in ("a", "b", "c")]
    assert first_epochs(groups, TuningOptions(head_epochs=2)) == {"a": 3, "b": 3, "c": 3, "head": 1}
    assert first_epochs(groups, TuningOptions(head_epochs=1, gradual=2)) == {"a": 6, "b": 4, "c": 2, "head": 1}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"epochs": 0}, "epochs: a whole number of at least 1"),
        ({"epochs": 2, "head_epochs": 2}, "leave none in which the backbone learns"),
        ({"learning_rate": 0.0}, "learning_rate: above 0"),
        ({"clip": -1.0}, "clip: 0 or more"),
        ({"label_smoothing": 1.0}, "label_smoothing: from 0 to below 1"),
        ({"validation": 0.0}, "validation: above 0"),
        ({"augment": "much"}, "augment: one of none, shift"),
        ({"keep_prefix": "always"}, "views that are new in every epoch cannot be kept"),
        ({"mixup": 0.2, "views": 2}, "mixup and cutmix"),
        ({"cutmix": 0.2, "class_weight": "balanced"}, "no class_weight"),
    ],
)
def test_options_out_of_range_are_refused_by_name(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(TuningError, match=told):
        TuningOptions(**wrong)


@pytest.mark.parametrize("name", ["shift", "light", "colour", "rand"])
def test_a_view_follows_from_its_seed_and_leaves_torchs_random_state_alone(name: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    transform = augmentation(name, SMALL)
    assert transform is not None
    before = torch.get_rng_state()
    first, again, other = (random_view(image, transform, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (3, SIDE, SIDE)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def images_in(folder: Path, count: int) -> list[TrainingImage]:
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        found.append(TrainingImage(f"{n}.png", folder / f"{n}.png", n % 2))
    return found


@pytest.mark.slow
def test_views_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    images = Images(images_in(tmp_path, 6), SMALL, augment="light", seed=3)
    keys = [[(0, 0), (3, 1)], [(5, 0)], [(1, 2), (2, 0), (4, 0)]]
    found = []
    for workers in (0, 2):
        views = Views(images, workers=workers)
        try:
            found.append([batch.pixels.numpy() for batch in views.batches(keys)])
        finally:
            views.close()
    for ours, theirs in zip(*found, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_changed_file_is_left_out_of_its_batch_and_named(tmp_path: Path) -> None:
    known = images_in(tmp_path, 3)
    first = Images(known, SMALL, augment="none", seed=0)
    images = Images(known, SMALL, augment="none", seed=0, digests=[first.read(n)[1] for n in range(3)])
    known[1].path.write_bytes(known[0].path.read_bytes())
    views = Views(images, workers=0)
    [batch] = views.batches([[(0, 0), (1, 0), (2, 0)]])
    views.close()
    assert batch.rows.tolist() == [0, 2]
    assert batch.failed == ((1, "the file changed while the network was being trained (transient)"),)


def test_validation_takes_its_share_of_each_class_and_never_divides_a_group() -> None:
    images = [TrainingImage(f"{n}", Path("x"), n % 4 == 0) for n in range(80)]
    chosen = cut_validation(images, 0.25, seed=0)
    labels = np.array([image.label for image in images])
    assert [int(chosen[labels == label].sum()) for label in (0, 1)] == [15, 5]
    assert np.array_equal(chosen, cut_validation(images, 0.25, seed=0))
    assert not np.array_equal(chosen, cut_validation(images, 0.25, seed=1))
    grouped = [replace(image, group=f"g{n // 5}") for n, image in enumerate(images)]
    sides = cut_validation(grouped, 0.4, seed=0).reshape(16, 5)
    assert all(len(set(side)) == 1 for side in sides.tolist())
    assert 0 < sides.sum() < 80


def test_an_image_keeps_its_side_when_others_come() -> None:
    images = [TrainingImage(f"{n}", Path("x"), 0, group=f"{n}") for n in range(60)]
    before, after = cut_validation(images[:40], 0.3, seed=0), cut_validation(images, 0.3, seed=0)
    assert np.array_equal(before, after[:40])


def test_a_validation_part_that_would_be_empty_is_refused() -> None:
    with pytest.raises(TuningError, match=r"validation: a share of 0\.1 leaves 0 of 2 images"):
        cut_validation([TrainingImage("a", Path("x"), 0), TrainingImage("b", Path("x"), 1)], 0.1, seed=0)


def test_what_was_kept_counts_only_once_it_is_whole(tmp_path: Path) -> None:
    first = KeptView(tmp_path, "plain", 3)
    values = torch.arange(12.0).view(3, 4)
    first.write([2, 0], [values[[2, 0]]])
    assert not KeptView(tmp_path, "plain", 3).open()
    first.write([1], [values[[1]]])
    first.finish({2: "gone"})
    second = KeptView(tmp_path, "plain", 3)
    assert second.open()
    assert second.skipped == {2: "gone"}
    assert torch.equal(second.read([1, 2])[0], values[[1, 2]])
    assert not KeptView(tmp_path, "plain", 4).open()


def test_the_suggested_rate_is_a_third_of_where_learning_breaks() -> None:
    rates = [10.0**-n for n in range(12, 0, -1)]
    flat = [0.3] * 10 + [0.6, 2.0]
    assert suggest(rates, flat) == pytest.approx(1e-3 / 3)
    falling = [1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.42, 0.6, 3.0]
    assert suggest(rates, falling) == pytest.approx(1e-3 / 3)
    with pytest.raises(TuningError, match="only 3 steps"):
        suggest(rates[:3], flat[:3])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_learns_what_the_cpu_learns(tmp_path: Path, precision: Any) -> None:
    images = images_in(tmp_path / "images", 24)
    found = {}
    for device in ("cpu", "cuda"):
        options = TuningOptions(
            unfreeze=["features.12"], epochs=2, augment="none", validation=0.25, start="random", batch_size=8,
            precision=precision if device == "cuda" else "fp32",
        )  # fmt: skip
        state = find_builder("squeezenet1_1").build({}).state_dict()
        save_file(state, tmp_path / "weights.safetensors")
        backbone = load_backbone("squeezenet1_1", tmp_path / "weights.safetensors", preprocess=Preprocess(64, 64))
        report = finetune_backbone(
            tmp_path / device, "x", backbone, images, classes=("a", "b"), options=options, device=device, workers=0
        )
        found[device] = read_weights(report.weights)
    for name, value in found["cpu"].items():
        assert torch.allclose(found["cuda"][name], value, atol=5e-3), name


def test_what_an_earlier_run_kept_counts_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that goes on where little is free would compute anew what is there."""
    monkeypatch.setattr("icecore.extract.tuning_cache.shutil.disk_usage", lambda place: SimpleNamespace(free=100_000))
    assert not room_for(tmp_path / "kept", 60_000)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/plain-0.npy").write_bytes(bytes(60_000))
    assert room_for(tmp_path / "kept", 60_000)
