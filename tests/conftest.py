"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
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
