"""Records of fine-tuned weights: read as they were written, refused where they were altered."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from icecore.store import Contract, FormatError, Tuning, list_tunings, read_tuning
from icecore.store.tunings import tuned_weights_path, write_tuning

PARENT = Contract(
    architecture="torchvision.models.resnet18",
    arguments={},
    weights="0" * 64,
    preprocess=({"op": "resize", "size": 256},),
    decoder="pillow",
    views=("full",),
    precision="fp32",
)
TUNING = Tuning(
    weights="ab" * 32,
    created="2026-11-22T00:00:00+00:00",
    set_name="photos",
    parent=PARENT,
    parent_generation="1" * 32,
    version=3,
    split_digest="5" * 64,
    split="given",
    classes=("ants", "bees"),
    seen_ids=("train/ants/1.jpg", "train/bees/\udcff.jpg"),
    seen_contents=("1" * 64, "2" * 64),
    skipped={"train/ants/bad.jpg": "not a whole image (decode)"},
    unfrozen=("layer4.1.conv2.weight",),
    trained_parameters=2_359_296,
    epochs=({"epoch": 0, "train_loss": None, "validation_loss": 0.5, "learning_rates": [0.1, 0.2]},),
    best_epoch=0,
    seconds=12.5,
    device="cpu",
    config={"epochs": 3},
    key="9" * 64,
    versions={"torch": "2.15.0"},
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, TUNING)
    assert path.parent == tuned_weights_path(tmp_path, TUNING.weights).parent
    assert read_tuning(tmp_path, TUNING.weights) == TUNING
    assert TUNING.contents == {"1" * 64, "2" * 64}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_store_without_the_weights_has_no_record(tmp_path: Path) -> None:
    assert read_tuning(tmp_path, "ab" * 32) is None
    assert list_tunings(tmp_path) == ()


def test_records_are_listed_the_oldest_first(tmp_path: Path) -> None:
    later = replace(TUNING, weights="cd" * 32, created="2026-11-23T00:00:00+00:00")
    for tuning in (later, TUNING):
        write_tuning(tmp_path, tuning)
    assert list_tunings(tmp_path) == (TUNING, later)


def test_an_altered_record_is_refused(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, TUNING)
    path.write_text(path.read_text().replace("train/ants/1.jpg", "train/ants/2.jpg"))
    with pytest.raises(FormatError, match="altered"):
        read_tuning(tmp_path, TUNING.weights)


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write_tuning(tmp_path, TUNING)
    path.rename(path.with_name(f"{'ef' * 32}.json"))
    with pytest.raises(FormatError, match="altered"):
        read_tuning(tmp_path, "ef" * 32)


@pytest.mark.parametrize(
    ("change", "told"), [({"format": "x"}, "not the record"), ({"format_version": 2}, "this release reads 1")]
)
def test_another_format_is_refused(tmp_path: Path, change: dict[str, object], told: str) -> None:
    path = write_tuning(tmp_path, TUNING)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=told):
        read_tuning(tmp_path, TUNING.weights)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    write_tuning(tmp_path, TUNING).write_bytes(b"\x00")
    with pytest.raises(FormatError, match="not readable"):
        read_tuning(tmp_path, TUNING.weights)
