"""What is wrong with the data, as far as features and labels tell: named by image, before anybody believes a score.

Near copies on both sides of the split flatter the held-out score; wrong labels lower it; columns that never change
and classes of a handful of images are not wrong, and worth knowing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .doubts import Doubt
from .errors import first_few

__all__ = [
    "Checks",
    "Copy",
    "find_copies",
    "looked_at",
    "run_checks",
]

Floats = NDArray[np.float32]

LEAST_COSINE = 0.8
"""Cosine of standardised features below which no two images are taken for copies."""
_PART = 0.4
"""A near copy lies at least this part of the way from what unrelated neighbours reach to 1. Measured on 40 flowers
among 300, squeezenet1_1 and mobilenet_v2, last layers: unrelated neighbours reach 0.75 to 0.78 (99th percentile);
copies at JPEG quality 50, three quarters of the size, cropped by 5 %, or mirrored, 0.87 to 0.96 (medians)."""
_SAMPLE = 2_000
"""Training rows from which it is learnt how near unrelated neighbours come."""
_LEAST_FEATURES = 32
"""With fewer features unrelated images come as near as copies do: only equal ones are told then."""
_AT_A_TIME = 1 << 24
"""Cosines held at once."""
_WORK = 2 << 40
"""Products that the search for copies may take, some 20 s on two cores; beyond it a part of the held-out rows is looked
at."""


@dataclass(frozen=True)
class Copy:
    """A held-out image that looks like a training image."""

    held_out: str
    """its id"""
    training: str
    """id of the nearest training image"""
    cosine: float
    """of their standardised features; 1 where they are equal"""
    same_label: bool
    """whether both have the same label"""


@dataclass(frozen=True)
class Checks:
    """What was found."""

    copies: tuple[Copy, ...]
    """nearest first"""
    looked_at: int
    """held-out images among which copies were looked for"""
    held_out: int
    """held-out images in all"""
    suspects: tuple[Doubt, ...]
    """training images whose labels are doubtful, surest first"""
    constant: int
    """features that are the same for every training image"""
    features: int
    """features in all"""
    small: tuple[tuple[str, int], ...]
    """classes with fewer than two training images a fold, and how many they have"""

    def notes(self) -> tuple[str, ...]:
        """Say in sentences what a reader should know."""
        told = []
        if near := [copy for copy in self.copies if copy.cosine < 1]:
            images = [f"{copy.held_out} ~ {copy.training}" for copy in near]
            told.append(
                f"held-out images that look like copies of a training image: {len(near):,} ({first_few(images)})"
            )
        if self.looked_at < self.held_out:
            told.append(f"copies were looked for among {self.looked_at:,} of the {self.held_out:,} held-out images")
        if self.suspects:
            images = [str(suspect) for suspect in self.suspects]
            told.append(
                f"training labels that the features speak against: {len(self.suspects):,} ({first_few(images)})"
            )
        if self.constant:
            told.append(f"{self.constant:,} of {self.features:,} features are the same for every training image")
        if self.small:
            classes = [f"{label}: {count}" for label, count in self.small]
            told.append(f"classes with so few training images that their scores are rough: {first_few(classes)}")
        return tuple(told)

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "copies": [vars(copy) for copy in self.copies],
            "looked_at": self.looked_at,
            "suspects": [vars(suspect) for suspect in self.suspects],
            "constant_features": self.constant,
            "features": self.features,
            "small_classes": [{"label": label, "training": count} for label, count in self.small],
        }


def run_checks(
    X: Floats,
    y: NDArray[np.int64],
    train: NDArray[np.bool_],
    *,
    ids: Sequence[str],
    suspects: tuple[Doubt, ...],
    small: tuple[tuple[str, int], ...],
) -> Checks:
    """Look at the data of a cell.

    Parameters
    ----------
    X : (n, D) float32
        Features of all rows.
    y : (n,) or (n, L)
        Their targets.
    train : (n,) bool
        Training rows.
    ids
        Names of the rows.
    suspects, small
        Doubtful training rows and small classes, which the task finds.
    """
    return Checks(
        copies=find_copies(X, y, train, ids),
        looked_at=looked_at(X, train),
        held_out=int((~train).sum()),
        suspects=suspects,
        constant=int((X[train].max(0) == X[train].min(0)).sum()),
        features=X.shape[1],
        small=small,
    )


def find_copies(X: Floats, y: NDArray[np.int64], train: NDArray[np.bool_], ids: Sequence[str]) -> tuple[Copy, ...]:
    """Find held-out rows whose nearest training row is nearer than unrelated images come.

    Cosines are those of features standardised by the training rows. How near unrelated images come is the 99th
    percentile of the nearest neighbours within the training rows, so that dense, early layers raise no false alarm.

    Parameters
    ----------
    X, y, train, ids
        As ``run_checks`` takes them. Time is that of one matrix product (held-out x training rows), bounded by
        ``looked_at``; memory, two copies of ``X``.

    Returns
    -------
    tuple of Copy
        At most one for each held-out row, nearest first.
    """
    mean, scale = X[train].mean(0), X[train].std(0)
    Z = (X - mean) / np.where(scale > 0, scale, 1)
    Z /= np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    at, held_out = np.flatnonzero(train).tolist(), np.flatnonzero(~train)
    held_out = held_out[np.linspace(0, len(held_out) - 1, looked_at(X, train)).astype(np.intp)]
    training = Z[at]
    nearest, cosine = _nearest(Z[held_out], training)
    near = cosine >= _limit(training)
    found = [
        Copy(
            held_out=ids[i],
            training=ids[at[j]],
            cosine=1.0 if np.array_equal(X[i], X[at[j]]) else min(float(c), _BELOW_ONE),
            same_label=bool(np.all(y[i] == y[at[j]])),
        )
        for i, j, c in zip(held_out[near].tolist(), nearest[near].tolist(), cosine[near].tolist(), strict=True)
    ]
    return tuple(sorted(found, key=lambda copy: -copy.cosine))


def looked_at(X: Floats, train: NDArray[np.bool_]) -> int:
    """Give how many held-out rows ``find_copies`` looks at: all, or as many as its work allows, evenly spaced."""
    n_train = int(train.sum())
    return min(len(train) - n_train, max(1, _WORK // (n_train * int(X.shape[1]))))


_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def _limit(training: Floats) -> float:
    """Give the cosine from which a neighbour is taken for a copy."""
    if training.shape[1] < _LEAST_FEATURES:
        return 1 - 1e-5
    step = max(1, len(training) // _SAMPLE)
    rows = np.arange(0, len(training), step)
    _, cosine = _nearest(training[rows], training, own=rows)
    usual = float(np.quantile(cosine, 0.99)) if len(training) > 1 else 1.0
    return max(LEAST_COSINE, usual + _PART * (1 - usual))


def _nearest(
    rows: Floats, training: Floats, own: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Give position and cosine of each row's nearest training row, but its own."""
    nearest, cosine = np.zeros(len(rows), np.intp), np.full(len(rows), -1, np.float32)
    block = max(1, _AT_A_TIME // len(training))
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        products = rows[part] @ training.T
        if own is not None:
            products[np.arange(len(products)), own[part]] = -1
        nearest[part] = products.argmax(1)
        cosine[part] = products[np.arange(len(products)), nearest[part]]
    return nearest, cosine
