"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Contract, FeatureStore, SourceImage
from icecore.store.tunings import Tuning, tuned_weights_path, write_tuning


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder with real weights and images; skips where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("ICECORE_TEST_ASSETS", default))
    if not (folder / "weights" / "squeezenet1_1.pth").is_file():
        pytest.skip(f"real weights and images are not at {folder}: set ICECORE_TEST_ASSETS to their folder")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled networks of the tests are kept apart from those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICECORE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass(frozen=True)
class SmallDisk:
    """A file system of its own, which can be filled up and made read-only."""

    path: Path

    def leave(self, free: int) -> None:
        """Fill it but for so many bytes."""
        self.clear()
        stat = os.statvfs(self.path)
        (self.path / "ballast").write_bytes(bytes(max(0, stat.f_bavail * stat.f_bsize - free)))

    def clear(self) -> None:
        """Take away what it was filled with."""
        (self.path / "ballast").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Make it read-only."""
        subprocess.run(["mount", "-o", "remount,ro", self.path], check=True)


@pytest.fixture
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], SmallDisk]]:
    """Function that mounts a tmpfs of so many KiB; skips where mounting is not allowed."""
    mounted = []

    def mount(kib: int) -> SmallDisk:
        folder = tmp_path_factory.mktemp("disk")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return SmallDisk(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _tune(path: Path, label: str, *, seen: str = "train/", shift: float = 6.0) -> Contract:
    """Add a generation to the set ``photos`` in which the images of a class are moved apart, and its tuning's record.

    The record says that images whose ids begin with ``seen`` were seen.
    """
    with FeatureStore.open(path) as store:
        features = store["photos"]
        frozen, contents, columns = features.contract, features.contents(), features.columns
        tuned = replace(frozen, weights="cd" * 32)
        ids = features.ids()
        moved = shift * np.array([[f"/{label}/" in image] for image in ids])
        X = {column: features.matrix(column.name).X + moved for column in columns}
        with store.writer("photos", tuned, columns) as writer:
            sources = [SourceImage(image, path / image, 1, 1, 1) for image in ids]
            writer.append(sources, [contents[image] for image in ids], X)
    known = [image for image in ids if image.startswith(seen)]
    weights = tuned_weights_path(path, tuned.weights)
    weights.parent.mkdir()
    weights.write_bytes(b"w" * 100)
    epochs = [
        {"epoch": n, "train_loss": None if n == 0 else 1 / n, "validation_loss": 1.0, "validation_accuracy": 0.5}
        for n in range(3)
    ]
    tuning = Tuning(
        weights=tuned.weights,
        created="2026-01-02T03:04:05+00:00",
        set_name="photos",
        parent=frozen,
        parent_generation=None,
        version=1,
        split_digest="0" * 64,
        split="as given",
        classes=tuple(sorted({image.split("/")[1] for image in ids})),
        seen_ids=tuple(known),
        seen_contents=tuple(contents[image].hex() for image in known),
        skipped={},
        unfrozen=("features.3.weight",),
        trained_parameters=12,
        epochs=tuple(epochs),
        best_epoch=2,
        seconds=9.0,
        device="cpu",
        config={},
        key="1" * 64,
        versions={},
    )
    write_tuning(path, tuning)
    return tuned


@pytest.fixture
def tune() -> Callable[..., Contract]:
    """Function that adds a fine-tuned generation to a store: ``tune(path, "bees", seen="train/", shift=6.0)``."""
    return _tune
