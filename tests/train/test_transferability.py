"""LogME against evidence that is found the slow way, and its known properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from icecore.train import task_of
from icecore.train.transferability import MOST_ROWS
from icecore.train.transferability import logme as logme_of
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import multivariate_normal


def logme(X: NDArray[np.float32], y: NDArray[Any], *, task: str = "classification", seed: int = 0) -> float:
    return logme_of(X, y, task=task_of(task), seed=seed)


def clouds(
    n: int, width: int, k: int, *, signal: float, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = signal * rng.normal(size=(k, width))[y] + rng.normal(size=(n, width)) * rng.uniform(0.1, 5, width) + 3
    return X.astype(np.float32), y


def without_mean(X: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """Standardised features and indicators in an orthonormal basis of what is orthogonal to the constant."""
    n = len(X)
    basis = np.linalg.qr(np.column_stack([np.ones(n), np.eye(n)[:, 1:]]))[0][:, 1:].T  # (n - 1, n)
    Z = (X.astype(np.float64) - X.mean(0, dtype=np.float64)) / X.std(0, dtype=np.float64)
    return basis @ Z, [basis @ target for target in targets_of(y)]


def targets_of(y: NDArray[Any]) -> list[NDArray[np.float64]]:
    """Indicators of classes or labels, or standardised numbers."""
    if y.ndim == 2:
        return list(y.T.astype(np.float64))
    if y.dtype == np.float64:
        return [(y - y.mean()) / y.std()]
    return [(y == label).astype(np.float64) for label in np.unique(y)]


def by_fixed_point(X: NDArray[Any], t: NDArray[Any]) -> float:
    """The paper's iteration and formula, with dense matrices."""
    n, width = X.shape
    a = b = 1.0
    for _ in range(10_000):
        inverse = np.linalg.inv(a * np.eye(width) + b * X.T @ X)
        weights = b * inverse @ X.T @ t
        determined = b * np.trace(inverse @ X.T @ X)
        before = a / b
        a, b = determined / (weights @ weights), (n - determined) / np.sum((X @ weights - t) ** 2)
        if abs(a / b - before) < 1e-12 * before:
            break
    A = a * np.eye(width) + b * X.T @ X
    weights = b * np.linalg.solve(A, X.T @ t)
    misfit = b * np.sum((X @ weights - t) ** 2) + a * weights @ weights
    return float((n * np.log(b / (2 * np.pi)) + width * np.log(a) - misfit - np.linalg.slogdet(A)[1]) / 2)


def by_search(X: NDArray[Any], t: NDArray[Any]) -> float:
    """The largest marginal likelihood of a Gaussian with the covariance that the model implies."""

    def loss(logs: NDArray[Any]) -> float:
        a, b = np.exp(logs)
        return -float(multivariate_normal.logpdf(t, cov=X @ X.T / a + np.eye(len(t)) / b))

    starts = ([0.0, 0.0], [5.0, 0.0], [5.0, 5.0])
    found = (minimize(loss, start, method="Nelder-Mead", bounds=[(-15, 15)] * 2) for start in starts)
    return -min(one.fun for one in found)


@pytest.mark.parametrize(
    ("n", "width", "k", "signal"), [(60, 5, 3, 1.0), (100, 30, 5, 0.5), (50, 10, 2, 0.2), (90, 80, 2, 2.0)]
)
def test_it_is_what_the_papers_formula_gives(n: int, width: int, k: int, signal: float) -> None:
    X, y = clouds(n, width, k, signal=signal)
    Z, targets = without_mean(X, y)
    plain = np.mean([by_fixed_point(Z, t) for t in targets]) / (n - 1)
    assert logme(X, y) == pytest.approx(plain, rel=1e-5)  # features are float32


@pytest.mark.parametrize(("n", "width", "k"), [(30, 6, 3), (24, 40, 2), (24, 23, 2)])
def test_no_other_precisions_have_more_evidence(n: int, width: int, k: int) -> None:
    """With more features than rows too, where the dense iteration cancels all digits."""
    X, y = clouds(n, width, k, signal=0.8)
    Z, targets = without_mean(X, y)
    best = np.mean([by_search(Z, t) for t in targets]) / (n - 1)
    assert logme(X, y) == pytest.approx(best, abs=2e-4)


def test_more_signal_scores_higher_and_permuted_labels_lower() -> None:
    scores = [logme(*clouds(200, 20, 4, signal=signal)) for signal in (0.0, 0.3, 0.6, 1.2)]
    assert scores == sorted(scores)
    X, y = clouds(200, 20, 4, signal=0.6)
    shuffled = [logme(X, np.random.default_rng(seed).permutation(y)) for seed in range(5)]
    assert max(shuffled) < logme(X, y)


def test_scale_offset_order_and_names_of_classes_do_not_count() -> None:
    X, y = clouds(120, 12, 3, signal=0.7)
    order = np.random.default_rng(1).permutation(len(y))
    expected = pytest.approx(logme(X, y), rel=1e-5)
    assert logme(X * np.float32(64), y) == expected
    assert logme(X + np.float32(10), y) == expected
    assert logme(X[order], y[order]) == expected
    assert logme(X, (y + 1) % 3) == expected


def test_features_that_say_nothing_add_nothing_to_say() -> None:
    X, y = clouds(100, 8, 2, signal=0.8)
    dead = np.column_stack([X, np.full((len(X), 3), 7, dtype=np.float32)])
    assert logme(dead, y) == pytest.approx(logme(X, y), rel=1e-5)
    noise = np.random.default_rng(2).normal(size=(len(X), 60)).astype(np.float32)
    assert logme(np.column_stack([X, noise]), y) < logme(X, y)


def test_constant_features_and_a_perfect_fit_give_numbers() -> None:
    y = np.arange(20) % 2
    nothing = logme(np.ones((20, 3), dtype=np.float32), y)
    everything = logme(np.eye(2, dtype=np.float32)[y], y)
    assert np.isfinite(nothing)
    assert np.isfinite(everything)
    assert everything > logme(*clouds(20, 3, 2, signal=2.0)) > nothing


def test_of_many_rows_the_same_part_of_every_class_is_looked_at() -> None:
    X, y = clouds(3 * MOST_ROWS, 10, 3, signal=0.5)
    assert logme(X, y) == logme(X, y)
    seeds = [logme(X, y, seed=seed) for seed in (0, 1)]
    assert seeds[0] != seeds[1]
    assert seeds[0] == pytest.approx(seeds[1], abs=0.03)
    assert logme(X, y) == pytest.approx(logme(X[: MOST_ROWS - 1], y[: MOST_ROWS - 1]), abs=0.03)


def test_rows_are_not_written_to() -> None:
    X, y = clouds(50, 60, 2, signal=0.5)
    X.setflags(write=False)
    assert np.isfinite(logme(X, y))


def numbers(n: int, width: int, *, noise: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, width)).astype(np.float32) * rng.uniform(0.1, 5, width).astype(np.float32) + 3
    return X, 40 + 12 * (X[:, :3] @ (1.0, -0.5, 0.2) + noise * rng.normal(size=n))


def tags(X: NDArray[np.float32], seed: int = 0) -> NDArray[np.int64]:
    """Three labels, one common and one rare."""
    noise = np.random.default_rng(seed).normal(size=(len(X), 3))
    scores = (X[:, :3] - X[:, :3].mean(0)) / X[:, :3].std(0) + 0.4 * noise
    return (scores > (-0.5, 0.4, 1.2)).astype(np.int64)


@pytest.mark.parametrize(("n", "width"), [(60, 8), (40, 30), (200, 20)])
def test_of_numbers_it_is_the_papers_evidence_of_the_standardised_numbers(n: int, width: int) -> None:
    X, y = numbers(n, width, noise=2.0)
    Z, (target,) = without_mean(X, y)
    assert logme(X, y, task="regression") == pytest.approx(by_fixed_point(Z, target) / (n - 1), rel=1e-5)


@pytest.mark.parametrize(("n", "width"), [(30, 6), (24, 40)])
def test_of_numbers_no_other_precisions_have_more_evidence(n: int, width: int) -> None:
    X, y = numbers(n, width, noise=2.0)
    Z, (target,) = without_mean(X, y)
    assert logme(X, y, task="regression") == pytest.approx(by_search(Z, target) / (n - 1), abs=2e-4)


def test_the_unit_and_origin_of_numbers_do_not_count_and_noise_does() -> None:
    X, y = numbers(150, 10, noise=1.0)
    expected = pytest.approx(logme(X, y, task="regression"), rel=1e-9)
    assert logme(X, -1e-4 * y, task="regression") == expected
    assert logme(X, 1e3 * y + 77, task="regression") == expected
    scores = [logme(*numbers(150, 10, noise=noise), task="regression") for noise in (8.0, 3.0, 1.0, 0.3)]
    assert scores == sorted(scores)


def test_of_labels_it_is_the_mean_over_labels() -> None:
    X, _ = numbers(80, 12, noise=1.0)
    y = tags(X)
    Z, targets = without_mean(X, y)
    found = logme(X, y, task="multilabel")
    assert found == pytest.approx(np.mean([by_fixed_point(Z, target) for target in targets]) / 79, rel=1e-5)
    assert found == pytest.approx(np.mean([logme(X, np.ascontiguousarray(one)) for one in y.T]), rel=1e-9)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_a_part_of_many_rows_tells_of_numbers_and_labels_too(task: str) -> None:
    X, y = numbers(2 * MOST_ROWS, 10, noise=2.0)
    targets = y if task == "regression" else tags(X)
    few = slice(MOST_ROWS)
    found = logme(X, targets, task=task)
    assert found == logme(X, targets, task=task)
    assert found == pytest.approx(logme(X[few], targets[few], task=task), abs=0.05)


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_targets_that_hardly_ever_differ_have_a_bounded_evidence(task: str) -> None:
    """No row of the part that is looked at differs by itself."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20 * MOST_ROWS, 4)).astype(np.float32)
    odd = np.zeros(len(X), dtype=np.int64)
    odd[12_345] = 1
    common = rng.integers(0, 2, len(X))
    y = odd.astype(np.float64) if task == "regression" else np.column_stack([odd * common[12_345], common])
    assert y[12_345].any()
    assert np.isfinite(logme(X, y, task=task))
