"""Search nearest class means and nearest neighbours: a fold's means, or its distances, serve every setting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import inputs_of
from .models import BuildOptions, ModelSpec
from .nearest import class_means, smoothed_votes
from .out_of_fold import OutOfFold, plain_fit
from .settings import params_of
from .solving import folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "nearest_blocks", "score_folds"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Scored = Iterator[tuple[int, NDArray[np.intp], NDArray[np.floating[Any]]]]
BLOCK = 1024
"""Rows whose distances to all training rows are held at a time."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: Ints,
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, in one pass over a fold's rows for all settings."""
    from joblib import Parallel, delayed

    k, inputs = int(y.max()) + 1, inputs_of(X, options)
    settings = [params_of(spec, value)[spec.setting] for value in values]
    scores = np.empty((len(values), len(y), 1 if k == 2 else k), dtype=np.float32)
    search: Callable[..., Scored] = _by_means if spec.name == "nearest_mean" else _by_neighbours

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        A, held_out = inputs.fold(train, test)
        for i, block, found in search(A, y[train], held_out, k, settings, options):
            scores[i, test[block]] = found[:, 1:] - found[:, :1] if k == 2 else found

    with folds_in_threads():
        Parallel()(delayed(search_fold)(*fold) for fold in folds)
    return OutOfFold(scores)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: Ints, *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does: one pass over the rows, with nothing to start from."""
    return plain_fit(spec, X, y, value=value, options=options)


def _by_means(A: Floats, y: Ints, held_out: Floats, k: int, settings: Sequence[float], options: BuildOptions) -> Scored:
    found = class_means(A, y, k)
    for i, threshold in enumerate(settings):
        coef, intercept = found.linear(threshold, balanced=options.class_weight == "balanced")
        yield i, np.arange(len(held_out)), held_out @ coef.T.astype(np.float32) + intercept


def _by_neighbours(
    A: Floats, y: Ints, held_out: Floats, k: int, settings: Sequence[float], options: BuildOptions
) -> Scored:
    numbers = [min(int(number), len(A)) for number in settings]
    order = np.argsort(numbers, kind="stable").tolist()
    shares = np.bincount(y, minlength=k) / len(y)
    lift = np.log(shares) if options.class_weight == "balanced" else 0.0
    for block, apart, near in nearest_blocks(A, held_out, max(numbers)):
        found = smoothed_votes(apart, y[near], shares, [numbers[i] for i in order])
        for i, votes in zip(order, found, strict=True):
            yield i, block, votes - lift


def nearest_blocks(A: Floats, held_out: Floats, number: int) -> Iterator[tuple[NDArray[np.intp], Floats, Any]]:
    """Find the nearest rows by cosine, some held-out rows at a time.

    Yields
    ------
    (positions (b,), distances (b, number), nearest rows (b, number))
        The nearest first.
    """
    A, held_out = _unit(A), _unit(held_out)
    for start in range(0, len(held_out), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(held_out)))
        distances = 1 - held_out[block] @ A.T  # cosine
        np.maximum(distances, 0, out=distances)
        near = np.argpartition(distances, number - 1, axis=1)[:, :number]
        apart = np.take_along_axis(distances, near, axis=1)
        ranks = np.argsort(apart, axis=1, kind="stable")
        yield block, np.take_along_axis(apart, ranks, axis=1), np.take_along_axis(near, ranks, axis=1)


def _unit(rows: Floats) -> Floats:
    """Give rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))
