"""Preprocessing is one value, goes whole into the contract and comes back from it."""

from __future__ import annotations

import hashlib
import json
import math

import pytest
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from icecore.extract.errors import PreprocessError
from icecore.extract.preprocess import Preprocess
from torchvision import models

UNIT = st.floats(0.01, 1, allow_nan=False)


@given(
    resize=st.integers(1, 8192),
    crop=st.integers(1, 8192),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
    mean=st.tuples(UNIT, UNIT, UNIT),
    std=st.tuples(UNIT, UNIT, UNIT),
    decode=st.sampled_from(["exact", "fast", "nvjpeg"]),
)
def test_steps_survive_json_and_say_it_all(**fields: object) -> None:
    assume((fields["decode"], fields["interpolation"]) != ("nvjpeg", "lanczos"))
    value = Preprocess(**fields)
    assert Preprocess.from_steps(json.loads(json.dumps(value.steps))) == value


def test_exact_decoding_hashes_as_it_did_before_there_was_a_choice() -> None:
    """Contracts of stores made by earlier releases go on; the hash is that of their steps."""
    text = json.dumps(Preprocess(decode="exact").steps, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "40fd9704e60092767adb6e379753188e30bfd32ca6904289f3274937dda444cb"
    )


def test_fast_decoding_is_a_step_of_its_own_kind() -> None:
    exact, fast = Preprocess().steps, Preprocess(decode="fast").steps
    assert fast[0] == {**exact[0], "scaling": "dct", "scaling_least": 2}
    assert fast[1:] == exact[1:]
    another = [{**fast[0], "scaling_least": 1}, *fast[1:]]
    with pytest.raises(PreprocessError, match=r"cannot repeat the step .*'scaling_least': 1"):
        Preprocess.from_steps(another)


def test_decoding_on_the_device_is_told_by_the_steps_that_it_changes() -> None:
    exact, device = Preprocess().steps, Preprocess(decode="nvjpeg").steps
    assert device[0] == {**exact[0], "jpeg": "nvjpeg"}
    assert device[3] == {**exact[3], "by": "tensor"}
    assert [step for n, step in enumerate(device) if n not in (0, 3)] == [exact[n] for n in (1, 2, 4, 5)]
    for step, change in ((0, {"jpeg": "another"}), (3, {"by": "another"})):
        other = [dict(one) for one in device]
        other[step].update(change)
        with pytest.raises(PreprocessError, match=r"cannot repeat the step .*another"):
            Preprocess.from_steps(other)


def test_every_published_preset_is_understood() -> None:
    for name in models.list_models(module=torchvision.models):
        for entry in models.get_model_weights(name):
            preset = entry.transforms()
            ours = Preprocess.from_transforms(preset)
            assert [ours.resize] == preset.resize_size
            assert [ours.crop] == preset.crop_size
            assert (list(ours.mean), list(ours.std)) == (preset.mean, preset.std)
            assert preset.antialias


@pytest.mark.parametrize("change", [{"op": "colour", "alpha": "dropped"}, {"op": "sharpen"}])
def test_a_step_that_this_release_cannot_repeat_is_refused(change: dict[str, object]) -> None:
    steps = [dict(step) for step in Preprocess().steps]
    match = [step for step in steps if step["op"] == change["op"]]
    match[0].update(change) if match else steps.append(change)
    with pytest.raises(PreprocessError, match="cannot repeat the step"):
        Preprocess.from_steps(steps)


def test_a_missing_step_is_named() -> None:
    with pytest.raises(PreprocessError, match="lack 'crop'"):
        Preprocess.from_steps([step for step in Preprocess().steps if step["op"] != "crop"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resize": 0}, "resize must be an integer from 1 to 8192, found 0"),
        ({"crop": 224.0}, "crop must be an integer"),
        ({"interpolation": "area"}, "interpolation is one of nearest, bilinear, bicubic, lanczos, found 'area'"),
        ({"decode": "quick"}, "decode is one of exact, fast, nvjpeg, found 'quick'"),
        ({"decode": "nvjpeg", "interpolation": "lanczos"}, "decode nvjpeg resizes on the device, which has no lanczos"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"std": (1, 1, 0)}, "std must be above 0"),
        ({"mean": (0, 0, math.nan)}, "mean must be three finite numbers"),
    ],
)
def test_impossible_values_are_refused_in_words(fields: dict[str, object], words: str) -> None:
    with pytest.raises(PreprocessError, match=words):
        Preprocess(**fields)


def test_an_unknown_field_is_refused() -> None:
    assert Preprocess().changed({"crop": 32}).crop == 32
    with pytest.raises(PreprocessError, match="no field 'size'; it has resize, crop"):
        Preprocess().changed({"size": 32})


def test_another_kind_of_preset_is_refused() -> None:
    preset = models.segmentation.FCN_ResNet50_Weights.DEFAULT.transforms()
    with pytest.raises(PreprocessError, match="SemanticSegmentation is not"):
        Preprocess.from_transforms(preset)
