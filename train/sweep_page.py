"""The leaderboard of a sweep as one self-contained HTML page: it needs no network, and reads without its script too.

Every name is escaped. The script, some lines of the page itself, sorts the tables by the column that is clicked.
Needs the ``report`` extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from .metrics import Metric, rank_of, sign_of
from .report import page_environment
from .result import rows_to_json
from .steps import STANDARD
from .sweep_result import SweepCell, SweepResult
from .tasks import task_of

__all__ = ["Heat", "heat_table", "render_sweep"]


@dataclass(frozen=True)
class Heat:
    """The best score of each model on each selection of layers."""

    models: tuple[str, ...]
    """columns, the simplest first"""
    rows: tuple[tuple[str, tuple[tuple[SweepCell, float] | None, ...]], ...]
    """layers with their steps, in the order of their best cell: for each model its cell and how good it is among all,
    0 to 1; None where it was not tried"""


def render_sweep(result: SweepResult) -> str:
    """Give the page; everything in it but the date follows from the result."""
    environment = page_environment()
    environment.filters["precise"] = _precise
    page = environment.get_template("sweep.html.jinja")
    trained, headline = result.trained, result.task.headlines[0]
    return page.render(
        result=result,
        winner=trained.winner,
        trained=trained,
        provenance=trained.provenance,
        heat=heat_table(result.cells, result.plan.metric),
        models=result.task.models,
        headline=headline,
        interval=trained.interval(headline),
        metric=result.plan.metric.replace("_", " "),
        lower_is_better=sign_of(result.plan.metric) < 0,
        standard=STANDARD,
        rows=rows_to_json(trained.rows),
        extent=result.task.extent(trained.rows.y, trained.rows.classes),
        quick=[name for name in result.task.models if name in result.quick[0].cells],
        notes=[*result.notes, *trained.notes],
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def heat_table(cells: Sequence[SweepCell], metric: Metric) -> Heat:
    """Lay out a leaderboard as layers by models.

    Parameters
    ----------
    cells
        Best first.
    metric
        What they are ordered by.
    """
    ranks = [rank_of(metric, cell.best.mean) for cell in cells]
    low, high = min(ranks), max(ranks)
    known = task_of(cells[0].task).models
    models = tuple(name for name in known if any(cell.model == name for cell in cells))
    by_place = {(cell.inputs, cell.model): cell for cell in cells}

    def entry(place: tuple[str, str]) -> tuple[SweepCell, float] | None:
        if (cell := by_place.get(place)) is None:
            return None
        return cell, (rank_of(metric, cell.best.mean) - low) / (high - low) if high > low else 1.0

    inputs = dict.fromkeys(cell.inputs for cell in cells)
    return Heat(models, tuple((name, tuple(entry((name, model)) for model in models)) for name in inputs))


def _precise(value: float) -> str:
    """Give a score to four digits, or a number in any unit."""
    return f"{value:.4f}" if abs(value) < 100 and (abs(value) >= 5e-5 or not value) else f"{value:.4g}"
