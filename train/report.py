r"""The report of a training run: one self-contained HTML page.

It needs no network and runs no script. Every name is escaped; bytes that are not UTF-8 are shown as ``\xff``.
Needs the ``report`` extra: jinja2, matplotlib, Pillow.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .card import library_versions
from .curve_plots import plot_calibration, plot_learning, plot_map, plot_precision_recall, plot_roc
from .curves import calibration_of, confused_pairs
from .errors import MissingExtraError
from .metrics import sign_of
from .plots import plot_cells, plot_confusion
from .report_tasks import label_parts, number_parts
from .resampling import Gap, Interval, draws_for
from .result import TrainResult, rows_to_json
from .steps import STANDARD
from .svg import printable
from .thumbnails import Thumbnail, make_thumbnail

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Mistake", "page_environment", "render_report", "require_extra", "worst_mistakes"]

MOST_MISTAKES = 24
"""Mistakes shown, the surest ones."""
MOST_DOUBTS = 12
"""Copies, and doubtful labels, shown."""
_HEADLINES = {
    "macro_f1": "Macro F1",
    "roc_auc": "ROC AUC",
    "log_loss": "Log loss (lower is better)",
    "micro_f1": "Micro F1",
    "subset_accuracy": "All labels right",
    "hamming_loss": "Hamming loss (lower is better)",
    "rmse": "RMSE (lower is better)",
    "mae": "MAE (lower is better)",
    "r2": "R²",
}
_LIBRARIES = {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "Pillow"}


@dataclass(frozen=True)
class Mistake:
    """A held-out image that the winner calls wrong."""

    id: str
    """image id"""
    true: str
    """its class"""
    called: str
    """what it is called"""
    p_true: float
    """probability given to its class"""
    p_called: float
    """probability given to the called one"""


def require_extra() -> None:
    """Check that the libraries of the report are installed.

    Raises
    ------
    MissingExtraError
        When one is not; the message says how to get it.
    """
    for module, library in _LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("the report", library, "report")


def render_report(result: TrainResult, *, store: Path, bundle: Path, images: Path | None = None) -> str:
    """Give the report of a run as HTML.

    Parameters
    ----------
    result
        The run.
    store
        Folder of the feature store, for the line that opens it.
    bundle
        Folder of the winner's bundle, for the commands that use it.
    images
        Folder of the images, for thumbnails of the worst mistakes.

    Returns
    -------
    str
        The page; it can always be written as UTF-8. Everything in it but the date follows from the arguments.
    """
    winner = result.winner
    template, find_parts = _PAGES[result.task.name]
    parts = find_parts(result)
    mistakes, figures = parts.pop("mistakes"), parts.pop("figures")
    page = page_environment().get_template(template)
    return page.render(
        result=result,
        winner=winner,
        headlines=_headlines(result),
        draws=_draws(result),
        copies=[
            (copy, _thumbnail(images, copy.held_out), _thumbnail(images, copy.training))
            for copy in result.evidence.checks.copies[:MOST_DOUBTS]
        ],
        suspects=[
            (suspect, _thumbnail(images, suspect.id)) for suspect in result.evidence.checks.suspects[:MOST_DOUBTS]
        ],
        models=result.task.models,
        shown=result.task.headlines,
        standard=STANDARD,
        lower_is_better=sign_of(result.metric) < 0,
        rows=rows_to_json(result.rows),
        mistakes=[(mistake, _thumbnail(images, mistake.id)) for mistake in mistakes[:MOST_MISTAKES]],
        n_mistakes=len(mistakes),
        with_images=images is not None,
        cells_plot=_cells_plot(result),
        figures={**figures, "learning": _learning_plot(result)},
        **parts,
        contract=json.dumps(result.provenance.contract.to_json(), indent=2),
        source=json.dumps(result.provenance.source, indent=2, default=str),
        versions=library_versions(),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        store_literal=repr(str(store)),
        bundle=str(bundle),
        bundle_quoted=shlex.quote(str(bundle)),
        bundle_literal=repr(str(bundle)),
    )


def _headlines(result: TrainResult) -> list[tuple[str, float | None, Interval | None, Gap | None]]:
    """Give each headline score of the winner: name, value, interval, and its gap to the next best cell."""
    gaps = {} if result.runner_up is None else result.runner_up.comparison.gaps
    scores, intervals = result.winner.evaluation, result.intervals[0]
    return [(name, getattr(scores, name), intervals[name], gaps.get(name)) for name in result.task.headlines]


def _draws(result: TrainResult) -> int:
    y, outputs = result.predictions.y, result.predictions.outputs
    return draws_for(len(y), result.task.resampled(y, outputs).work // len(y))


def _cells_plot(result: TrainResult) -> str:
    baseline = getattr(result.baseline, result.metric)
    return plot_cells(
        result.cells,
        result.metric,
        None if baseline is None else float(baseline),
        models=result.task.models,
        baseline_title=result.task.baseline_title,
    )


def _learning_plot(result: TrainResult) -> str:
    """Draw the learning curve, where any part of the rows could teach something."""
    return plot_learning(result.evidence.learning, result.metric) if result.evidence.learning else ""


def _class_parts(result: TrainResult) -> dict[str, Any]:
    """Give what the page of a classification shows beside what all pages show."""
    y, proba, classes = result.predictions.y, result.predictions.proba.astype(np.float64), result.rows.classes
    confusion, calibration = result.winner.evaluation.confusion, calibration_of(y, proba)
    figures = {
        "roc": plot_roc(y, proba, classes),
        "precision_recall": plot_precision_recall(y, proba, classes),
        "calibration": plot_calibration(calibration),
    }
    if result.evidence.map is not None:
        wrong = np.zeros(len(result.rows.ids), dtype=bool)
        wrong[np.flatnonzero(~result.rows.train)] = proba.argmax(1) != y
        figures["map"] = plot_map(result.evidence.map, result.rows.y, result.rows.train, wrong, classes)
    return {
        "figures": figures,
        "mistakes": worst_mistakes(result),
        "confused": confused_pairs(confusion, classes)[:MOST_DOUBTS],
        "calibration_error": calibration.error,
        "confusion_plot": plot_confusion(confusion, classes),
    }


def worst_mistakes(result: TrainResult) -> tuple[Mistake, ...]:
    """Give the winner's mistakes, least probability of the true class first."""
    seen, classes = result.predictions, result.rows.classes
    called = seen.proba.argmax(axis=1)
    p_true = seen.proba[np.arange(len(seen.y)), seen.y]
    wrong = [i for i in np.argsort(p_true, kind="stable").tolist() if called[i] != seen.y[i]]
    return tuple(
        Mistake(
            id=seen.ids[i],
            true=classes[seen.y[i]],
            called=classes[called[i]],
            p_true=float(p_true[i]),
            p_called=float(seen.proba[i, called[i]]),
        )
        for i in wrong
    )


def _thumbnail(images: Path | None, image: str) -> Thumbnail:
    return make_thumbnail(images / image) if images is not None else Thumbnail("", "")


def page_environment() -> Environment:
    """Give what renders the pages of this room: everything escaped, bytes that are not UTF-8 shown as such."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Make every text that the page shows fit for UTF-8; what is HTML already is left alone."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    def lines(value: str) -> Markup:
        """Keep line breaks, which ``finalize`` would show as escapes."""
        return Markup("\n").join(printable(line) for line in value.splitlines())

    environment = Environment(
        loader=PackageLoader("icecore.train", "."),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["lines"] = lines
    environment.filters["score"] = _score
    environment.filters["percent"] = lambda value: f"{100 * value:.1f}"
    environment.filters["headline"] = lambda name: _HEADLINES.get(name) or name.replace("_", " ").capitalize()
    environment.filters["setting"] = lambda cell: ", ".join(f"{k} = {v:g}" for k, v in cell.params.items())
    return environment


def _score(value: float | None) -> str:
    """Give a score, or a number in any unit."""
    if value is None:
        return "–"
    return f"{value:.3f}" if not value or 5e-4 <= abs(value) < 1000 else f"{value:.4g}"


_PAGES: dict[str, tuple[str, Callable[[TrainResult], dict[str, Any]]]] = {
    "classification": ("report.html.jinja", _class_parts),
    "multilabel": ("report_multilabel.html.jinja", label_parts),
    "regression": ("report_regression.html.jinja", number_parts),
}
"""Template of each task, and what it shows beside what all pages show."""
