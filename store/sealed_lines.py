"""Files of JSON lines that are only added to, each line with a checksum: what a kill cut off is left out, and told.

A line is one JSON object with ``format``, ``format_version`` and ``line_sha256``, the sha256 of its canonical JSON
without it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .contract import canonical_json
from .durable import fsync_folder

__all__ = ["append_sealed", "read_sealed"]

_SEAL = "line_sha256"


def read_sealed(path: Path, form: str) -> tuple[list[dict[str, Any]], int]:
    """Read the lines of a format, version 1.

    Returns
    -------
    bodies
        Each line's object without format and checksum, in their order; none where there is no file.
    damaged
        Number of lines that do not fit their checksum; one that a kill cut off among them.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], 0
    read = [_body(line, form) for line in lines if line.strip()]
    return [body for body in read if body is not None], sum(body is None for body in read)


def append_sealed(path: Path, form: str, bodies: Iterable[Mapping[str, Any]]) -> None:
    """Add lines, durably; the folder is there."""
    lines = [_line(body, form) for body in bodies]
    if not lines:
        return
    is_new = not path.exists()
    # One write behind a line break: two writers at once do not tear each other's lines, nor does a line cut off.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        data = b"\n" + b"\n".join(lines) + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        fsync_folder(path.parent)


def _line(body: Mapping[str, Any], form: str) -> bytes:
    whole = {"format": form, "format_version": 1, **body}
    return canonical_json({**whole, _SEAL: _seal(whole)})


def _body(line: bytes, form: str) -> dict[str, Any] | None:
    try:
        body: dict[str, Any] = json.loads(line)
        if body.pop(_SEAL) != _seal(body) or (body.pop("format"), body.pop("format_version")) != (form, 1):
            return None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return body


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body)).hexdigest()
