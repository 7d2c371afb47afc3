"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


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
