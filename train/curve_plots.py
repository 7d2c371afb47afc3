"""The figures beside the scores: ROC and precision-recall curves, calibration, learning curve, map of the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .curves import Calibration, Curve, FeatureMap, precision_recall_curve, roc_curve
from .evidence import LearningPoint
from .metrics import Metric, sign_of
from .svg import INK, PALETTE, draw, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_calibration", "plot_learning", "plot_map", "plot_precision_recall", "plot_roc"]

_SIZE = (4.6, 3.9)
_GREY = "#8a94a0"


def plot_roc(y: NDArray[np.int64], proba: NDArray[np.float64], classes: Sequence[str]) -> str:
    """Draw the ROC curve of each class against the rest; of two classes, that of the second."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        _curves(axes, y, proba, classes, roc_curve, "area")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")

    return draw(paint, _SIZE, "ROC curves of the held-out rows", "roc")


def plot_precision_recall(y: NDArray[np.int64], proba: NDArray[np.float64], classes: Sequence[str]) -> str:
    """Draw precision by recall of each class; of two classes, of the second."""

    def paint(axes: Axes) -> None:
        _curves(axes, y, proba, classes, precision_recall_curve, "average")
        axes.set_xlabel("recall")
        axes.set_ylabel("precision")

    return draw(paint, _SIZE, "Precision and recall of the held-out rows", "precision-recall")


def plot_calibration(found: Calibration) -> str:
    """Draw how often the called class is right by how sure the model is; the size of a dot is its number of rows."""

    def paint(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.plot(found.confidence, found.accuracy, color=PALETTE[0], linewidth=1.5)
        sizes = 20 + 180 * found.rows / found.rows.max()
        axes.scatter(found.confidence, found.accuracy, s=sizes, color=PALETTE[0], zorder=3)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("probability of the called class")
        axes.set_ylabel("part called right")

    return draw(paint, _SIZE, "Calibration of the held-out rows", "calibration")


def plot_learning(points: Sequence[LearningPoint], metric: Metric) -> str:
    """Draw the cross-validated score by the number of training rows."""

    def paint(axes: Axes) -> None:
        rows, means = [point.rows for point in points], np.array([point.mean for point in points])
        stds = np.array([point.std for point in points])
        axes.fill_between(rows, means - stds, means + stds, color=PALETTE[0], alpha=0.15, linewidth=0)
        axes.plot(rows, means, "o-", color=PALETTE[0])
        axes.set_xlim(left=0)
        axes.set_xlabel("training rows of a fold")
        axes.set_ylabel(metric.replace("_", " ") + (" (lower is better)" if sign_of(metric) < 0 else ""))

    return draw(paint, _SIZE, "Cross-validated score by number of training rows", "learning")


def plot_map(
    found: FeatureMap, y: NDArray[np.int64], train: NDArray[np.bool_], wrong: NDArray[np.bool_], classes: Sequence[str]
) -> str:
    """Draw the rows in the plane of their features: a colour a class, held-out rows that are called wrong crossed.

    Parameters
    ----------
    found
        The plane.
    y, train
        Classes and side of all rows.
    wrong : (n,) bool
        Held-out rows that the winner calls wrong.
    classes
        Their names; those beyond the ten largest are grey.
    """
    labels, crossed = y[found.which], wrong[found.which]
    held_out = ~train[found.which]
    across, up = found.points.T
    largest = np.argsort(-np.bincount(y, minlength=len(classes)), kind="stable")[: len(PALETTE)]

    def paint(axes: Axes) -> None:
        others = ~np.isin(labels, largest)
        if others.any():
            axes.scatter(across[others], up[others], s=6, color=_GREY, alpha=0.5, linewidths=0, label="other classes")
        for colour, label in zip(PALETTE, sorted(largest.tolist()), strict=False):
            for rows, size, alpha in ((labels == label) & ~held_out, 9, 0.45), ((labels == label) & held_out, 22, 0.9):
                named = printable(classes[label]) if alpha > 0.5 else None
                axes.scatter(across[rows], up[rows], s=size, color=colour, alpha=alpha, linewidths=0, label=named)
        axes.scatter(across[crossed], up[crossed], s=42, marker="x", color=INK, linewidths=1.2, label="called wrong")
        axes.set_xlabel(f"first component, {found.explained[0]:.0%} of the variance")
        axes.set_ylabel(f"second component, {found.explained[1]:.0%}")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)

    return draw(paint, (8.2, 4.8), "Map of the features by their two largest principal components", "map")


def _curves(
    axes: Axes,
    y: NDArray[np.int64],
    proba: NDArray[np.float64],
    classes: Sequence[str],
    curve: Callable[[NDArray[np.bool_], NDArray[np.float64]], Curve],
    what: str,
) -> None:
    """Draw the curves of the classes that have rows and others; beyond ten classes the mean area is told alone."""
    shown = [i for i in (range(len(classes)) if len(classes) > 2 else (1,)) if 0 < (y == i).sum() < len(y)]
    found = [curve(y == i, proba[:, i]) for i in shown]
    few = len(shown) <= len(PALETTE)
    for n, (i, each) in enumerate(zip(shown, found, strict=True)):
        colour = PALETTE[n] if few else _GREY
        label = f"{printable(classes[i])}: {each.area:.3f}" if few else None
        axes.plot(each.x, each.y, color=colour, linewidth=1.6 if few else 0.7, alpha=1 if few else 0.5, label=label)
    if not few:
        axes.plot(
            [], [], color=_GREY, label=f"{len(shown)} classes, mean {what} {np.mean([c.area for c in found]):.3f}"
        )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.03)
    if shown:
        axes.legend(loc="lower right" if what == "area" else "lower left", frameon=False, fontsize=9)
