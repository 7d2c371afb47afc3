"""Every example of the README runs as written, in order, in one folder; and the pages say what the code does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from icecore.cli import main
from icecore.cli.exits import MEANING, Exit

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.S)


def examples(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text("utf-8"))


@pytest.fixture
def workplace(tmp_path: Path, assets: Path) -> Path:
    """A folder as a newcomer has it: the configs, some photos, a weights file, and torchvision's cache."""
    import torch
    from torchvision.models import ResNet18_Weights, resnet18

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for folder in sorted((assets / "data" / "hymenoptera").glob("*/*")):
        chosen = tmp_path / "photos" / folder.parent.name / folder.name
        chosen.mkdir(parents=True)
        for photo in sorted(folder.glob("*.jpg"))[: 10 if folder.parent.name == "train" else 4]:
            (chosen / photo.name).symlink_to(photo)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mobilenet_v2.pth").symlink_to(assets / "weights" / "mobilenet_v2_features.pth")
    # Published weights cannot be fetched here: torchvision finds the file of that name in its cache, holding
    # random numbers. What is tested is that the commands run, not how well they classify.
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    return tmp_path


def test_every_example_of_the_readme_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, to load torch once; the shell splits each line into words."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("TORCH_HOME", str(workplace / "torch"))
    blocks = examples("README.md")
    assert {kind for kind, _ in blocks} == {"console", "python"}
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), {})
            continue
        for line in text.splitlines():
            assert line.startswith("$ ")
            listed = subprocess.run(["sh", "-c", f"printf '%s\\0' {line[2:]}"], capture_output=True, check=True)
            run([os.fsdecode(word) for word in listed.stdout.split(b"\0")[:-1]])
    scores = (workplace / "scores.csv").read_text("utf-8").splitlines()
    assert scores[0] == "path,label,probability,p:ants,p:bees,error,bundle"
    assert len(scores) == 9


def run(words: list[str]) -> None:
    if words[0] != "icecore":
        subprocess.run(words, check=True)
        return
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 0, words


def test_the_readme_lists_the_exit_codes_that_there_are() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for code in Exit:
        assert f"| {int(code)} | {MEANING[code]}" in text, code


def test_the_format_page_reads_a_segment_by_hand(tmp_path: Path) -> None:
    import hashlib

    import numpy as np
    from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage

    contract = Contract("m", {}, "0" * 64, (), "pillow", ("full",), "fp32")
    column = Column("layer4", Pooling.parse("avg"), 8)
    with FeatureStore.create(tmp_path) as store, store.writer("photos", contract, [column]) as writer:
        image = SourceImage("a/b.jpg", tmp_path / "b.jpg", 1, 1, 1)
        writer.append([image], [hashlib.sha256(b"").digest()], {column: np.arange(8.0)[None]})
    (segment,) = tmp_path.rglob("*.h5")
    segment.rename(tmp_path / "segment.h5")
    (_, text), _ = examples("store/FORMAT.md")  # the other one is run by the test of exports
    shown = "\nassert ids == [b'a/b.jpg'], ids\nassert layer4.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]\n"
    subprocess.run([sys.executable, "-W", "error", "-c", text + shown], cwd=tmp_path, check=True)


def test_the_make_targets_of_the_pages_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"^make ([a-z-]+)", (ROOT / page).read_text("utf-8"), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), f"{page}: make {target}"


def test_the_table_of_models_is_that_of_the_code() -> None:
    from icecore.train import MODELS

    text = (ROOT / "README.md").read_text("utf-8").partition("## Models\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([`\w, ]+) \| (its own|one temperature)", text, re.M)
    listed = [(name, re.findall(r"\w+", settings), probabilities) for name, settings, probabilities in rows]
    found = [
        (
            spec.name,
            [spec.setting, *(also.name for also in spec.also)],
            "its own" if spec.has_probabilities else "one temperature",
        )
        for spec in MODELS.values()
    ]
    assert listed == found
