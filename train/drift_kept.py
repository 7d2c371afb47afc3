"""What a store keeps of drift: the rows that a bundle is held against, and the verdicts, one JSON line each.

``<store>/drift/<name>/<bundle>.npz`` is made of the version that the bundle was trained on when it is first needed;
``<store>/drift/<name>.jsonl`` grows by a line with every comparison.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store import FeatureStore, StoreError
from icecore.store.durable import make_folder, write_bytes

from .bundle import Bundle
from .drift import Drift, Reference, make_reference
from .errors import DriftError

__all__ = ["read_history", "record_drift", "reference_of"]

log = logging.getLogger(__name__)

ROWS = 4096
"""Rows of a version that are read, at random."""


def reference_of(store: FeatureStore, bundle: Bundle, name: str) -> Reference:
    """Give what images are held against that the bundle predicts.

    It is made of all images of the version that the bundle was trained on, and of what the bundle called its held-out
    rows; and kept in the store.

    Raises
    ------
    DriftError
        When the store has no such version any more, or it is too small.
    """
    path = store.path / "drift" / name / f"{bundle.card.get('id', bundle.path.name)}.npz"
    if path.is_file():
        return Reference.load(path)
    reference = make_reference(_features(store, bundle), _called(bundle))
    try:
        make_folder(path.parent)
        write_bytes(path, reference.save())
    except OSError as exc:
        log.warning("%s: cannot be kept (%s), and is made again next time", path, exc.strerror)
    return reference


def record_drift(store_path: Path, name: str, drift: Drift, facts: Mapping[str, Any]) -> None:
    """Add a verdict to the history of a model, durably.

    Parameters
    ----------
    store_path, name
        The store's folder, and the name of the model.
    drift
        The verdict.
    facts
        What was compared: plain JSON values, such as ``bundle`` and ``command``.
    """
    path = store_path / "drift" / f"{name}.jsonl"
    make_folder(path.parent)
    record = {"format": 1, "at": datetime.now(UTC).isoformat(timespec="seconds"), **facts, **drift.to_json()}
    with path.open("a+b") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a run was killed in the middle of its line
                file.write(b"\n")
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_history(store_path: Path, name: str) -> list[dict[str, Any]]:
    """Give the verdicts on a model, the oldest first; a line that a killed run left half-written is passed over.

    Raises
    ------
    DriftError
        When there is no history.
    """
    path = store_path / "drift" / f"{name}.jsonl"
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as exc:
        known = sorted(found.stem for found in path.parent.glob("*.jsonl"))
        has = f"there is one of {', '.join(known)}" if known else "`icecore predict champion --store` writes it"
        raise DriftError(f"{path}: no history of drift; {has}") from exc
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            log.warning("%s: a line was cut off and is passed over", path)
    return records


def _features(store: FeatureStore, bundle: Bundle) -> dict[str, np.ndarray]:
    card = bundle.card
    try:
        features = store[card["set"]].as_of(card["version"])
        if features.contract.hash != bundle.contract.hash:
            raise DriftError(f"{bundle.path}: version {card['version']} of {card['set']!r} has another contract")
        with features.array([column.name for column in bundle.columns], missing="drop", dtype="float32") as array:
            rng = np.random.default_rng(0)
            rows = np.sort(rng.choice(len(array), min(len(array), ROWS), replace=False))
            X = array[rows]  # (n, D)
    except StoreError as exc:
        raise DriftError(f"{bundle.path}: the images that it was trained on are not in this store ({exc})") from exc
    ends = np.cumsum([column.width for column in bundle.columns])
    return {
        column.name: X[:, end - column.width : end] for column, end in zip(bundle.columns, ends.tolist(), strict=True)
    }


def _called(bundle: Bundle) -> dict[str, int]:
    """Count what the bundle called its held-out rows."""
    if bundle.task != "classification":
        return {}
    called = np.sum(bundle.card["held_out"]["confusion"], axis=0)  # rows: the class, columns: what it was called
    return dict(zip(bundle.classes, map(int, called), strict=True))
