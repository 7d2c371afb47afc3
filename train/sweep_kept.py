"""What a sweep has found, kept in one small file each, so that it continues where it was killed.

A file is named by the sha256 of all that decides its content. It holds that too, and a checksum, so that a damaged file
is noticed and computed again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store.durable import make_folder, write_bytes
from numpy.typing import NDArray

from .bundle_format import seal
from .card import library_versions
from .tasks import Task

__all__ = ["FORMAT_VERSION", "Kept", "digest_of", "targets_inputs"]

FORMAT_VERSION = 1
"""Part of what decides a file's name: counted up where the same inputs no longer give the same numbers."""
_FIRST_TASK = "classification"
STRAY_SECONDS = 3600
"""Age at which an unfinished file is taken for abandoned."""


def digest_of(*arrays: NDArray[Any]) -> str:
    """Give the sha256, in hex, of arrays with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode("ascii"))
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def targets_inputs(task: Task, y: NDArray[Any]) -> dict[str, str]:
    """Give the part of a finding's inputs that says what was learned.

    Findings of before there were other tasks are of classes and name none: they stay valid.
    """
    if task.name == _FIRST_TASK:
        return {"classes_sha256": digest_of(y)}
    return {"task": task.name, "targets_sha256": digest_of(y)}


class Kept:
    """A folder of findings, made with the first. Several sweeps may use it at once: each file appears whole or not."""

    def __init__(self, folder: Path) -> None:
        for stray in folder.glob("*.tmp"):
            with suppress(FileNotFoundError):  # another sweep has finished it, or swept it, since it was listed
                if time.time() - stray.stat().st_mtime > STRAY_SECONDS:
                    stray.unlink()
        self.folder = folder
        self.damaged: list[str] = []
        """names of files that could not be used"""
        self.other_versions = 0
        """findings of other versions of the libraries, which are not used"""
        self._versions = library_versions()

    def get(self, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give what was found for these inputs, plain JSON values; None where that must be computed."""
        path = self._path(inputs)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            body = json.loads(text)
            whole = body.pop("sha256") == seal(body) and path.stem == seal(body["inputs"])
        except (ValueError, KeyError, AttributeError, TypeError):
            whole = False
        if not whole:
            self.damaged.append(path.name)
            return None
        if body["versions"] != self._versions:
            self.other_versions += 1
            return None
        found: dict[str, Any] = body["found"]
        return found

    def put(self, inputs: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Keep what was found for these inputs, durably."""
        body = {"inputs": _full(inputs), "found": dict(found), "versions": self._versions}
        text = json.dumps({**body, "sha256": seal(body)}, indent=1, allow_nan=False) + "\n"
        make_folder(self.folder)
        write_bytes(self._path(inputs), text.encode("ascii"))

    def _path(self, inputs: Mapping[str, Any]) -> Path:
        return self.folder / f"{seal(_full(inputs))}.json"


def _full(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **inputs}
