"""What a fold's training rows do to features, as one affine map: centre, scale, principal components.

Features are never turned into inputs of a fold: a linear model's coefficients are carried over to the features
instead, and its gradient back. All sums are of features less ``shift``, a mean of some rows, so that a large common
offset cancels no digits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Blocks, Positions
from .steps import Steps

__all__ = [
    "Frame",
    "Moments",
    "as_moments",
    "fold_frame",
    "gram_of",
    "moments_by_part",
    "pca_of",
    "scaler_of",
    "turned_frame",
]

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
BLOCK = 1024
"""Rows that are turned into float64 at a time."""
SLAB = 256
"""Columns of a Gram matrix that one thread works on."""


@dataclass(frozen=True)
class Moments:
    """Sums over some rows of features less ``shift``."""

    rows: int
    """how many"""
    sums: Doubles
    """(D,)"""
    squares: Doubles
    """(D,)"""

    def less(self, other: Moments) -> Moments:
        """Give the sums without some of the rows."""
        return Moments(self.rows - other.rows, self.sums - other.sums, self.squares - other.squares)

    def plus(self, other: Moments) -> Moments:
        """Give the sums over both."""
        return Moments(self.rows + other.rows, self.sums + other.sums, self.squares + other.squares)


@dataclass(frozen=True)
class Frame:
    """The affine map of some training rows: inputs = (features - mean) / scale @ turn."""

    rows: int
    """training rows"""
    shift: Floats
    """(D,) what sums and blocks are less"""
    mean: Doubles
    """(D,) of features less ``shift``"""
    scale: Doubles
    """(D,)"""
    turn: Floats | None = None
    """(D, r) components, or None"""
    variance: Doubles | None = None
    """(r,) of the components before whitening"""
    total: float = 0.0
    """variance of all scaled features"""

    @property
    def width(self) -> int:
        """Inputs of a row."""
        return len(self.mean) if self.turn is None else int(self.turn.shape[1])

    def outward(self, coef: Floats, intercept: Floats) -> tuple[Floats, Floats]:
        """Give coefficients (D, c) and intercepts (c,) of features less ``shift`` for those of inputs, (width, c)."""
        of_scaled = coef if self.turn is None else self.turn @ coef
        raw = of_scaled / self.scale[:, None]
        return raw.astype(np.float32), (intercept - self.mean @ raw).astype(np.float32)

    def inward(self, gradient: Doubles, sums: Doubles) -> Floats:
        """Give the gradient by inputs, (width, c), of that by features less ``shift``, (D, c), and by intercepts."""
        of_scaled = (gradient - np.outer(self.mean, sums)) / self.scale[:, None]
        return (of_scaled if self.turn is None else self.turn.T @ of_scaled).astype(np.float32)

    def inputs(self, Z: Floats) -> Floats:
        """Turn features less ``shift``, (b, D), into inputs, (b, width), in place where nothing is turned."""
        Z -= self.mean.astype(np.float32)
        Z /= self.scale.astype(np.float32)
        return Z if self.turn is None else np.asarray(Z @ self.turn)


def moments_by_part(blocks: Blocks, positions: Positions, part: NDArray[np.intp], parts: int) -> tuple[Floats, Doubles]:
    """Give ``shift`` (D,) and, for each part of the rows, their number, sums and sums of squares, in one pass.

    Parameters
    ----------
    blocks, positions
        The rows, (m,) positions.
    part : (n,) int
        Part of each labelled row, 0 to parts - 1.
    parts
        How many there are.

    Returns
    -------
    ((D,) float32, (parts, 2 * D + 1) float64)
        Each part's row holds the number of rows, the sums and the squares; see ``Moments``.
    """
    first = blocks.chunks(positions)[0]
    shift = blocks.read(first).mean(axis=0, dtype=np.float64).astype(np.float32)
    D = len(shift)

    def sum_up(chunk: Positions, X: Floats) -> Doubles:
        X -= shift
        found = np.zeros((parts, 2 * D + 1))
        of_row = part[chunk]
        for which in np.unique(of_row).tolist():
            rows = np.flatnonzero(of_row == which)
            for start in range(0, len(rows), BLOCK):
                Z = X[rows[start : start + BLOCK]].astype(np.float64)
                found[which, 0] += len(Z)
                found[which, 1 : D + 1] += Z.sum(axis=0)
                found[which, D + 1 :] += np.einsum("ij,ij->j", Z, Z)
        return found

    total = np.zeros((parts, 2 * D + 1))
    for found in blocks.map(sum_up, positions):
        total += found
    return shift, total


def as_moments(sums: Doubles) -> Moments:
    """Read what ``moments_by_part`` gives of one part."""
    D = len(sums) // 2
    return Moments(int(sums[0]), sums[1 : D + 1], sums[D + 1 :])


def fold_frame(found: Moments, shift: Floats, steps: Steps) -> Frame:
    """Give means and scales, as ``StandardScaler`` finds them; without a scaler, what leaves features as they are."""
    if steps.scale == "none" and not steps.pca:
        return Frame(found.rows, shift, -shift.astype(np.float64), np.ones(len(shift)))
    mean, eps = found.sums / found.rows, np.finfo(np.float64).eps
    if steps.scale == "none":
        return Frame(found.rows, shift, mean, np.ones(len(shift)))
    variance = np.maximum(found.squares / found.rows - mean**2, 0)
    rounding = found.rows * eps * variance + (found.rows * (mean + shift) * eps) ** 2
    return Frame(found.rows, shift, mean, np.where(variance <= rounding, 1.0, np.sqrt(variance)))


def gram_of(blocks: Blocks, positions: Positions, frame: Frame, threads: int) -> Floats:
    """Give the Gram matrix, (D, D), of rows less ``frame.shift``, over ``frame.scale``.

    Memory: the matrix once, and a slab of it a thread.
    """
    from threadpoolctl import threadpool_limits

    D = len(frame.shift)
    gram = np.zeros((D, D), dtype=np.float32)

    def add(Z: Floats, start: int) -> None:
        stop = min(start + SLAB, D)
        gram[start:stop, :stop] += Z[:, start:stop].T @ Z[:, :stop]

    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for chunk in blocks.chunks(positions):
            Z = blocks.read(chunk)
            Z -= frame.shift
            Z /= frame.scale.astype(np.float32)
            list(pool.map(lambda start, Z=Z: add(Z, start), range(0, D, SLAB)))
    for start in range(0, D, SLAB):
        stop = min(start + SLAB, D)
        square = gram[start:stop, start:stop]
        square[...] = (square + square.T) / 2
        gram[:start, start:stop] = gram[start:stop, :start].T
    return gram


def turned_frame(frame: Frame, gram: Floats, whole: Frame, components: int, *, whiten: bool = False) -> Frame:
    """Add a fold's principal components, from the Gram matrix of its training rows over the scales of ``whole``.

    ``gram`` is written over.
    """
    from scipy.linalg import eigh  # type: ignore[import-untyped]  # scipy has no types

    ratio = (whole.scale / frame.scale).astype(np.float32)
    mean = (frame.mean / whole.scale).astype(np.float32)
    gram /= frame.rows
    for start in range(0, len(gram), SLAB):
        gram[start : start + SLAB] -= np.outer(mean[start : start + SLAB], mean)
    gram *= ratio[:, None]
    gram *= ratio
    D, total = len(gram), float(np.trace(gram, dtype=np.float64))
    kept = min(components, D, frame.rows - 1)
    values, vectors = eigh(gram.T, subset_by_index=(D - kept, D - 1), overwrite_a=True, check_finite=False)
    values, vectors = np.maximum(values[::-1].astype(np.float64), 0), vectors[:, ::-1]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(kept)])
    variance = values * frame.rows / (frame.rows - 1)
    if whiten:
        vectors = vectors / np.sqrt(np.maximum(variance, np.finfo(np.float32).eps))
    turn = np.ascontiguousarray(vectors, dtype=np.float32)
    return replace(frame, turn=turn, variance=variance, total=total)


def scaler_of(frame: Frame, steps: Steps) -> Any:
    """Give the fitted scaler of a pipeline of scikit-learn."""
    from sklearn.preprocessing import StandardScaler

    if steps.scale == "none":
        return "passthrough"
    scaler = StandardScaler()
    scaler.mean_ = frame.mean + frame.shift
    scaler.scale_ = frame.scale
    scaler.var_ = frame.scale**2
    scaler.n_samples_seen_ = np.int64(frame.rows)
    scaler.n_features_in_ = len(frame.mean)
    return scaler


def pca_of(frame: Frame, steps: Steps) -> Any:
    """Give the fitted components of a pipeline of scikit-learn."""
    from sklearn.decomposition import PCA

    assert frame.turn is not None
    assert frame.variance is not None
    size = np.sqrt(np.maximum(frame.variance, np.finfo(np.float32).eps)) if steps.whiten else 1.0
    pca = PCA(frame.width, whiten=steps.whiten, svd_solver="covariance_eigh")
    pca.components_ = np.ascontiguousarray((frame.turn * size).T.astype(np.float32))
    mean = np.zeros(len(frame.mean)) if steps.scale == "standard" else frame.mean + frame.shift
    pca.mean_ = mean.astype(np.float32)
    pca.explained_variance_ = frame.variance.astype(np.float32)
    pca.explained_variance_ratio_ = (frame.variance / frame.total).astype(np.float32)
    pca.singular_values_ = np.sqrt(frame.variance * (frame.rows - 1)).astype(np.float32)
    pca.noise_variance_ = 0.0
    pca.n_components_, pca.n_samples_, pca.n_features_in_ = frame.width, frame.rows, len(frame.mean)
    return pca
