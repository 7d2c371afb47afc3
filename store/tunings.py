"""Records of fine-tuned backbones: where their weights came from, and every image that they have seen.

A tuning is two files of a store, ``weights/<sha256>.safetensors`` and beside it ``weights/<sha256>.json``, named after
the hash that stands in the contract of what is extracted with these weights. The record is written last: weights
without one are of a run that was cut off.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .contract import Contract, canonical_json
from .durable import make_folder, write_bytes
from .errors import FormatError

__all__ = ["Tuning", "list_tunings", "read_tuning", "tuned_weights_path", "write_tuning"]

FORMAT, FORMAT_VERSION = "icecore.tuning", 1
FOLDER = "weights"
_DIGEST = "record_sha256"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a backbone was fine-tuned, and on what."""

    weights: str
    """hash of its weights, as in the contract of features extracted with them"""
    created: str
    """when it ended, ISO 8601, UTC"""
    set_name: str
    """feature set whose images and labels it learned from"""
    parent: Contract
    """contract of the frozen backbone that it started from"""
    parent_generation: str | None
    """uuid of the generation with the parent's features; None where there was none"""
    version: int | None
    """version of the set whose rows it learned from"""
    split_digest: str
    """digest of the division into training and held-out rows, as in the cards of bundles"""
    split: str
    """the division in words"""
    classes: tuple[str, ...]
    """class names, in the order of the head"""
    seen_ids: tuple[str, ...]
    """ids of all images that training or early stopping saw, sorted"""
    seen_contents: tuple[str, ...]
    """sha256 of each of their files, in hex, in the order of ``seen_ids``"""
    skipped: Mapping[str, str]
    """images that could not be read, by id, with the reason; those that were seen before stand in ``seen_ids`` too"""
    unfrozen: tuple[str, ...]
    """names of the trained tensors of the backbone"""
    trained_parameters: int
    """numbers trained, the head's not counted"""
    epochs: tuple[Mapping[str, Any], ...]
    """by epoch: epoch, train_loss, validation_loss, validation_accuracy, seconds, learning_rates; 0 is before any"""
    best_epoch: int
    """epoch whose weights these are"""
    seconds: float
    """time of the whole run, interruptions left out"""
    device: str
    """where it ran"""
    config: Mapping[str, Any]
    """the options, seed included"""
    key: str
    """sha256, in hex, over all that decided the weights; the same inputs are not trained twice"""
    versions: Mapping[str, str]
    """libraries"""

    @property
    def contents(self) -> frozenset[str]:
        """``seen_contents`` as a set."""
        return frozenset(self.seen_contents)


def tuned_weights_path(store: Path | str, weights: str) -> Path:
    """Give the file of fine-tuned weights, by the hash that stands in the contract."""
    return Path(store) / FOLDER / f"{weights}.safetensors"


def write_tuning(store: Path | str, tuning: Tuning) -> Path:
    """Write the record beside its weights, whole or not at all; gives its path."""
    body = {field.name: getattr(tuning, field.name) for field in fields(tuning)}
    body |= {"format": FORMAT, "format_version": FORMAT_VERSION, "parent": tuning.parent.to_json()}
    body = json.loads(json.dumps(body, default=_plain))
    path = _record(store, tuning.weights)
    make_folder(path.parent)
    write_bytes(path, json.dumps({**body, _DIGEST: _seal(body)}, indent=1).encode() + b"\n")
    return path


def read_tuning(store: Path | str, weights: str) -> Tuning | None:
    """Give the record of fine-tuned weights; None where the store has none.

    Parameters
    ----------
    store
        Folder of the store.
    weights
        Hash of the weights, ``Contract.weights``.

    Raises
    ------
    FormatError
        When there is a record, but altered, or of a format version that this release does not know.
    """
    path = _record(store, weights)
    try:
        body = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise FormatError(f"{path}: not readable as the record of fine-tuned weights ({exc})") from exc
    return _tuning(path, body)


def list_tunings(store: Path | str) -> tuple[Tuning, ...]:
    """Give all records of a store, the oldest first.

    Raises
    ------
    FormatError
        As ``read_tuning``.
    """
    names = sorted((Path(store) / FOLDER).glob("*.json"))
    found = [tuning for path in names if (tuning := read_tuning(store, path.stem)) is not None]
    return tuple(sorted(found, key=lambda tuning: (tuning.created, tuning.weights)))


def _record(store: Path | str, weights: str) -> Path:
    return tuned_weights_path(store, weights).with_suffix(".json")


def _tuning(path: Path, body: Any) -> Tuning:
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise FormatError(f"{path}: not the record of fine-tuned weights")
    if body.get("format_version") != FORMAT_VERSION:
        found = body.get("format_version")
        raise FormatError(f"{path}: format version {found!r}, this release reads {FORMAT_VERSION}; upgrade icecore")
    digest = body.pop(_DIGEST, None)
    if digest != _seal(body) or body.get("weights") != path.stem:
        raise FormatError(f"{path}: altered since it was written (its checksum does not fit)")
    values = {field.name: body[field.name] for field in fields(Tuning)}
    for name in ("classes", "seen_ids", "seen_contents", "unfrozen", "epochs"):
        values[name] = tuple(values[name])
    return Tuning(**{**values, "parent": Contract.from_json(values["parent"])})


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value.to_json()
