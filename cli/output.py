"""What a command prints: lines of any bytes, and plain JSON values."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["echo", "jsonable"]


def echo(text: str, *, err: bool = False) -> None:
    """Print a line whatever bytes its file names hold."""
    stream = sys.stderr if err else sys.stdout
    stream.flush()
    stream.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    stream.buffer.flush()


def jsonable(value: Any) -> Any:
    """Give a value as JSON knows it: paths as texts, keys as texts, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
