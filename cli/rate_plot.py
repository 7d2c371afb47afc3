"""The plot of the learning-rate finder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from icecore.extract.rate_finder import FoundRate

__all__ = ["plot_rates"]


def plot_rates(found: FoundRate, out: Path) -> None:
    """Draw loss by learning rate into a ``.svg``, ``.png`` or ``.pdf`` file; matplotlib's extra is needed.

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    """
    from icecore.store import MissingExtraError

    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError("the plot of learning rates", "matplotlib", "report") from exc
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="#2a6f97")
    axes.axvline(found.suggested, color="#c1121f", linestyle="--", label=f"suggested: {found.suggested:.1e}")
    axes.set(xscale="log", xlabel="learning rate of the block next to the head", ylabel="loss, smoothed")
    axes.legend(frameon=False)
    figure.savefig(out)
