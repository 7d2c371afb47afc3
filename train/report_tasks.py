"""What the reports of numbers and of labels show beside what all reports show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .result import TrainResult
from .task_plots import plot_label_curves, plot_number_map, plot_predicted, plot_residuals

__all__ = ["LabelMistake", "NumberMistake", "label_parts", "number_parts"]


@dataclass(frozen=True)
class NumberMistake:
    """A held-out image with what is predicted of it."""

    id: str
    """image id"""
    true: float
    """its number"""
    predicted: float
    """what is predicted"""


@dataclass(frozen=True)
class LabelMistake:
    """A held-out image with a wrong label."""

    id: str
    """image id"""
    missed: tuple[tuple[str, float], ...]
    """labels that it has and is not called, each with its probability"""
    wrong: tuple[tuple[str, float], ...]
    """labels that it is called and does not have"""


def number_parts(result: TrainResult) -> dict[str, Any]:
    """Give what the page of a regression shows: figures, its mistakes (all of them, largest first), and quantiles."""
    seen, name = result.predictions, result.rows.classes[0]
    apart = np.abs(seen.y - seen.outputs)
    found = result.evidence.map
    figures = {
        "predicted": plot_predicted(seen.y, seen.outputs, name),
        "residuals": plot_residuals(seen.y, seen.outputs, name),
    }
    if found is not None:
        figures["map"] = plot_number_map(found, result.rows.y, result.rows.train, name)
    half, nine_tenths = np.quantile(apart, [0.5, 0.9]).tolist()
    return {
        "figures": figures,
        "mistakes": [
            NumberMistake(seen.ids[i], float(seen.y[i]), float(seen.outputs[i]))
            for i in np.argsort(-apart, kind="stable").tolist()
        ],
        "least": float(result.rows.y.min()),
        "most": float(result.rows.y.max()),
        "half": half,
        "nine_tenths": nine_tenths,
    }


def label_parts(result: TrainResult) -> dict[str, Any]:
    """Give what the page of a multi-label task shows: figures, and its mistakes, most wrong labels first."""
    seen, names = result.predictions, result.rows.classes
    has, called = seen.y == 1, seen.outputs > 0.5
    wrong = has != called
    sure = np.where(wrong, np.abs(seen.outputs - 0.5), 0).sum(axis=1)
    order = np.lexsort((-sure, -wrong.sum(axis=1)))
    found = [
        LabelMistake(
            seen.ids[i],
            tuple((names[j], float(seen.outputs[i, j])) for j in np.flatnonzero(has[i] & ~called[i]).tolist()),
            tuple((names[j], float(seen.outputs[i, j])) for j in np.flatnonzero(called[i] & ~has[i]).tolist()),
        )
        for i in order.tolist()
        if wrong[i].any()
    ]
    return {"figures": {"precision_recall": plot_label_curves(seen.y, seen.outputs, names)}, "mistakes": found}
