"""The report's two figures, as SVG text to put into a page.

Text and lines take the page's own colour, so that they read on light and dark grounds. Equal input gives equal
text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .metrics import Metric, sign_of
from .models import MODELS
from .result import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_cells", "plot_confusion", "printable"]

PALETTE = ("#2f6fde", "#12a594", "#e5772e", "#9a5bd6")
"""One colour a model: told apart by colour-blind readers, and clear on white and on near-black."""
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_MOST_NUMBERS = 25  # classes up to which a confusion matrix has its counts written in


def plot_cells(cells: Sequence[Cell], metric: Metric, baseline: float) -> str:
    """Draw the scores of all cells: bars are cross-validation, diamonds the held-out rows.

    Parameters
    ----------
    cells
        The leaderboard.
    metric
        What the bars show.
    baseline
        The majority class's held-out score, drawn as a line.
    """
    layers = list(dict.fromkeys(cell.layers for cell in sorted(cells, key=_depth)))
    models = [name for name in MODELS if any(cell.model == name for cell in cells)]
    width = max(6.4, 1.2 + 0.42 * len(layers) * (len(models) + 1))

    def paint(axes: Axes) -> None:
        for i, name in enumerate(models):
            _bars(axes, [cell for cell in cells if cell.model == name], layers, metric, i, len(models))
        axes.axhline(baseline, color=_INK, linewidth=1, linestyle=(0, (4, 3)), label="majority class")
        axes.set_xticks(range(len(layers)), [printable(name) for name in layers])
        axes.set_ylabel(metric.replace("_", " ") + (" (lower is better)" if sign_of(metric) < 0 else ""))
        axes.set_ylim(*_limits([value for cell in cells for value in _heights(cell, metric)], baseline, metric))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9)

    return _draw(paint, (width, 3.8), "Cross-validated and held-out scores of every model on every layer", "cells")


def plot_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw a confusion matrix: rows are true classes, columns called ones, shades parts of the row."""
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

    return _draw(paint, (side + 0.8, side), "Confusion matrix of the held-out rows", "confusion")


def printable(text: str) -> str:
    r"""Give text that can be written as UTF-8 on one line: stray bytes and control characters as ``\xff``."""
    return "".join(map(_printable_character, text))


def _printable_character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python carries a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (i, j), count in np.ndenumerate(counts):
        colour = "#ffffff" if shares[i, j] > 0.5 else _INK
        axes.text(j + 0.5, i + 0.5, str(count), ha="center", va="center", color=colour)


def _depth(cell: Cell) -> tuple[int, list[tuple[int, str]]]:
    """Order layers as their names count, ``features.6`` before ``features.13``, and joined ones last."""
    parts = re.findall(r"\d+|\D+", cell.layers)
    return len(cell.columns), [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _bars(axes: Axes, cells: Sequence[Cell], layers: Sequence[str], metric: Metric, i: int, n_models: int) -> None:
    """Draw the bars of one model, beside those of the others."""
    width = 0.8 / n_models
    where = [layers.index(cell.layers) + (i - (n_models - 1) / 2) * width for cell in cells]
    means, stds = [cell.best.mean for cell in cells], [cell.best.std for cell in cells]
    spec = MODELS[cells[0].model]
    colour = PALETTE[i % len(PALETTE)]
    axes.bar(where, means, width * 0.92, color=colour, label=spec.title)
    axes.errorbar(where, means, stds, fmt="none", ecolor=_INK, elinewidth=1, capsize=2, alpha=0.6)
    held_out = [getattr(cell.evaluation, metric) for cell in cells]
    label = "held out" if i == n_models - 1 else None
    axes.plot(where, held_out, "D", markersize=5, color="#ffffff", markeredgecolor=_INK, label=label)


def _heights(cell: Cell, metric: Metric) -> tuple[float, float, float]:
    mean, std = cell.best.mean, cell.best.std
    return mean - std, mean + std, float(getattr(cell.evaluation, metric))


def _limits(values: Sequence[float], baseline: float, metric: Metric) -> tuple[float, float]:
    """Leave out the empty part below all scores; bars of a loss stand on zero."""
    if sign_of(metric) < 0:
        return 0.0, max(*values, baseline) * 1.05
    low = min(*values, baseline)
    return max(0.0, low - 0.08), min(1.0, max(values) + 0.03)


def _shades() -> Any:
    """From see-through to blue, so that empty cells show the page."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ice", [(0.18, 0.44, 0.87, 0.04), (0.12, 0.34, 0.76, 1.0)])


def _draw(paint: Callable[[Axes], None], size: tuple[float, float], title: str, salt: str) -> str:
    """Paint one figure and give it as inline SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_SETTINGS | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so what this one lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """Make a stand-alone SVG a part of a page: no prolog, the page's colour and fonts, a width that fits."""
    body = svg[svg.index("<svg") :]
    body = body.replace(_INK, "currentColor")
    body = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "inherit", body)
    size = re.search(r'width="([\d.]+)pt"', body)
    width = f"{float(size[1]) * 4 / 3:.0f}px" if size else "100%"
    head = f'<svg role="img" aria-label="{title}" style="width:100%;max-width:{width};height:auto"'
    return body.replace("<svg", head, 1)
