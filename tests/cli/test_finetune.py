"""``icecore finetune`` as a user would try it, on tiny images."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore, read_tuning

Icecore = Callable[..., Any]
Project = Any
SHORT = """
[finetune]
unfreeze = ["features.12"]
epochs = 2
batch_size = 4
validation = 0.25
workers = 0
"""


@pytest.fixture
def tuned(project: Project, icecore: Icecore, write_photos: Callable[..., None]) -> Project:
    """A project with features, ready to be fine-tuned."""
    write_photos(project.photos)
    project.set(SHORT)
    assert icecore("extract", project.config).code == 0
    return project


def test_it_trains_keeps_weights_and_says_what_to_do_next(tuned: Project, icecore: Icecore) -> None:
    ended = icecore("finetune", tuned.config, "--json")
    assert ended.code == 0, ended.told
    weights = Path(ended.outcome["weights"])
    assert weights.is_file()
    record = read_tuning(tuned.store, weights.stem)
    assert record is not None
    with FeatureStore.open(tuned.store) as store:
        assert record.parent_generation == store["photos"].generation
        assert record.version == store["photos"].version
        assert store["photos"].tags() == {f"frozen-{record.weights[:8]}": record.version}
    assert record.classes == ("blue", "red")
    assert all(name.startswith("train/") for name in record.seen_ids)
    assert "epoch 2/2" in ended.told
    again = icecore("finetune", tuned.config)
    assert "nothing to do" in again.text
    assert _told_next(again.text) == ["extract", str(tuned.config), "--set", f'backbone.weights="{weights}"']


def _told_next(text: str) -> list[str]:
    """Give the arguments of the command that comes next, as a shell takes them."""
    [line] = [line for line in text.splitlines() if line.startswith("now: icecore ")]
    return shlex.split(line)[2:]


def test_what_comes_next_runs_as_it_is_told_from_another_folder_and_with_an_odd_store(
    tuned: Project, icecore: Icecore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tuned.config.parent.parent)
    config = tuned.config.relative_to(tuned.config.parent.parent)
    ended = icecore("finetune", config)
    assert ended.code == 0, ended.told
    told = icecore(*_told_next(ended.text))
    assert told.code == 0, told.told
    odd = ("--set", 'store=an "odd" store')
    assert icecore("extract", config, *odd).code == 0
    then = icecore("finetune", config, "--then-extract", *odd)
    assert then.code == 0, then.told
    assert "forwarded with the new weights" in then.text


def test_held_out_files_are_never_opened(tuned: Project, icecore: Icecore, tmp_path: Path) -> None:
    """Without them the weights are the same."""
    copy = tmp_path / "copy"
    shutil.copytree(tuned.store, copy)
    whole = icecore("finetune", tuned.config, "--json").outcome
    shutil.rmtree(tuned.photos / "val")
    without = icecore("finetune", tuned.config, "--set", f"store={copy}", "--json").outcome
    assert without["is_new"]
    assert without["weights_sha256"] == whole["weights_sha256"]


def test_then_extract_makes_a_generation_that_follows_the_old_one(tuned: Project, icecore: Icecore) -> None:
    with FeatureStore.open(tuned.store) as store:
        first, version = store["photos"].generation, store["photos"].version
    ended = icecore("finetune", tuned.config, "--then-extract", "--json")
    assert ended.code == 0, ended.told
    with FeatureStore.open(tuned.store) as store:
        features = store["photos"]
        assert features.version == ended.outcome["version"] > version
        assert features.contract.weights == ended.outcome["weights_sha256"]
        assert features.generation != first
        assert features.as_of(version).generation == first
        parent = store.db.execute(
            "SELECT p.uuid FROM generations g JOIN generations p ON p.id = g.parent_id WHERE g.uuid = ?",
            (features.generation,),
        ).fetchone()
    assert parent == (first,)
    assert icecore("store", "gc", tuned.store).code == 0
    ended = icecore("compare", "photos", "--config", tuned.config, "--json")
    assert ended.code == 0, ended.told
    assert (ended.outcome["a"]["tuned"], ended.outcome["b"]["tuned"]) == (False, True)


def test_dry_run_tells_blocks_and_rates_and_writes_nothing(tuned: Project, icecore: Icecore) -> None:
    before = sorted(tuned.store.rglob("*"))
    ended = icecore("finetune", tuned.config, "--dry-run", "--json")
    [block, head] = ended.outcome["blocks"]
    assert (block["block"], block["learning_rate"], block["from_epoch"]) == ("features.12", 3e-4, 2)
    assert (head["block"], head["learning_rate"], head["from_epoch"]) == ("head", 1e-3, 1)
    assert (ended.outcome["images"], ended.outcome["held_out"]) == (12, 6)
    assert sorted(tuned.store.rglob("*")) == before


def test_the_rate_finder_writes_a_plot_and_suggests_a_rate(tuned: Project, icecore: Icecore, tmp_path: Path) -> None:
    ended = icecore("finetune", tuned.config, "--find-rate", tmp_path / "rates.svg", "--json")
    assert ended.code == 0, ended.told
    assert "<svg" in (tmp_path / "rates.svg").read_text("utf-8")
    rates = ended.outcome["rates"]
    assert rates == sorted(rates)
    assert rates[0] / 3 <= ended.outcome["suggested"] <= rates[-1] / 3
    assert not (tuned.store / "weights").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("finetune.unfreeze=['layer4']", "nothing in the network matches 'layer4'"),
        ("finetune.unfreeze=some", "expected a number of layers"),
        ("finetune.epochs=1", "leave none in which the backbone learns"),
        ("finetune.epoch=1", "unknown key; did you mean 'epochs'?"),
        ("compute.device=['cpu','cpu']", "fine-tuning runs on one device"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    tuned: Project, icecore: Icecore, change: str, told: str
) -> None:
    ended = icecore("finetune", tuned.config, "--set", change)
    assert ended.code == 4
    assert told in ended.told
    assert not (tuned.store / "weights").exists()


def test_without_a_baseline_it_says_to_extract_first(project: Project, icecore: Icecore) -> None:
    ended = icecore("finetune", project.config)
    assert ended.code == 3
    assert "icecore extract" in ended.told


def test_an_unreadable_training_image_is_named(tuned: Project, icecore: Icecore) -> None:
    (tuned.photos / "train/red/0.png").write_bytes(b"no image")
    ended = icecore("finetune", tuned.config)
    assert ended.code == 0
    assert "skipped: train/red/0.png: not an image" in ended.text


@pytest.mark.slow
def test_real_photos_learn(assets: Path, tmp_path: Path, icecore: Icecore) -> None:
    """Flowers, the last layers of SqueezeNet: features are at least as good on the held-out rows, within an image."""
    config = tmp_path / "flowers.toml"
    config.write_text(
        f"""
store = "features"
set = "flowers"
source.folder = "{assets}/data/flowers"
backbone = {{name = "squeezenet1_1", weights = "{assets}/weights/squeezenet1_1.pth", layers = ["features.12"]}}
train = {{models = ["logistic_regression"], report = false}}
finetune = {{epochs = 5, views = 2}}
"""
    )
    accuracy = []
    assert icecore("extract", config).code == 0
    accuracy.append(icecore("train", config, "--json").outcome)
    assert icecore("finetune", config, "--then-extract").code == 0
    accuracy.append(icecore("train", config, "--json").outcome)
    frozen, after = (found["cells"][0]["held_out"]["accuracy"] for found in accuracy)
    assert after >= frozen - 0.005, json.dumps(accuracy)[:2000]
