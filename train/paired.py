"""Two models measured on the same held-out rows: whether the first is better beyond chance, class by class, and more.

The tests are one-sided: how likely is so large a gain where the first model is no better? McNemar's exact test counts
the rows that only one of the two calls right; where both are as good, each of these is a fair coin, however strongly
the errors of the two go together, so that its size needs no assumption about that. Its power does: models whose errors
go together differ on fewer rows, and the same gain is then told from chance more easily.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .curves import calibration_of
from .errors import TrainError
from .gate import ClassRecall
from .metrics import sign_of
from .resampling import Resampled, paired_draws
from .tasks import Task

__all__ = [
    "align_outputs",
    "baseline_outputs",
    "bootstrap_p",
    "calibration_error",
    "class_recalls",
    "gain_test",
    "mcnemar_p",
    "score_of",
]

Floats = NDArray[np.floating[Any]]
LEAST_UNITS = 2
"""Rows, or groups, that a bootstrap needs."""


def align_outputs(outputs: Floats, names: Sequence[str], onto: Sequence[str], task: Task) -> NDArray[np.float64]:
    """Give a model's outputs in the order of other classes; one that it does not know has the probability 0.

    Parameters
    ----------
    outputs : (n, k) or (n,) float
        As ``Bundle.outputs`` gives them.
    names
        What the model's k columns are.
    onto
        Classes wanted, among them all of ``names``.
    task
        What the model answers.

    Raises
    ------
    TrainError
        When it is of labels or numbers, and these are others.
    """
    if tuple(names) == tuple(onto):
        return np.asarray(outputs, dtype=np.float64)
    if not task.has_curves:
        raise TrainError(
            f"the champion tells {', '.join(names)}, and the challenger {', '.join(onto)}: they cannot be compared; "
            "keep the new ones under another name"
        )
    place = {name: i for i, name in enumerate(onto)}
    aligned = np.zeros((len(outputs), len(onto)))
    aligned[:, [place[name] for name in names]] = outputs
    return aligned


def baseline_outputs(task: Task, y_train: NDArray[Any], n: int, k: int) -> NDArray[np.float64]:
    """Give, for each of n rows, what is known without any feature: class shares, label shares, or the mean number."""
    if not task.has_probabilities:
        return np.full(n, float(y_train.mean()))
    shares = y_train.mean(axis=0) if y_train.ndim == 2 else np.bincount(y_train, minlength=k) / len(y_train)
    return np.tile(np.asarray(shares, dtype=np.float64), (n, 1))


def score_of(task: Task, metric: str, y: NDArray[Any], outputs: Floats, names: Sequence[str]) -> float | None:
    """Give one score of some rows; None where it is undefined."""
    value = getattr(task.evaluate(y, outputs, names), metric)
    return None if value is None else float(value)


def gain_test(
    task: Task,
    metric: str,
    y: NDArray[Any],
    first: Floats,
    second: Floats,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[float | None, str]:
    """Test whether the first model is better than the second.

    Accuracy without groups is tested by McNemar's exact test, all else by a paired bootstrap, which draws groups whole.

    Parameters
    ----------
    task, metric
        What is learned, and the score that counts.
    y : (n,) or (n, L)
        Targets.
    first, second : (n, k) or (n,)
        Outputs of each.
    groups
        Group of each row.
    seed
        Of the draws.

    Returns
    -------
    p : float or None
        How likely so large a gain is where the first is no better; None where too few draws define the score.
    told : str
        Which test.
    """
    if metric == "accuracy" and groups is None:
        hits, other = (each.argmax(1) == y for each in (first, second))
        only_first, only_second = int((hits & ~other).sum()), int((other & ~hits).sum())
        told = f"McNemar's exact test, one-sided, {only_first} rows right by the challenger alone, {only_second} not"
        return mcnemar_p(only_first, only_second), told
    ours, theirs = task.resampled(y, first), task.resampled(y, second)
    p, draws, units = bootstrap_p(ours, theirs, len(y), metric, groups=groups, seed=seed)
    drawn = f"{units:,} {'rows' if groups is None else 'groups'}"
    return p, f"paired bootstrap, one-sided, {draws:,} draws of {drawn}"


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Give McNemar's exact test, one-sided (McNemar 1947): the chance of so many rows for the first, or more."""
    from scipy.stats import binom  # type: ignore[import-untyped]  # it ships no types

    both = only_first + only_second
    return float(binom.sf(only_first - 1, both, 0.5)) if both else 1.0


def bootstrap_p(
    first: Resampled,
    second: Resampled,
    n: int,
    metric: str,
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int | None = None,
) -> tuple[float | None, int, int]:
    """Give the share of draws in which the first model's gain is not above 0 (Efron and Tibshirani, 1993).

    Drawn with replacement, a few rows or groups vary too little: gains are spread about the one that was found by
    sqrt(u / (u - 1)), u being their number, and as far as Student's t lies beyond the normal distribution at 95 %. A
    draw without any gain counts against the first.

    Returns
    -------
    p : float or None
        None where more than one draw in twenty leaves the score undefined, or there is one row or group.
    draws, units : int
        How many draws, and what they are of.
    """
    units = n if groups is None else len(set(groups))
    if units < LEAST_UNITS:
        return None, 0, units
    drawn = paired_draws(first, second, n, groups=groups, seed=seed, resamples=resamples)[metric]
    whole = [float(each.of(np.ones((1, n), np.float32))[metric][0]) for each in (first, second)]
    gains = sign_of(metric) * (drawn[0] - drawn[1])
    found = sign_of(metric) * (whole[0] - whole[1])
    defined = gains[~np.isnan(gains)]
    if math.isnan(found) or len(defined) < 0.95 * len(gains):
        return None, len(gains), units
    spread = found + (defined - found) * _widening(units)
    return (1 + int((spread <= 1e-12).sum())) / (1 + len(defined)), len(defined), units


def _widening(units: int) -> float:
    from scipy.stats import norm, t

    return math.sqrt(units / (units - 1)) * float(t.ppf(0.95, units - 1) / norm.ppf(0.95))


def class_recalls(
    y: NDArray[Any], champion: Floats, challenger: Floats, names: Sequence[str], known: Sequence[str], task: Task
) -> dict[str, ClassRecall]:
    """Give the recall of each class, or label, under both models, where the champion knows it and some rows have it."""
    if not task.has_probabilities:
        return {}
    recalls = {}
    for i, name in enumerate(names):
        if y.ndim == 1:
            rows, found = y == i, [each.argmax(1) == i for each in (champion, challenger)]
        else:
            rows, found = y[:, i] == 1, [each[:, i] > 0.5 for each in (champion, challenger)]
        if name in known and rows.any():
            recalls[name] = ClassRecall(int(rows.sum()), *(float(each[rows].mean()) for each in found))
    return recalls


def calibration_error(task: Task, y: NDArray[Any], outputs: Floats) -> float | None:
    """Give the expected calibration error of class probabilities; None for other tasks."""
    return calibration_of(y, outputs).error if task.has_curves else None
