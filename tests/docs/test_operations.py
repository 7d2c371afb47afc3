"""The page on operations: its commands run word by word in one folder, and its tables are those of the code."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from icecore.cli import main
from icecore.cli.app import COMMANDS, cli
from icecore.cli.exits import Exit, Outcome
from icecore.cli.watch_config import Hooks
from icecore.store import champion_of, store_metrics
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text("utf-8")
SMALL = """
[preprocess]
resize = 64
crop = 64

[compute]
device = "cpu"
threads = 2
"""


def takes_a_champion() -> bool:
    """Say whether all commands of the page are there."""
    predict = cli.get_command(click.Context(cli), "predict")
    assert predict is not None
    return "retrain" in COMMANDS and any("--config" in option.opts for option in predict.params)


WITH_CHAMPIONS = pytest.mark.skipif(
    not takes_a_champion(), reason="there is no icecore retrain or predict champion yet"
)


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images of two classes, new ones, and the config of the page for a small network."""
    import torch
    from safetensors.torch import save_file
    from torchvision import models

    monkeypatch.chdir(tmp_path)
    for folder, count in (("photos/red", 150), ("photos/blue", 150), ("new", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng([number, len(folder)]).integers(0, 120, (24, 24, 3))
            shift = (0, 0, 90) if folder.endswith("blue") else (90, 0, 0)
            Image.fromarray((noise + shift).astype(np.uint8)).save(tmp_path / folder / f"{number}.png")
    torch.manual_seed(0)
    save_file(models.squeezenet1_1(weights=None).state_dict(), tmp_path / "weights.safetensors")
    text = (ROOT / "configs" / "retrain.toml").read_text("utf-8")
    for ours, small in (
        ('name = "resnet18"', 'name = "squeezenet1_1"'),
        ('"IMAGENET1K_V1"', '"weights.safetensors"'),
        ('["layer3", "layer4"]', '["features.3", "features.6"]'),
    ):
        assert ours in text
        text = text.replace(ours, small)
    (tmp_path / "photos.toml").write_text(text + SMALL, "utf-8")
    return tmp_path


@WITH_CHAMPIONS
def test_every_command_of_the_page_runs_in_its_order(night: Path) -> None:
    """From an empty store to labels, and from the backup back."""
    ended = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.S):
        for line in block.splitlines():
            assert line.startswith("$ ")
            ended.append((line[2:], run(shlex.split(line[2:]))))
    assert [line for line, code in ended if code] == []
    assert (night / "scores.csv").read_text("utf-8").count("\n") == 4
    assert champion_of(night / "features", "photos") is not None
    assert {path.name for path in night.iterdir()} >= {"backup", "features", "features.damaged", "extract.json"}


def run(words: list[str]) -> int:
    if words[0] != "icecore":
        return subprocess.run(words, check=False).returncode
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    signal.signal(signal.SIGTERM, before)
    return int(ended.value.code or 0)


def test_the_hooks_of_the_page_are_a_section_of_a_config() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    section = tomllib.loads(text)["hooks"]
    assert set(section) == set(Hooks.model_fields)
    Hooks.model_validate(section, context={"folder": Path()})


@WITH_CHAMPIONS
def test_the_alarms_name_every_code_and_every_number(night: Path) -> None:
    table = PAGE.partition("## What each alarm means")[2].partition("\n## ")[0]
    alarms = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    told = {int(code) for alarm in alarms for code in re.findall(r"\d+", alarm)}
    assert {int(code) for code in Exit if code is not Exit.DONE} <= told
    assert run(["icecore", "extract", "photos.toml"]) == 0
    there = set(re.findall(rb"^# TYPE (\w+) gauge$", store_metrics("features"), re.M))
    for name in re.findall(r"icecore_\w+", PAGE):
        assert name.encode() in there or name == "icecore_champion_score", name


def test_the_table_of_the_outcome_is_that_of_the_object() -> None:
    table = PAGE.partition("| in the outcome | |")[2].partition("\n\n")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    told = set(Outcome(Exit.FAILED, error="why").to_json("extract"))
    assert named == (told - {"command"}) | {"run", "stopped_by"}


def test_the_files_of_the_page_are_there() -> None:
    for name in re.findall(r"`(icecore-[\w@]+\.(?:service|timer))`", PAGE):
        assert (ROOT / "configs" / "systemd" / name).is_file(), name
    assert (ROOT / "configs" / "crontab").is_file()
    assert os.access(ROOT / "configs" / "systemd", os.R_OK)
