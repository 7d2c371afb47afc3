"""The leaderboard of a sweep as files: CSV, JSON, and a page that needs no network."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from icecore.store.durable import make_folder, write_bytes

from .sweep_result import SweepResult

__all__ = ["FORMAT_VERSION", "NAME", "board_csv", "board_json", "write_board"]

NAME = "leaderboard"
FORMAT_VERSION = 1
"""Version of ``leaderboard.json``; keys are only added to one version."""
_COLUMNS = ("rank", "layers", "n_features", "model", "steps", "setting", "cv_mean", "cv_std", "seconds")


def write_board(result: SweepResult, folder: Path, *, page: bool) -> tuple[Path, ...]:
    """Write the leaderboard, each file whole or not at all, and give the paths.

    Parameters
    ----------
    result
        The sweep.
    folder
        Where to; made where there is none.
    page
        Whether to write ``leaderboard.html`` too, which needs the ``report`` extra.
    """
    makers: dict[str, Callable[[SweepResult], str]] = {"csv": board_csv, "json": board_json}
    if page:
        from .sweep_page import render_sweep

        makers["html"] = render_sweep
    make_folder(folder)
    paths = []
    for suffix, make in makers.items():
        paths.append(folder / f"{NAME}.{suffix}")
        write_bytes(paths[-1], make(result).encode("utf-8", "surrogateescape"))
    return tuple(paths)


def board_csv(result: SweepResult) -> str:
    """Give one line a cell, the best first; scores are those of the cross-validation."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for place, cell in enumerate(result.cells, 1):
        setting = " ".join(f"{name}={value:g}" for name, value in cell.params.items())
        scores = (cell.best.mean, cell.best.std, round(cell.seconds, 3))
        writer.writerow((place, cell.layers, cell.n_features, cell.model, cell.steps, setting, *scores))
    return lines.getvalue()


def board_json(result: SweepResult) -> str:
    """Give all that the sweep found, as JSON."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    body: Mapping[str, Any] = {"format": "icecore.sweep", "format_version": FORMAT_VERSION, "created": created}
    return json.dumps({**body, **result.to_json()}, indent=1, allow_nan=False) + "\n"
