"""``icecore doctor``: 0 when nothing will break, 1 and the cure when something will."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Icecore = Callable[..., Any]


def test_a_sound_machine_and_store_end_with_0_and_a_table(icecore: Icecore, trained: Any) -> None:
    done = icecore("doctor", trained.store)
    assert (done.code, done.told) == (0, "")
    lines = done.text.splitlines()
    for what in ("Python", "torch", "decoder", "free space", "disk speed", "store is whole"):
        assert any(line.startswith(("ok", "warn")) and f"  {what}  " in line for line in lines), what
    assert lines[-1] == "nothing will break"


def test_json_holds_every_check_with_its_numbers(icecore: Icecore, tmp_path: Path) -> None:
    import h5py
    import numpy as np

    done = icecore("doctor", tmp_path / "none yet", "--json")
    assert (done.code, done.outcome["ok"]) == (0, True)
    found = {check["name"]: check for check in done.outcome["checks"]}
    assert found["numpy"]["facts"]["version"] == np.__version__
    assert found["h5py"]["found"] == f"{h5py.__version__} with HDF5 {h5py.version.hdf5_version}"
    assert found["store"]["found"].startswith("none in")
    assert found["free space"]["facts"]["bytes"] > 0
    assert not (tmp_path / "none yet").exists()


def test_a_damaged_store_ends_with_1_and_names_the_cure(icecore: Icecore, trained: Any) -> None:
    (segment,) = (trained.store / "segments").rglob("*.h5")
    segment.unlink()
    done = icecore("doctor", trained.store)
    assert done.code == 1
    assert "icecore doctor: store is whole: 1 problem, the first: segments/" in done.told
    assert f"bad: store is whole: icecore store repair {trained.store} --dry-run" in done.text
    assert done.text.endswith("1 thing will break\n")


def test_a_library_that_cannot_be_imported_will_break(icecore: Icecore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    done = icecore("doctor", "--json")
    assert (done.code, done.outcome["ok"]) == (1, False)
    found = {check["name"]: check for check in done.outcome["checks"]}["xgboost"]
    assert (found["health"], found["cure"]) == ("bad", "pip install --force-reinstall icecore")


def test_precision_tells_cosine_speed_and_accuracy_of_each_column(
    icecore: Icecore, project: Any, write_photos: Callable[..., None]
) -> None:
    write_photos(project.photos, train=6, val=3)
    (project.photos / "val" / "red" / "0.png").write_bytes(b"no image")
    words = ("doctor", "--precision", project.config, "--images", "100")
    done = icecore(*words, "--json")
    assert done.code == 0
    told = done.outcome
    assert (told["images"], told["unreadable"], told["judged"]) == (17, 1, "held-out")
    exact, rough = told["precisions"]
    assert (exact["precision"], exact["worst"], rough["precision"]) == ("fp32", 1.0, "bf16")
    assert 0.99 < rough["worst"] < 1
    column = rough["columns"]["features.3:avg"]
    assert column["worst_image"].endswith(".png")
    assert (column["judged"], column["right"] <= 5) == (5, True)
    assert min(exact["images_per_second"], rough["images_per_second"]) > 0
    assert not project.store.exists()
    shown = icecore(*words).text
    assert "17 images on cpu, batches of 8; 1 more cannot be read\n" in shown
    assert "bf16: cosine 0.99" in shown
    assert "accuracy of a logistic regression (C = 1), held-out, on 5 images" in shown


def test_precision_without_labels_says_why_there_is_no_accuracy(
    icecore: Icecore, project: Any, noisy: Callable[..., Any]
) -> None:
    for number in range(3):
        noisy(number).save(project.photos / f"{number}.png")
    done = icecore("doctor", "--precision", project.config)
    assert done.code == 0
    assert "no accuracy: labels from folders: 3 of 3 images are not placed as SPLIT/LABEL/IMAGE" in done.text
    assert icecore("doctor", project.store, "--precision", project.config).code == 2
    assert icecore("doctor", "--precision", project.folder / "nosuch.toml").code == 4
