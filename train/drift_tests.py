"""Are two samples of one distribution? The Frechet distance of rows and the total variation of counts, by permutation.

Both give the distance without its bias, which is its mean over random divisions of the two samples thrown together.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

__all__ = ["compare_counts", "compare_rows", "frechet"]

Floats = NDArray[np.float64]


def compare_rows(first: Floats, second: Floats, rng: np.random.Generator, *, draws: int = 199) -> tuple[float, float]:
    """Compare two samples of rows, (m, d) and (n, d), with 2 rows or more.

    Returns
    -------
    distance : float
        Root of the squared Frechet distance over d, less its bias; 0 or more.
    p_value : float
        Of the permutation test, 1 / (draws + 1) or more.
    """
    m, n, d = len(first), len(second), first.shape[1]
    pooled = np.concatenate([first, second])
    pooled = pooled - pooled.mean(axis=0)  # sums of squares are then as small as they can be
    total, squares = pooled.sum(axis=0), pooled.T @ pooled

    def divided(part: Floats) -> float:
        own, own_squares = part.sum(axis=0), part.T @ part
        return frechet(_moments(len(part), own, own_squares), _moments(m, total - own, squares - own_squares))

    with threadpool_limits(1):  # matrices this small wait for threads longer than they are worked at
        found = divided(pooled[m:])
        null = np.array([divided(pooled[rng.choice(m + n, n, replace=False)]) for _ in range(draws)])
    p_value = (1 + int((null >= found).sum())) / (draws + 1)
    return float(np.sqrt(max(0.0, found - null.mean()) / d)), p_value


def compare_counts(
    first: NDArray[np.int64], second: NDArray[np.int64], rng: np.random.Generator, *, draws: int = 199
) -> tuple[float, float]:
    """Compare two samples of classes, given by their counts (k,): total variation less its bias, and the p value."""
    m, n = int(first.sum()), int(second.sum())
    pooled = first + second
    null = _variation(rng.multivariate_hypergeometric(pooled, n, size=draws, method="marginals"), pooled, m, n)
    found = float(_variation(second[None], pooled, m, n)[0])
    p_value = (1 + int((null >= found - 1e-12).sum())) / (draws + 1)
    return max(0.0, found - float(null.mean())), p_value


def frechet(first: tuple[Floats, Floats], second: tuple[Floats, Floats]) -> float:
    """Give the squared Frechet distance of two normal distributions, each a mean (d,) and a covariance (d, d)."""
    (mean, cov), (other_mean, other_cov) = first, second
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other_cov @ root).clip(0)).sum()
    return float(np.square(mean - other_mean).sum() + np.trace(cov) + np.trace(other_cov) - 2 * cross)


def _moments(n: int, total: Floats, squares: Floats) -> tuple[Floats, Floats]:
    mean = total / n
    return mean, (squares - n * np.outer(mean, mean)) / (n - 1)


def _variation(counts: Any, pooled: Any, m: int, n: int) -> Floats:
    found: Floats = np.abs(counts / n - (pooled - counts) / m).sum(axis=-1) / 2
    return found
