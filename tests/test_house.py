"""The shape of the house: which room may import which, what each offers, and what light use must not load."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "store": set(),
    "extract": {"store"},
    "train": {"store"},
    "cli": {"store", "extract", "train"},
    "configs": set(),
}
FORBIDDEN_LIBRARIES = {
    "store": {"torch", "torchvision", "sklearn", "xgboost", "skops", "pydantic", "click"},
    "extract": {"sklearn", "xgboost", "skops", "pydantic", "click"},
    "train": {"torch", "torchvision", "pydantic", "click"},
}
EXCEPTIONS = {("store/torch_dataset.py", "torch"), ("extract/transformer.py", "sklearn")}
"""The torch dataset of features, and the backbone as a step of a pipeline, are imported by their own names only, so
that ``import icecore.store`` needs no torch and extraction no scikit-learn."""


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "icecore")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: relative imports stay inside a room"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room: str) -> None:
    sources = list((ROOT / room).rglob("*.py"))
    assert sources
    for path in sources:
        for name in imports(path):
            parts = name.split(".")
            assert parts[0] not in MAY_IMPORT, f"{path} imports the bare name {name}"
            if (path.relative_to(ROOT).as_posix(), parts[0]) not in EXCEPTIONS:
                assert parts[0] not in FORBIDDEN_LIBRARIES.get(room, set()), f"{path} imports {name}"
            if parts[0] == "icecore" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[room], f"{path} imports {name}"


@pytest.mark.parametrize("room", ["store", "extract", "train", "cli"])
def test_what_a_room_offers_is_in_all_and_is_there(room: str) -> None:
    module = importlib.import_module(f"icecore.{room}")
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__doc__ or not callable(getattr(module, name)), f"icecore.{room}.{name}"


@pytest.mark.parametrize(
    ("room", "title", "end"),
    [
        ("store", "## The ground floor", "\n\nA row that is written"),
        ("extract", "## The extraction room", "\n\nAn image goes"),
        ("train", "## The training room", "\n\nA cell goes"),
    ],
)
def test_the_map_of_a_large_room_names_each_file_once(room: str, title: str, end: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    table = text.partition(title)[2].partition(end)[0].partition("|---|---|")[2]
    named = [name for name in re.findall(r"`(\w+)`", table) if name != "FORMAT"]
    there = [path.stem for path in (ROOT / room).glob("*.py") if path.stem != "__init__"]
    assert sorted(named) == sorted(there)


def test_every_room_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert set(settings["packages"]) == {f"icecore.{room}" for room in MAY_IMPORT} == set(settings["package-dir"])
    for room in MAY_IMPORT:
        inner = [p for p in (ROOT / room).rglob("*.py") if p.parent != ROOT / room]
        assert inner == [], "a folder inside a room must be listed in pyproject.toml too"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("icecore.store", "torch|sklearn|xgboost|pydantic|click"),
        ("icecore.train", "torch|torchvision"),
        ("icecore.extract", "torch|torchvision|sklearn"),
        ("icecore.cli", "torch|sklearn|h5py|numpy|pydantic"),
    ],
)
def test_importing_a_room_loads_no_more_than_it_needs(module: str, unwanted: str) -> None:
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if m in {unwanted.split('|')!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_light_install_trains_without_torch_being_importable() -> None:
    """A training box has no torch: block it and import all of store, train and the train command."""
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import icecore.store, icecore.cli.train, icecore.cli.store, icecore.cli.config\n"
        "import icecore.train as t\n"
        "[getattr(t, name) for name in t.__all__]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_constraints_pin_a_pair_and_name_no_index() -> None:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    assert re.search(r"^torch==\d", text, re.M)
    assert re.search(r"^torchvision==\d", text, re.M)
    assert "://" not in text
    assert "--" not in re.sub(r"#.*", "", text)


def test_typing_links_point_at_the_rooms() -> None:
    for room in ("store", "extract", "train", "cli"):
        link = ROOT / ".typing" / "icecore" / room
        assert link.is_symlink()
        assert link.resolve() == ROOT / room
