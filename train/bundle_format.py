"""The names and checksums that writer and reader of bundles share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "CARD",
    "CURVES",
    "FIRST_TASK",
    "FORMAT",
    "FORMAT_VERSION",
    "SKOPS_MODEL",
    "STEPS",
    "XGBOOST_MODEL",
    "file_sha256",
    "label_model",
    "seal",
]

FORMAT = "icecore.bundle"
"""What ``card.json`` says it is."""
FORMAT_VERSION = 2
"""Version of the bundle's layout; a reader refuses versions that it does not know. Version 2 may hold calibration
curves, which a reader of version 1 would pass over, and may be of labels or numbers."""
FIRST_TASK = "classification"
"""The task of version 1."""
CARD = "card.json"
STEPS, SKOPS_MODEL, XGBOOST_MODEL = "steps.skops", "model.skops", "model.json"
"""Files of a bundle: preprocessing, and one of two kinds of model."""
CURVES = "calibration.skops"
"""File of the curves that turn scores into probabilities, where there are any."""


def label_model(position: int) -> str:
    """Give the name of the file that holds XGBoost's model of one of several labels, by its position."""
    return f"model-{position:04}.json"


def file_sha256(path: Path) -> str:
    """Give the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(body: Mapping[str, Any]) -> str:
    """Give the checksum of a card: sha256, in hex, of its canonical JSON without the checksum itself."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
