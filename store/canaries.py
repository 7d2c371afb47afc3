"""Canaries of a generation: a few image files and their features, by which a run sees that numbers have moved.

They stand in ``canaries/<generation>.npz``, beside the segments and not among them: nobody reads them as features. A
generation that has none gets some from the next run. The file is small and replaced whole.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .contract import Column
from .disk_errors import disk_errors
from .durable import make_folder, publish
from .errors import FormatError, StoreDamagedError

__all__ = ["FORMAT_VERSION", "Canaries", "canaries_path", "forget_canaries", "read_canaries", "write_canaries"]

FORMAT, FORMAT_VERSION = "icecore-canaries", 1
FOLDER = "canaries"


@dataclass(frozen=True)
class Canaries:
    """Reference images of a generation with what they gave."""

    ids: tuple[str, ...]
    """the n images, as the set called them"""
    files: tuple[bytes, ...]
    """contents of their files"""
    features: Mapping[Column, np.ndarray]
    """float32 (n, D) of each column, not rounded to what is stored"""
    versions: Mapping[str, Mapping[str, str]]
    """libraries that computed each column, by its name"""
    precision: str
    """arithmetic: ``fp32``, ``bf16`` or ``fp16``"""
    created: str
    """when they were taken, ISO 8601, UTC"""


def canaries_path(folder: Path, generation: str) -> Path:
    """Give where the canaries of a generation stand."""
    return folder / FOLDER / f"{generation}.npz"


def write_canaries(folder: Path, generation: str, canaries: Canaries) -> None:
    """Write the canaries of a generation, in place of those that it has.

    Raises
    ------
    DiskError
        When the disk is full, or refuses otherwise; those that it has stay.
    """
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "generation": generation,
        "precision": canaries.precision,
        "created": canaries.created,
        "ids": list(canaries.ids),
        "columns": [
            {"column": column.to_json(), "width": column.width, "versions": dict(canaries.versions[column.name])}
            for column in canaries.features
        ],
    }
    arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
    arrays |= {f"file-{n}": np.frombuffer(data, np.uint8) for n, data in enumerate(canaries.files)}
    arrays |= {f"column-{n}": X.astype("<f4") for n, X in enumerate(canaries.features.values())}
    whole = io.BytesIO()
    np.savez(whole, **arrays)
    final = canaries_path(folder, generation)
    temporary = final.with_suffix(".npz.tmp")  # one name: what a kill leaves, the next run replaces
    with disk_errors(final):
        try:
            make_folder(final.parent)
            temporary.write_bytes(whole.getvalue())
            publish(temporary, final)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def read_canaries(folder: Path, generation: str) -> Canaries | None:
    """Read the canaries of a generation; None where it has none.

    Raises
    ------
    FormatError
        When another release wrote them.
    StoreDamagedError
        When the file is not as it was written.
    """
    path = canaries_path(folder, generation)
    try:
        with disk_errors(path):
            data = path.read_bytes()
    except OSError:
        if path.exists():
            raise
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:  # the archive holds a checksum of each part
            about = json.loads(arrays["about"].tobytes())
            found = about["format_version"]
            canaries = _parse(about, arrays) if found == FORMAT_VERSION else None
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, EOFError) as exc:
        cure = "delete it: the next run takes new canaries"
        raise StoreDamagedError(f"{path}: not as it was written ({exc}); {cure}") from exc
    if canaries is None:
        raise FormatError(f"{path}: canaries format {found}, this release reads {FORMAT_VERSION}; upgrade icecore")
    return canaries


def forget_canaries(folder: Path, generations: Iterable[str]) -> int:
    """Delete the canaries of all other generations than these, and what a kill left; give the number of files."""
    kept = {f"{generation}.npz" for generation in generations}
    gone = [path for path in (folder / FOLDER).glob("*.npz*") if path.name not in kept]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)


def _parse(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Canaries:
    columns = {Column.from_json(told["column"], told["width"]): told["versions"] for told in about["columns"]}
    return Canaries(
        ids=tuple(about["ids"]),
        files=tuple(arrays[f"file-{n}"].tobytes() for n in range(len(about["ids"]))),
        features={column: arrays[f"column-{n}"] for n, column in enumerate(columns)},
        versions={column.name: versions for column, versions in columns.items()},
        precision=about["precision"],
        created=about["created"],
    )
