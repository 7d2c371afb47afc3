"""Write a bundle so that it appears whole or not at all, and stays after a power cut."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from icecore.store.durable import make_folder, publish_folder

from . import serial
from .bundle_format import (
    CARD,
    CURVES,
    FIRST_TASK,
    FORMAT,
    FORMAT_VERSION,
    SKOPS_MODEL,
    STEPS,
    XGBOOST_MODEL,
    file_sha256,
    label_model,
    seal,
)
from .calibration_curves import Curves
from .errors import BundleError
from .label_models import LabelModels

__all__ = ["new_bundle_id", "sweep_strays", "write_bundle"]

STRAY_SECONDS = 24 * 3600
"""Age at which an unfinished bundle is taken for abandoned."""
SCRATCH, SCRATCH_SECONDS = ".scratch", 14 * 24 * 3600
"""Ending of the folder of a run that trains out of core, and the age at which that is: it may be at work for days."""


def new_bundle_id(now: datetime | None = None) -> str:
    """Give a name for a bundle: UTC time and eight random hex digits, so that names sort by time."""
    return f"{(now or datetime.now(UTC)).strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(4)}"


def sweep_strays(folder: Path) -> None:
    """Remove what killed runs left behind; a live one writes a bundle in seconds, or keeps scratch for days."""
    for ending, age in ((".tmp", STRAY_SECONDS), (SCRATCH, SCRATCH_SECONDS)):
        for stray in folder.glob(f".*{ending}"):
            with suppress(FileNotFoundError):  # another run has finished it, or swept it, since it was listed
                if time.time() - stray.stat().st_mtime > age:
                    shutil.rmtree(stray)


def write_bundle(
    final: Path,
    *,
    steps: Any,
    model: Any,
    card: Mapping[str, Any],
    curves: Curves | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a bundle so that it is there whole, and durably, or not at all.

    Parameters
    ----------
    final
        Folder of the bundle, which must not be there yet, named by ``new_bundle_id``; its parents are made.
    steps
        Fitted preprocessing.
    model
        Fitted model, of scikit-learn or XGBoost, or one a label.
    curves
        What turns the model's scores into probabilities, where it is not the model.
    card
        What to record; format, id, file checksums and a checksum of the card are added.
    extra
        Other files by name, such as the report.

    Raises
    ------
    BundleError
        When a bundle of this id is already there.
    """
    if final.exists():
        raise BundleError(f"{final}: there is a bundle here already")
    make_folder(final.parent)
    temporary = final.with_name(f".{final.name}.tmp")
    temporary.mkdir()
    try:
        _write_files(temporary, steps, model, extra or {})
        if curves is not None:
            serial.save_skops(curves, temporary / CURVES)
        files = {file.name: file_sha256(file) for file in sorted(temporary.iterdir())}
        body = {"format": FORMAT, "format_version": _version(card, curves), "id": final.name, **card, "files": files}
        sealed = {**body, "card_sha256": seal(body)}
        (temporary / CARD).write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n", encoding="ascii")
        publish_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _version(card: Mapping[str, Any], curves: Curves | None) -> int:
    """Give the oldest version that says all that is in the bundle, so that readers that know no more still read it."""
    return FORMAT_VERSION if curves is not None or card.get("task", FIRST_TASK) != FIRST_TASK else 1


def _write_files(folder: Path, steps: Any, model: Any, extra: Mapping[str, bytes]) -> None:
    serial.save_skops(steps, folder / STEPS)
    if _is_xgboost(model):
        serial.save_xgboost(model, folder / XGBOOST_MODEL)
    elif isinstance(model, LabelModels) and all(map(_is_xgboost, model.models)):
        for position, each in enumerate(model.models):
            serial.save_xgboost(each, folder / label_model(position))
    else:
        serial.save_skops(model, folder / SKOPS_MODEL)
    for file, data in extra.items():
        (folder / file).write_bytes(data)


def _is_xgboost(model: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "xgboost" for kind in type(model).__mro__)
