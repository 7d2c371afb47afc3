"""The pages of docs/ say what the code does, and their examples run as written."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.cli import main
from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage
from icecore.train import advice_rules, verdict
from icecore.train.advice_rules import RULES
from icecore.train.distance import USUAL

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.S)
CONFIG = """
store = "features"
set = "photos"
[train]
models = ["logistic_regression"]
folds = 3
"""


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: Callable[..., Contract]) -> Path:
    """A folder as the pages assume: a config, and a set whose frozen version has a tag and is not the latest."""
    ids = sorted(
        f"{side}/{label}/{i}.jpg" for side in ("train", "val") for label in ("ants", "bees") for i in range(20)
    )
    is_bee = np.array([["/bees/" in image] for image in ids])
    rng = np.random.default_rng(0)
    columns = {
        Column(layer, Pooling("avg"), 6): rng.normal(size=(40 * 2, 6)) + is_bee for layer in ("layer3", "layer4")
    }
    contract = Contract("torchvision.models.resnet18", {}, "ab" * 32, (), "pillow", ("full",), "fp32")
    path = tmp_path / "features"
    with FeatureStore.create(path) as store:
        with store.writer("photos", contract, list(columns)) as writer:
            sources = [SourceImage(image, path / image, 1, 1, 1) for image in ids]
            writer.append(sources, [hashlib.sha256(image.encode()).digest() for image in ids], columns)
        store["photos"].tag("frozen")
    tune(path, "bees", shift=1.0)
    (tmp_path / "experiment.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_pages() -> None:
    assert {page.name for page in DOCS} >= {"advise.md", "compare.md"}


@pytest.mark.parametrize("name", ["advise.md", "compare.md"])
def test_every_example_of_a_page_runs(workplace: Path, name: str) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / name).read_text("utf-8"))
    assert {kind for kind, _ in blocks} == {"console", "python"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, name, "exec"), {})
            continue
        for line in text.splitlines():
            assert line.startswith("$ icecore ")
            listed = subprocess.run(["sh", "-c", f"printf '%s\\0' {line[2:]}"], capture_output=True, check=True)
            before = signal.getsignal(signal.SIGTERM)
            with pytest.raises(SystemExit) as ended:
                main([os.fsdecode(word) for word in listed.stdout.split(b"\0")[1:-1]])
            signal.signal(signal.SIGTERM, before)
            assert ended.value.code == 0, line
    assert (name == "compare.md") == (workplace / "features" / "comparisons").exists()


def test_the_table_of_rules_is_that_of_the_code() -> None:
    text = (
        (ROOT / "docs" / "advise.md").read_text("utf-8").partition("## The rules")[2].partition("What the sources")[0]
    )
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line][2:]
    assert [(name, action) for name, _, action, _ in rows] == [(rule.name, rule.action or "(warns)") for rule in RULES]
    for (name, _, _, source), rule in zip(rows, RULES, strict=True):
        first = re.split(r"[,:;]", source)[0]
        assert rule.source.startswith(first), name
    when = {name: condition for name, condition, _, _ in rows}
    assert f"fewer than {advice_rules.LEAST_A_CLASS} training images" in when["tiny class"]
    assert f"{advice_rules.FAR:.0%}".replace("%", " %") in when["uncovered"]
    assert f"p is {advice_rules.SURE} at most" in when["uncovered"]
    assert f"fewer than {advice_rules.SHOWABLE} errors" in when["nothing to show"]
    assert advice_rules.BLIND == 0.1
    assert f"{100 * advice_rules.RISING:.0f} points or more" in when["still rising"]
    assert f"{100 * advice_rules.BY_HEART:.0f} points or more" in when["by heart"]
    assert all(f"{advice_rules.FEW:,}" in when[name] for name in when if name.startswith(("few", "many", "still")))
    assert np.isclose(USUAL, 0.05)


def test_the_page_of_comparisons_tells_the_thresholds_of_the_code() -> None:
    text = (ROOT / "docs" / "compare.md").read_text("utf-8")
    assert f"The least gain is {verdict.LEAST_GAIN}" in text
    assert f"p of {verdict.LEVEL} at most" in text
