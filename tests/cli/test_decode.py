"""``decode`` on the command line: what it changes, what is told and recorded, and that predict follows it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import h5py
import numpy as np
import PIL
import pytest
import torch
from icecore.extract.nvjpeg import decode_on
from icecore.store import FeatureStore
from PIL import Image

Icecore = Callable[..., Any]
BY_CONFIG = ("--set", "preprocess.decode=fast")


@pytest.fixture
def project(project: Any, noisy: Callable[..., Image.Image]) -> Any:
    """Photos of two classes, half of them large enough to be decoded at a half: 256 for a resize to 64."""
    for side in ("train", "val"):
        for number, label in enumerate(("red", "blue")):
            (project.photos / side / label).mkdir(parents=True)
            for n in range(4):
                seed = 10 * number + n + 100 * (side == "val")
                colour = (220, 30, 30) if label == "red" else (30, 30, 220)
                photo = noisy(seed, colour, (300, 270) if n % 2 else (90, 80))
                photo.save(project.photos / side / label / f"{n}.jpg", quality=92)
    return project


def features(project: Any) -> dict[str, np.ndarray]:
    with FeatureStore.open(project.store) as store:
        ids, X = store["photos"].matrix("features.3")
        return dict(zip(ids, np.array(X), strict=True))


def test_fast_is_another_contract_and_changes_large_photos_alone(icecore: Icecore, project: Any) -> None:
    exact = icecore("extract", project.config, "--json").outcome
    before = features(project)
    assert exact["decode"] == "exact"
    assert f"pillow {PIL.__version__}" in exact["decoder"]
    plan = icecore("extract", project.config, "--decode", "fast", "--dry-run")
    assert "preprocess[0:decode].scaling: None -> 'dct'" in plan.text
    assert "fp32, decoded fast; nothing was written" in plan.text
    fast = icecore("extract", project.config, "--decode", "fast", "--json").outcome
    assert (fast["decode"], fast["forwarded"]) == ("fast", 16)
    assert fast["contract_hash"] != exact["contract_hash"]
    after = features(project)
    for image_id, row in before.items():
        large = int(image_id[-5]) % 2
        assert (row != after[image_id]).any() == large, image_id


def test_the_option_and_the_config_say_the_same(icecore: Icecore, project: Any) -> None:
    hashes = [
        icecore("extract", project.config, *words, "--dry-run", "--json").outcome["contract_hash"]
        for words in (("--decode", "fast"), BY_CONFIG, (), ("--decode", "exact"))
    ]
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[3] != hashes[0]
    over = icecore("extract", project.config, *BY_CONFIG, "--decode", "exact", "--dry-run", "--json").outcome
    assert over["contract_hash"] == hashes[2]


def test_a_run_tells_how_it_decoded_and_records_the_libraries(icecore: Icecore, project: Any) -> None:
    told = icecore("extract", project.config, "--decode", "fast").text
    assert "16 forwarded" in told
    assert re.search(r"on cpu, fp32, .*eager.*, decoded fast$", told, re.M)
    with FeatureStore.open(project.store) as store:
        assert str(store["photos"].source["preprocess"]).endswith("decode='fast'")
    (segment,) = project.store.rglob("*.h5")
    with h5py.File(segment) as file:
        versions = json.loads(file.attrs["versions"])
    assert versions["pillow"] == PIL.__version__
    assert any(name.startswith("libjpeg") for name in versions)


def test_predict_decodes_as_the_bundle_says(icecore: Icecore, project: Any) -> None:
    assert icecore("extract", project.config, *BY_CONFIG).code == 0
    assert icecore("train", project.config).code == 0
    val = project.photos / "val"
    done = icecore("predict", project.bundle, val)
    assert done.code == 0
    from icecore.train import load_bundle

    bundle = load_bundle(project.bundle)
    stored = features(project)
    for row in csv.DictReader(io.StringIO(done.text)):
        image_id = row["path"].removeprefix(f"{project.photos}/")
        (expected,) = bundle.predict_proba({bundle.columns[0].name: stored[image_id][None]})
        assert [float(row[f"p:{name}"]) for name in bundle.classes] == pytest.approx(list(expected), abs=2e-5)


def test_another_way_of_decoding_is_refused_with_the_known_ones(icecore: Icecore, project: Any) -> None:
    wrong = icecore("extract", project.config, "--set", "preprocess.decode=quick")
    assert wrong.code == 4
    assert "preprocess.decode" in wrong.told
    assert "'exact', 'fast' or 'nvjpeg'" in wrong.told
    assert icecore("extract", project.config, "--decode", "quick").code == 2


class OnCpu:
    """The CPU in the place of a GPU that decodes."""

    device = torch.device("cpu")

    def decode(self, files: Any) -> list[torch.Tensor]:
        return decode_on(self.device, files)

    def within(self) -> Any:
        return nullcontext()

    def locked(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8)

    def wait(self) -> None:
        return

    def recover(self) -> None:
        return


def test_without_a_gpu_nvjpeg_is_refused_with_the_cure(icecore: Icecore, project: Any) -> None:
    for words in (("extract", project.config, "--decode", "nvjpeg"), ("doctor", "--precision", project.config)):
        ended = icecore(*words, "--set", "preprocess.decode=nvjpeg")
        assert ended.code == 1
        assert 'set preprocess.decode = "exact", or take a device that has it' in ended.told
    assert not project.store.exists()


def test_a_run_tells_how_many_images_the_device_decoded(
    icecore: Icecore, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icecore.extract.nvjpeg.platform_for", lambda device: OnCpu())
    photo = project.photos / "train/red/0.jpg"
    Image.open(photo).save(photo.with_suffix(".png"))
    plan = icecore("extract", project.config, "--decode", "nvjpeg", "--dry-run").text
    assert "fp32, decoded by nvJPEG; nothing was written" in plan
    log = project.folder / "log.jsonl"
    ended = icecore("extract", project.config, "--decode", "nvjpeg", "--json", "--log-json", log)
    assert ended.outcome["decode"] == "nvjpeg"
    assert ended.outcome["decoded"] == {"device": 16, "pillow": 1}
    assert "nvjpeg of torchvision" in ended.outcome["decoder"]
    finished = json.loads(log.read_text().splitlines()[-1])
    assert (finished["event"], finished["decoded"]) == ("finished", {"device": 16, "pillow": 1})
    told = icecore("extract", project.config, "--set", "set=again", "--set", "preprocess.decode=nvjpeg").text
    assert re.search(r"on cpu, fp32, .*eager.*, decoded by nvJPEG$", told, re.M)
    assert "  decoded on the device: 16, by Pillow: 1\n" in told
    exact = icecore("extract", project.config, "--decode", "exact", "--json").outcome
    assert exact["decoded"] == {}
