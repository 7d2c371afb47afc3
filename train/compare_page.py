"""A comparison of two generations as one self-contained HTML page, which needs no network and runs no script.

Every name is escaped. Needs the ``report`` extra.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from icecore.store.durable import make_folder, write_bytes

from .compare_plots import plot_accuracy, plot_changes, plot_gaps, plot_losses
from .comparison import GenerationComparison, PairedCell
from .metrics import sign_of
from .plots import plot_confusion
from .report import page_environment
from .result import rows_to_json
from .verdict import points, span

__all__ = ["MOST_CHANGES", "comparison_path", "render_comparison", "write_comparison"]

FOLDER = "comparisons"
"""Folder of a store where the pages go."""
MOST_CHANGES = 40
"""Classes in the table: half of them that lose, half that gain the most."""
MOST_CONFUSED = 40
"""Classes up to which the confusion matrices are drawn."""


def comparison_path(store: Path | str, result: GenerationComparison) -> Path:
    """Give where the page of a comparison goes by default: ``comparisons/<a>-<b>.html`` in the store."""
    return Path(store) / FOLDER / f"{result.a.name}-{result.b.name}.html"


def write_comparison(result: GenerationComparison, path: Path) -> None:
    """Write the page, whole or not at all; its folder is made where there is none."""
    make_folder(path.parent)
    write_bytes(path, render_comparison(result).encode("utf-8"))


def render_comparison(result: GenerationComparison) -> str:
    """Give the page; everything in it but the date follows from the result."""
    environment = page_environment()
    environment.filters["points"] = points
    environment.filters["span"] = span
    environment.filters["time"] = _time
    environment.filters["bytes"] = _bytes
    headline = result.headline
    models = result.task.models
    names = [f"{models[pair.a.model].title}, {_inputs(pair)}" for pair in result.pairs]
    return environment.get_template("compare.html.jinja").render(
        result=result,
        sides=(result.a, result.b),
        headline=headline,
        is_share=headline in ("accuracy", "macro_f1"),
        gap=result.winners.comparison.gaps[headline],
        models=models,
        names=names,
        inputs=_inputs,
        lower_is_better=sign_of(headline) < 0,
        changes=_ends(result),
        rows=rows_to_json(result.rows),
        extent=result.task.extent(result.rows.y, result.rows.classes),
        metric=result.metric.replace("_", " "),
        figures=_figures(result, names),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _figures(result: GenerationComparison, names: list[str]) -> dict[str, str]:
    """Draw what the comparison has to show."""
    figures = {"gaps": plot_gaps(result.pairs, names, result.headline)}
    if result.classes:
        figures["changes"] = plot_changes(result.classes)
    for which, side in (("a", result.a), ("b", result.b)):
        if side.tunings and (latest := side.tunings[0]).epochs:
            figures[f"losses_{which}"] = plot_losses(latest.epochs, latest.best_epoch, salt=which)
            figures[f"accuracy_{which}"] = plot_accuracy(latest.epochs, latest.best_epoch, salt=which)
        confusion = getattr(side.winner.evaluation, "confusion", None)
        if confusion is not None and len(result.rows.classes) <= MOST_CONFUSED:
            figures[f"confusion_{which}"] = plot_confusion(confusion, result.rows.classes, salt=f"confusion-{which}")
    return figures


def _ends(result: GenerationComparison) -> list[object]:
    """Give the classes that lose and gain the most, all where they are few."""
    classes = result.classes
    if len(classes) <= MOST_CHANGES:
        return list(classes)
    return [*classes[: MOST_CHANGES // 2], *classes[-MOST_CHANGES // 2 :]]


def _inputs(pair: PairedCell) -> str:
    """Name the layers of a pair; both where the sides name them otherwise."""
    return pair.a.inputs if pair.a.inputs == pair.b.inputs else f"{pair.a.inputs} / {pair.b.inputs}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
