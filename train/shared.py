"""What all cells of a run share, so that they can be compared: rows, folds, notes on them, and the order of cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from icecore.store import FeatureSet

from .data import Dataset, read_rows
from .errors import first_few
from .folds import Fold
from .labels import LabelSource
from .metrics import Metric, rank_of
from .rows import LabelledRows
from .splits import SplitRule
from .tasks import Targets, TaskName, task_of

if TYPE_CHECKING:
    from .plan import CellPlan
    from .selection import Selection

__all__ = ["divide", "each_layer", "notes_on_copies", "notes_on_rows", "rank_key", "share_rows"]


def share_rows(
    feature_set: FeatureSet,
    layers: Sequence[str | Sequence[str]],
    *,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    task: TaskName = "classification",
) -> LabelledRows:
    """Label and divide the images that all of these layers cover; parameters are those of ``train_models``.

    A wrong name in the last entry must not cost the time of the others: every layer is looked up.
    """
    names = tuple(each_layer(layers))
    for name in names:
        feature_set.resolve(name)
    return read_rows(feature_set, names, labels=labels, split=split, task=task)


SEEDS = 2**32
"""How many seeds there are."""


def divide(rows: LabelledRows, plan: CellPlan) -> list[tuple[Fold, ...]]:
    """Divide the training rows into folds, once a repeat."""
    y, seed = rows.y_train, plan.options.seed
    return [
        rows.task.make_folds(
            y, names=rows.classes, folds=plan.folds, seed=(seed + repeat) % SEEDS, groups=rows.train_groups
        )
        for repeat in range(plan.repeats)
    ]


def notes_on_rows(rows: LabelledRows) -> Iterator[str]:
    """Give what was left out, and what the scores cannot tell."""
    for images, what in (
        (rows.match.failed, "images left out because they could not be extracted, for all layers or for one"),
        (rows.match.unknown, "labels skipped because their images are not in the store"),
        (rows.match.missing, "images skipped because they have no label"),
    ):
        if images:
            yield f"{what}: {len(images):,} ({first_few(images)})"
    yield from rows.task.notes(Targets(rows.y, rows.classes), rows.train)


def notes_on_copies(data: Dataset | Selection) -> Iterator[str]:
    """Say how many held-out images have the very features of a training image."""
    if copies := data.repeated_held_out():
        what = "held-out images with the very features of a training image, which flatter the scores"
        yield f"{what}: {len(copies):,} ({first_few(copies)})"


def rank_key(
    metric: Metric,
    task: TaskName = "classification",
    *,
    mean: float,
    n_features: int,
    model: str,
    layers: str,
) -> tuple[float, int, int, str]:
    """Order of a leaderboard: best score, fewer features, simpler model, name; then as they were tried."""
    return -rank_of(metric, mean), n_features, list(task_of(task).models).index(model), layers


def each_layer(layers: Sequence[str | Sequence[str]]) -> Iterator[str]:
    """Give every layer of a list whose entries are layers or lists of layers to join."""
    for selection in layers:
        yield from [selection] if isinstance(selection, str) else selection
