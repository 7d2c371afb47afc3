"""The figures of a comparison: gaps of all cells, classes that gain and lose, and the course of a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .comparison import ClassChange, PairedCell
from .metrics import sign_of
from .svg import INK, PALETTE, draw, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_accuracy", "plot_changes", "plot_gaps", "plot_losses"]

MOST_CLASSES = 30
"""Classes drawn, those that changed the most."""
_SIZE = (4.6, 3.4)
_GAIN, _LOSS = PALETTE[1], PALETTE[8]
_ZERO = (0, (4, 3))


def plot_gaps(pairs: Sequence[PairedCell], names: Sequence[str], score: str) -> str:
    """Draw how far the second side lies above the first for each pair of cells, with its interval.

    Parameters
    ----------
    pairs
        The pairs, from the top.
    names
        What each is called.
    score
        Score whose gaps are drawn.
    """
    found = [(name, gap) for name, pair in zip(names, pairs, strict=True) if (gap := pair.comparison.gaps[score])]

    def paint(axes: Axes) -> None:
        for i, (_, gap) in enumerate(found):
            low, high = gap.interval
            gains = sign_of(score) * gap.difference > 0
            colour = INK if low <= 0 <= high else _GAIN if gains else _LOSS
            axes.plot([low, high], [i, i], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([gap.difference], [i], "o", color=colour, markersize=6)
        axes.axvline(0, color=INK, linewidth=1, linestyle=_ZERO)
        axes.set_yticks(range(len(found)), [printable(name) for name, _ in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        lower = " (below 0: the second side is better)" if sign_of(score) < 0 else ""
        axes.set_xlabel(f"{score.replace('_', ' ')}, second side minus first{lower}")

    return draw(paint, (8.2, 1.1 + 0.34 * max(1, len(found))), "Gaps of all cells with their intervals", "gaps")


def plot_changes(changes: Sequence[ClassChange]) -> str:
    """Draw the recall that each class gains or loses; of many, those that changed the most."""
    largest = sorted(changes, key=lambda change: -abs(change.change))[:MOST_CLASSES]
    shown = sorted(largest, key=lambda change: change.change)

    def paint(axes: Axes) -> None:
        values = [100 * change.change for change in shown]
        axes.barh(range(len(shown)), values, color=[_LOSS if value < 0 else _GAIN for value in values])
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(shown)), [printable(f"{change.label} ({change.support})") for change in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlabel("recall, points gained or lost")

    return draw(paint, (8.2, 1.0 + 0.3 * max(1, len(shown))), "Recall gained or lost by class", "changes")


def plot_losses(epochs: Sequence[Mapping[str, Any]], best: int, *, salt: str) -> str:
    """Draw the losses of a fine-tuning by epoch, on its training and validation images."""

    def paint(axes: Axes) -> None:
        for i, (key, label) in enumerate((("train_loss", "training"), ("validation_loss", "validation"))):
            _line(axes, epochs, key, label, PALETTE[2 * i])
        _course(axes, best)
        axes.set_ylabel("loss")
        axes.legend(frameon=False, fontsize=9)

    return draw(paint, _SIZE, "Losses of the fine-tuning by epoch", f"{salt}-losses")


def plot_accuracy(epochs: Sequence[Mapping[str, Any]], best: int, *, salt: str) -> str:
    """Draw the accuracy of a fine-tuning's own head on its validation images by epoch."""

    def paint(axes: Axes) -> None:
        _line(axes, epochs, "validation_accuracy", "validation", PALETTE[1])
        _course(axes, best)
        axes.set_ylabel("validation accuracy")

    return draw(paint, _SIZE, "Validation accuracy of the fine-tuning by epoch", f"{salt}-accuracy")


def _line(axes: Axes, epochs: Sequence[Mapping[str, Any]], key: str, label: str, colour: str) -> None:
    """Draw the epochs that have a value: nothing is trained before the first one."""
    points = [(epoch["epoch"], epoch[key]) for epoch in epochs if epoch.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=4, label=label)


def _course(axes: Axes, best: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.axvline(best, color=INK, linewidth=1, linestyle=_ZERO)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch; dashed: the one that was kept")
