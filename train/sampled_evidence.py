"""What stands beside the winner's scores where its features do not fit: of a sample of the rows, which says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, Positions
from .data import Dataset, Provenance
from .evidence import Evidence, LearningPoint, gather_evidence
from .folds import Fold
from .metrics import Metric
from .models import BuildOptions, ModelSpec
from .rows import LabelledRows
from .search import GridPoint
from .settings import Point
from .steps import STANDARD

__all__ = ["draw_sample", "gather_sampled_evidence"]


def draw_sample(rows: LabelledRows, folds: Sequence[Fold], share: float) -> Positions:
    """Draw so large a share of each class in each fold, and of each held-out class, but a row at least; evenly spaced.

    Returns
    -------
    (s,) positions among the labelled rows, ascending
    """
    part = np.full(len(rows.train), -1, dtype=np.intp)
    training = np.flatnonzero(rows.train)
    part[training] = len(folds)
    for which, (_, test) in enumerate(folds):
        part[training[test]] = which
    cell = part * len(rows.classes) + rows.y
    order = np.argsort(cell, kind="stable")
    bounds = np.flatnonzero(np.diff(cell[order])) + 1
    drawn = [
        rows_of[np.linspace(0, len(rows_of) - 1, max(1, round(share * len(rows_of)))).astype(np.intp)]
        for rows_of in np.split(order, bounds)
    ]
    return np.sort(np.concatenate(drawn))


def gather_sampled_evidence(
    blocks: Blocks,
    rows: LabelledRows,
    provenance: Provenance,
    sample: Positions,
    spec: ModelSpec,
    *,
    value: Point,
    folds: Sequence[Fold],
    metric: Metric,
    options: BuildOptions,
    out_of_fold: NDArray[np.floating[Any]],
    best: GridPoint,
    with_plots: bool,
) -> Evidence:
    """Look at a sample of the winner's data as ``gather_evidence`` does.

    Doubtful labels come from all training rows, and so does the learning curve's last point.

    Parameters
    ----------
    blocks, rows, provenance
        The winner's features and labels.
    sample
        What ``draw_sample`` gave.
    spec, value, folds, metric, options, out_of_fold, best, with_plots
        As ``gather_evidence`` takes them, of all rows.
    """
    plain = replace(blocks, steps=STANDARD)
    X = np.empty((len(sample), blocks.n_features), dtype=np.float32)
    for chunk in plain.chunks(sample):
        X[np.searchsorted(sample, chunk)] = plain.read(chunk)
    few = _taken(rows, sample)
    kept = np.flatnonzero(np.isin(np.flatnonzero(rows.train), sample))  # among the training rows
    evidence = gather_evidence(
        Dataset(few, X, blocks.columns, provenance),
        spec,
        value=value,
        folds=[(_among(train, kept), _among(test, kept)) for train, test in folds],
        metric=metric,
        options=options,
        out_of_fold=out_of_fold[kept],
        with_plots=with_plots,
    )
    last = LearningPoint(round(np.mean([len(train) for train, _ in folds])), best.mean, best.std)
    checks = replace(
        evidence.checks,
        held_out=len(rows.held_out_ids),
        suspects=rows.task.doubts(out_of_fold, rows.y_train, rows.train_ids, rows.classes),
        small=rows.task.small(rows.y_train, rows.classes, len(folds)),
    )
    shown = None if evidence.map is None else replace(evidence.map, which=sample[evidence.map.which])
    learning = (*evidence.learning, last) if with_plots else ()
    return Evidence(checks, learning, shown, len(sample))


def _taken(rows: LabelledRows, sample: Positions) -> LabelledRows:
    """Give the labelled rows of a sample; split and match stay those of all rows."""
    listed = sample.tolist()
    return replace(
        rows,
        ids=tuple(rows.ids[i] for i in listed),
        y=rows.y[sample],
        train=rows.train[sample],
        groups=None if rows.groups is None else tuple(rows.groups[i] for i in listed),
    )


def _among(positions: NDArray[np.intp], kept: NDArray[np.intp]) -> NDArray[np.intp]:
    """Give where those of some positions that are kept stand among the kept ones."""
    return np.flatnonzero(np.isin(kept, positions))
