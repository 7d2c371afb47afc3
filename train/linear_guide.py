"""A guess of the inverse Hessian of a linear model's loss, from the leading directions of its features.

The Hessian is close to curvature * Gram matrix + penalty. Pooled features vary most in few directions, and only there
do the two parts differ from a multiple of the identity by much: these are found by one randomised subspace iteration
(Halko, Martinsson and Tropp, SIAM Review 2011), which costs as much as two or three steps of a descent and serves all
values of the penalty. Towards the rest the features are taken to vary evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .linear_losses import Floats

__all__ = ["Spectrum", "leading_spectrum"]

SPARE = 8
"""Directions more that the iteration works with."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvectors and eigenvalues of a Gram matrix, the largest ones."""

    vectors: Floats
    """(D, r) orthonormal"""
    values: Floats
    """(r,)"""
    rest: float
    """mean of the eigenvalues that are left"""

    def solve(self, gradient: Floats, curvature: Floats, penalty: float) -> Floats:
        """Multiply a gradient, (D, columns), by the inverse of curvature * Gram + penalty.

        Parameters
        ----------
        gradient : (D, columns) float32
            What to multiply.
        curvature : (columns,) float32
            Mean second derivative of each column's loss.
        penalty
            Positive.
        """
        rest = 1 / (curvature * self.rest + penalty)  # (columns,)
        leading = 1 / (self.values[:, None] * curvature + penalty) - rest  # (r, columns)
        return np.asarray(gradient * rest + self.vectors @ (leading * (self.vectors.T @ gradient)), dtype=np.float32)


def leading_spectrum(A: Floats, directions: int) -> Spectrum:
    """Give the leading eigenvectors and eigenvalues of A.T @ A, (D, D); all of them where D is not much more.

    Parameters
    ----------
    A : (m, D) float32
        Standardised features.
    directions
        How many are wanted.
    """
    D = A.shape[1]
    if 4 * directions >= D:
        values, vectors = np.linalg.eigh(A.T @ A)
        return Spectrum(vectors, np.maximum(values, 0), 0.0)
    guesses = np.random.default_rng(0).standard_normal((D, directions + SPARE), dtype=np.float32)
    basis, _ = np.linalg.qr(A.T @ (A @ guesses))
    projected = A @ basis  # (m, r)
    values, rotation = np.linalg.eigh(projected.T @ projected)
    trace = float(np.einsum("ij,ij->", A, A, dtype=np.float64))
    rest = max(trace - float(values[SPARE:].sum()), 0) / (D - directions)
    return Spectrum(basis @ rotation[:, SPARE:], np.maximum(values[SPARE:], 0), rest)
