"""The figures of tasks other than classes: predictions and residuals of numbers, curves of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .curves import FeatureMap, precision_recall_curve
from .svg import INK, PALETTE, draw, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_label_curves", "plot_number_map", "plot_predicted", "plot_residuals"]

_SIZE = (4.6, 3.9)
_DASHED: Any = (0, (4, 3))
Floats = NDArray[np.floating[Any]]


def plot_predicted(y: Floats, predicted: Floats, name: str) -> str:
    """Draw predictions, (n,), by true numbers, (n,)."""
    ends = [float(min(y.min(), predicted.min())), float(max(y.max(), predicted.max()))]

    def paint(axes: Axes) -> None:
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=_DASHED)
        _scatter(axes, y, predicted)
        axes.set_xlabel(f"true {printable(name)}")
        axes.set_ylabel(f"predicted {printable(name)}")

    return draw(paint, _SIZE, "Predicted against true numbers of the held-out rows", "predicted")


def plot_residuals(y: Floats, predicted: Floats, name: str) -> str:
    """Draw what is left of each number, (n,), by its prediction, (n,)."""

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, linestyle=_DASHED)
        _scatter(axes, predicted, y - predicted)
        axes.set_xlabel(f"predicted {printable(name)}")
        axes.set_ylabel("true minus predicted")

    return draw(paint, _SIZE, "Residuals of the held-out rows", "residuals")


def plot_label_curves(y: NDArray[np.integer[Any]], proba: Floats, names: Sequence[str]) -> str:
    """Draw precision by recall of each label, (n, L); beyond ten labels those with the most rows."""
    support = y.sum(axis=0)
    shown = [i for i in np.argsort(-support, kind="stable").tolist() if support[i]][: len(PALETTE)]

    def paint(axes: Axes) -> None:
        for colour, i in zip(PALETTE, sorted(shown), strict=False):
            curve = precision_recall_curve(y[:, i] == 1, proba[:, i])
            axes.plot(curve.x, curve.y, color=colour, linewidth=1.6, label=f"{printable(names[i])}: {curve.area:.3f}")
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.03)
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")
        if shown:
            axes.legend(loc="lower left", frameon=False, fontsize=9)

    return draw(paint, _SIZE, "Precision and recall of the held-out rows", "label-curves")


def plot_number_map(found: FeatureMap, y: Floats, train: NDArray[np.bool_], name: str) -> str:
    """Draw the rows in the plane of their features, coloured by number; large dots are held out."""
    across, up = found.points.T
    numbers, held_out = y[found.which], ~train[found.which]
    low, high = np.quantile(y, [0.02, 0.98])  # a few far ones would leave one colour to the rest

    def paint(axes: Axes) -> None:
        for rows, size, alpha in ((~held_out, 9, 0.5), (held_out, 24, 0.95)):
            dots = axes.scatter(
                across[rows], up[rows], s=size, c=numbers[rows], cmap="viridis", vmin=low, vmax=high, alpha=alpha,
                linewidths=0,
            )  # fmt: skip
        dots.set_alpha(None)
        bar = axes.figure.colorbar(dots, ax=axes, shrink=0.8)
        bar.set_label(printable(name))
        bar.outline.set_visible(False)
        if bar.solids is not None:
            bar.solids.set_rasterized(False)  # else it is a picture inside the SVG
        axes.set_xlabel(f"first component, {found.explained[0]:.0%} of the variance")
        axes.set_ylabel(f"second component, {found.explained[1]:.0%}")
        axes.set_xticks([])
        axes.set_yticks([])

    return draw(paint, (8.2, 4.8), "Map of the features by their two largest principal components", "map")


def _scatter(axes: Axes, x: Floats, y: Floats) -> None:
    axes.scatter(x, y, s=18, color=PALETTE[0], alpha=0.6, linewidths=0)
