"""The card of a bundle: everything that makes its model reproducible and its score believable, as JSON."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from icecore.store import Column

from .resampling import Interval
from .result import Cell, TrainResult, intervals_to_json, rows_to_json

__all__ = ["library_versions", "make_card"]

_LIBRARIES = ("icecore", "numpy", "scipy", "scikit-learn", "skops")


def make_card(
    result: TrainResult,
    cell: Cell,
    columns: Sequence[Column],
    *,
    intervals: Mapping[str, Interval | None],
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Give the card of one cell, as plain JSON values.

    Parameters
    ----------
    result
        The run.
    cell
        The cell that is saved.
    columns
        What its model takes, in order.
    intervals
        Of its held-out scores.
    config
        The resolved configuration of the run.
    """
    provenance = result.provenance
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": result.task.name,
        "classes": list(result.rows.classes),
        "columns": [
            {"name": column.name, "width": column.width, "hash": column.hash, **column.to_json()} for column in columns
        ],
        "contract": provenance.contract.to_json(),
        "contract_sha256": provenance.contract.hash,
        "set": provenance.set_name,
        "generation": provenance.generation,
        "version": provenance.version,
        "source": provenance.source,
        "rows": rows_to_json(result.rows),
        "model": cell.model,
        "steps": cell.steps.to_json(),
        "params": cell.params,
        "class_weight": result.class_weight,
        "metric": result.metric,
        "folds": result.folds,
        "repeats": result.repeats,
        "calibration": result.calibration,
        "nested": None if result.nested is None else result.nested.to_json(),
        "seed": result.seed,
        "cv": cell.to_json()["cv"],
        "held_out": {**cell.evaluation.to_json(), "intervals": intervals_to_json(intervals)},
        "baseline": result.baseline.to_json(),
        "chosen_among": result.chosen_among,
        "seconds": round(cell.seconds, 3),
        "notes": [*result.notes, *cell.notes],
        "config": dict(config or {}),
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Give the versions of Python and of the libraries that a trained model depends on."""
    xgboost = {"xgboost": _xgboost_version()}
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _LIBRARIES}, **xgboost}


def _xgboost_version() -> str:
    """The same library is installed as ``xgboost-cpu`` where that has wheels."""
    try:
        return metadata.version("xgboost-cpu")
    except metadata.PackageNotFoundError:
        return metadata.version("xgboost")
