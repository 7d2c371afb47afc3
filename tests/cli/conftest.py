"""The command line as a user meets it: run in this process, on tiny images and a small network with random weights."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.cli.app import main
from icecore.store import promote
from PIL import Image

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}
CONFIG = """
store = "features"
set = "photos"

[source]
folder = "photos"

[backbone]
name = "squeezenet1_1"
weights = "squeezenet.safetensors"
layers = ["features.3"]

[preprocess]
resize = 64
crop = 64

[compute]
device = "cpu"
threads = 2
batch_size = 8

[train]
models = ["logistic_regression"]
folds = 2
report = false
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended: what a shell would see."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def told(self) -> str:
        return self.err.decode("utf-8", "surrogateescape")

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """The object of ``--json``: the last line of stdout."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found


Icecore = Callable[..., Ended]


@pytest.fixture
def icecore(capfdbinary: pytest.CaptureFixture[bytes]) -> Icecore:
    """Run a command line; whatever it is given it must not end in a traceback."""

    def run(*args: object) -> Ended:
        words = [os.fspath(arg) if isinstance(arg, Path) else str(arg) for arg in args]
        handler, root = signal.getsignal(signal.SIGTERM), logging.getLogger()
        handlers, level = root.handlers[:], root.level
        capfdbinary.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                main(words)
        finally:
            signal.signal(signal.SIGTERM, handler)
            root.handlers[:] = handlers
            root.setLevel(level)
        result = Ended(int(ended.value.code or 0), *capfdbinary.readouterr())
        assert "Traceback" not in result.told, result.told
        if "--json" in words:
            assert result.outcome["exit_code"] == result.code
        return result

    return run


@dataclass(frozen=True)
class Project:
    """A folder with a config, images and a store, as a user would have it."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "job.toml"

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def store(self) -> Path:
        return self.folder / "features"

    @property
    def weights(self) -> Path:
        return self.folder / "squeezenet.safetensors"

    @property
    def bundle(self) -> Path:
        (found,) = (self.store / "models" / "default").iterdir()
        return found

    def set(self, text: str) -> None:
        """Add lines to the end of the config."""
        self.config.write_text(self.config.read_text("utf-8") + text, "utf-8")


def _save_weights(path: Path, *, seed: int, name: str = "squeezenet1_1") -> None:
    """Write a network's random weights, always the same for a seed."""
    import torch
    from safetensors.torch import save_file
    from torchvision import models

    torch.set_num_threads(1)  # the workers of the test run share the processors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_file(models.get_model(name, weights=None).state_dict(), path)


def _noisy(seed: int, colour: tuple[int, int, int] = (40, 200, 60), size: tuple[int, int] = (48, 40)) -> Image.Image:
    """Give a small image of a colour with noise, its own for every seed."""
    noise = np.random.default_rng(seed).integers(-25, 26, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8))


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Give the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _write_photos(folder: Path, *, train: int = 6, val: int = 3) -> None:
    """Write ``train`` and ``val`` images of red and of blue, as SPLIT/LABEL/IMAGE."""
    for side, count in (("train", train), ("val", val)):
        for label, colour in COLOURS.items():
            (folder / side / label).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                seed = 100 * list(COLOURS).index(label) + 10 * (side == "val") + number
                _noisy(seed, colour).save(folder / side / label / f"{number}.png")


@pytest.fixture
def save_weights() -> Callable[..., None]:
    """Function that writes random weights: ``save_weights(path, seed=1, name="squeezenet1_1")``."""
    return _save_weights


@pytest.fixture
def noisy() -> Callable[..., Image.Image]:
    """Function that gives a small image: ``noisy(seed, colour=(40, 200, 60), size=(48, 40))``."""
    return _noisy


@pytest.fixture
def encoded() -> Callable[..., bytes]:
    """Function that gives the bytes of an image file: ``encoded(image, "PNG", **options)``."""
    return _encoded


@pytest.fixture
def write_photos() -> Callable[..., None]:
    """Function that writes images of two classes: ``write_photos(folder, train=6, val=3)``."""
    return _write_photos


@pytest.fixture(scope="session")
def squeezenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    _save_weights(path, seed=0)
    return path


@pytest.fixture
def project(tmp_path: Path, squeezenet: Path) -> Project:
    """A config and weights; no images and no store yet."""
    made = Project(tmp_path / "project")
    made.photos.mkdir(parents=True)
    made.config.write_text(CONFIG, "utf-8")
    os.link(squeezenet, made.weights)
    return made


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory, squeezenet: Path) -> Project:
    """Features of 18 images and a bundle. Never changed: see ``trained``."""
    made = Project(tmp_path_factory.mktemp("trained") / "project")
    _write_photos(made.photos)
    made.config.write_text(CONFIG, "utf-8")
    os.link(squeezenet, made.weights)
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("extract", "train"):
        with pytest.raises(SystemExit) as ended:
            main([name, str(made.config)])
        assert ended.value.code == 0
    signal.signal(signal.SIGTERM, handler)
    return made


@pytest.fixture
def trained(_trained: Project, tmp_path: Path) -> Project:
    """A copy of one's own of a project with images, features and a bundle.

    The bundle names its weights by their first place, which is there for the whole session.
    """
    shutil.copytree(_trained.folder, tmp_path / "trained")
    return Project(tmp_path / "trained")


@pytest.fixture(scope="session")
def champion(tmp_path_factory: pytest.TempPathFactory, squeezenet: Path) -> Path:
    """A project of 88 photos whose model was promoted. Tests add images of their own names, and remove none."""
    made = Project(tmp_path_factory.mktemp("champion"))
    _write_photos(made.photos, train=34, val=10)
    made.config.write_text(CONFIG + "\n[drift]\nfail = true\n", "utf-8")
    os.link(squeezenet, made.weights)
    handler = signal.getsignal(signal.SIGTERM)
    for name in ("extract", "train"):
        with pytest.raises(SystemExit) as ended:
            main([name, str(made.config)])
        assert ended.value.code == 0
    signal.signal(signal.SIGTERM, handler)
    promote(made.store, "default", made.bundle.name, why="the first")
    return made.folder
