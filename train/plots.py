"""The figures of the leaderboard: scores of all cells, and the winner's confusion matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Metric, sign_of
from .models import MODELS, ModelSpec
from .result import Cell
from .svg import INK, PALETTE, draw, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_cells", "plot_confusion"]

_MOST_NUMBERS = 25  # classes up to which a confusion matrix has its counts written in


def plot_cells(
    cells: Sequence[Cell],
    metric: Metric,
    baseline: float | None,
    *,
    models: Mapping[str, ModelSpec] = MODELS,
    baseline_title: str = "majority class",
) -> str:
    """Draw the scores of all cells: bars are cross-validation, diamonds the held-out rows.

    Parameters
    ----------
    cells
        The leaderboard.
    metric
        What the bars show.
    baseline
        The held-out score of what is known without features, drawn as a line; None where it is undefined.
    models
        The task's models.
    baseline_title
        What the line is called.
    """
    layers = list(dict.fromkeys(cell.inputs for cell in sorted(cells, key=_depth)))
    names = [name for name in models if any(cell.model == name for cell in cells)]
    width = max(6.4, 1.2 + 0.42 * len(layers) * (len(names) + 1))

    def paint(axes: Axes) -> None:
        for i, name in enumerate(names):
            own = [cell for cell in cells if cell.model == name]
            _bars(axes, own, layers, metric, i, len(names), models[name].title)
        if baseline is not None:
            axes.axhline(baseline, color=INK, linewidth=1, linestyle=(0, (4, 3)), label=baseline_title)
        axes.set_xticks(range(len(layers)), [printable(name) for name in layers])
        axes.set_ylabel(metric.replace("_", " ") + (" (lower is better)" if sign_of(metric) < 0 else ""))
        axes.set_ylim(*_limits([value for cell in cells for value in _heights(cell, metric)], baseline, metric))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)

    return draw(paint, (width, 3.8), "Cross-validated and held-out scores of every model on every layer", "cells")


def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], *, salt: str = "confusion") -> str:
    """Draw a confusion matrix: rows are true classes, columns called ones, shades parts of the row.

    ``salt`` keeps the figure's ids apart from those of another one on the same page.
    """
    counts = np.array(confusion)  # (k, k)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    k = len(classes)
    side = min(11.0, 2.2 + 0.55 * k)
    names, middles = [printable(name) for name in classes], np.arange(k) + 0.5

    def paint(axes: Axes) -> None:
        axes.pcolormesh(shares, cmap=_shades(), vmin=0, vmax=1, edgecolors="none")
        axes.invert_yaxis()
        axes.set_aspect("equal")
        few = k <= 3
        axes.set_xticks(middles, names, rotation=0 if few else 45, ha="center" if few else "right")
        axes.set_yticks(middles, names)
        axes.set_xlabel("called")
        axes.set_ylabel("true class")
        if k <= _MOST_NUMBERS:
            _write_counts(axes, counts, shares)

    return draw(paint, (side + 0.8, side), "Confusion matrix of the held-out rows", salt)


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (i, j), count in np.ndenumerate(counts):
        colour = "#ffffff" if shares[i, j] > 0.5 else INK
        axes.text(j + 0.5, i + 0.5, str(count), ha="center", va="center", color=colour)


def _depth(cell: Cell) -> tuple[int, list[tuple[int, str]]]:
    """Order layers as their names count, ``features.6`` before ``features.13``, and joined ones last."""
    parts = re.findall(r"\d+|\D+", cell.layers)
    return len(cell.columns), [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _bars(
    axes: Axes, cells: Sequence[Cell], layers: Sequence[str], metric: Metric, i: int, n_models: int, title: str
) -> None:
    """Draw the bars of one model, beside those of the others."""
    width = 0.8 / n_models
    where = [layers.index(cell.inputs) + (i - (n_models - 1) / 2) * width for cell in cells]
    means, stds = [cell.best.mean for cell in cells], [cell.best.std for cell in cells]
    colour = PALETTE[i % len(PALETTE)]
    axes.bar(where, means, width * 0.92, color=colour, label=title)
    axes.errorbar(where, means, stds, fmt="none", ecolor=INK, elinewidth=1, capsize=2, alpha=0.6)
    held_out = [_held_out(cell, metric) for cell in cells]
    label = "held out" if i == n_models - 1 else None
    axes.plot(where, held_out, "D", markersize=5, color="#ffffff", markeredgecolor=INK, label=label)


def _held_out(cell: Cell, metric: Metric) -> float:
    """Give the score on the held-out rows, NaN where it is undefined."""
    score = getattr(cell.evaluation, metric)
    return math.nan if score is None else float(score)


def _heights(cell: Cell, metric: Metric) -> Iterator[float]:
    mean, std = cell.best.mean, cell.best.std
    yield from (height for height in (mean - std, mean + std, _held_out(cell, metric)) if not math.isnan(height))


def _limits(values: Sequence[float], baseline: float | None, metric: Metric) -> tuple[float, float]:
    """Leave out the empty part below all scores; bars of a loss stand on zero, and R2 may lie below it."""
    heights = [*values, *([] if baseline is None else [baseline])]
    if sign_of(metric) < 0:
        return 0.0, max(heights) * 1.05
    low = min(heights)
    return low - 0.05 if low < 0 else max(0.0, low - 0.08), min(1.0, max(values) + 0.03)


def _shades() -> Any:
    """From see-through to blue, so that empty cells show the page."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ice", [(0.18, 0.44, 0.87, 0.04), (0.12, 0.34, 0.76, 1.0)])
