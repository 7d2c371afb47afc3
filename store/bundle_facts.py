"""Bundles as their cards tell: listed, compared field by field, handed out. No model is loaded."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bundles import CARD, check_bundle, read_card
from .durable import publish
from .errors import ExportError, ExportExistsError, RefusedError, StoreError

__all__ = ["BundleFacts", "diff_bundles", "export_bundle", "list_bundles"]

_COMPARED = (
    "task", "classes", "contract_sha256", "set", "generation", "version", "rows", "model", "steps", "params",
    "class_weight", "metric", "calibration", "seed", "held_out", "baseline", "versions",
)  # fmt: skip
_LEFT_OUT = frozenset({"confusion", "per_class", "per_label", "intervals", "failed_images", "accuracy_interval"})


@dataclass(frozen=True)
class BundleFacts:
    """A bundle, as its card tells."""

    name: str
    """name of the model"""
    bundle: str
    """its folder under ``models/<name>/``"""
    damaged: str
    """what is wrong with its card, empty where nothing is; the other facts are then missing"""
    created: str = ""
    """when, ISO 8601, UTC"""
    model: str = ""
    """kind of model"""
    layers: str = ""
    """columns that it takes: ``layer3:avg + layer4:avg``"""
    metric: str = ""
    """what it was chosen by"""
    score: float | None = None
    """that score on its held-out rows, when it was trained"""
    version: int | None = None
    """version of the feature set that it was trained on"""
    bytes: int = 0
    """bytes of its files"""


def list_bundles(store_path: Path | str, name: str) -> list[BundleFacts]:
    """Give the bundles of a name, the oldest first; damaged ones too."""
    cards = sorted((Path(store_path) / "models" / name).glob(f"*/{CARD}"))
    return [_facts(card.parent) for card in cards if not card.parent.name.startswith(".")]


def diff_bundles(a: Path, b: Path) -> dict[str, tuple[Any, Any]]:
    """Compare two bundles.

    Returns
    -------
    dict
        Dotted name of each fact that differs, such as ``held_out.accuracy`` -> its values; None where one lacks it.

    Raises
    ------
    FormatError
        When a card cannot be read.
    """
    ours, theirs = _card(a), _card(b)
    return {
        key: (ours.get(key), theirs.get(key))
        for key in dict.fromkeys((*ours, *theirs))
        if ours.get(key) != theirs.get(key)
    }


def export_bundle(bundle: Path, to: Path, *, overwrite: bool = False) -> Path:
    """Copy a bundle, whole and checked, to a folder or to a zip file; ``load_bundle`` reads the folder.

    Parameters
    ----------
    bundle
        Its folder.
    to
        Folder to make, or a file whose name ends in ``.zip``.
    overwrite
        Replace what is there.

    Raises
    ------
    RefusedError
        When a file of the bundle is missing or altered.
    ExportExistsError
        When there is something and it is not to be replaced.
    ExportError
        When the folder to write to is not there.
    """
    try:
        check_bundle(bundle)
    except (StoreError, OSError) as exc:
        raise RefusedError(f"{exc}; a damaged bundle is not handed out") from exc
    if os.path.lexists(to) and not overwrite:
        raise ExportExistsError(to)
    if not to.parent.is_dir():
        raise ExportError(f"{to}: there is no folder {str(to.parent)!r}; make it first")
    files = sorted(path for path in bundle.iterdir() if path.is_file())
    temporary = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        if to.suffix == ".zip":
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in files:
                    archive.write(file, f"{bundle.name}/{file.name}")
            publish(temporary, to)
        else:
            temporary.mkdir()
            for file in files:
                shutil.copyfile(file, temporary / file.name)
            if to.is_dir():
                _require_bundle(to)
                shutil.rmtree(to)
            publish(temporary, to)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
    return to


def _require_bundle(folder: Path) -> None:
    """Never delete a folder that is something else."""
    if any(folder.iterdir()) and not (folder / CARD).is_file():
        raise ExportError(f"{folder}: is no bundle, and is not replaced by one; choose another name")


def _facts(path: Path) -> BundleFacts:
    try:
        read = read_card(path)
        card = json.loads((path / CARD).read_bytes())
        metric = str(card.get("metric", ""))
        score = card.get("held_out", {}).get(metric)
    except (StoreError, OSError, ValueError, AttributeError) as exc:
        return BundleFacts(path.parent.name, path.name, str(exc))
    return BundleFacts(
        path.parent.name,
        path.name,
        "",
        str(card.get("created", "")),
        str(card.get("model", "")),
        " + ".join(column.name for column in read.columns),
        metric,
        None if score is None else float(score),
        read.version,
        sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
    )


def _card(path: Path) -> dict[str, Any]:
    read = read_card(path)
    card = json.loads((path / CARD).read_bytes())
    facts = {"layers": [column.name for column in read.columns], **{key: card.get(key) for key in _COMPARED}}
    return dict(_flat(facts, ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        if key not in _LEFT_OUT:
            yield from _flat(item, f"{name}.{key}" if name else str(key))
