"""Every score equals scikit-learn's, and rows without some class give a reason instead of a warning."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.train.metrics import evaluate, majority_baseline, metric_score, rank_of, wilson_interval
from sklearn import metrics as witness


def draw(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    proba = rng.dirichlet(np.full(k, 0.7), size=n)
    return y, np.round(proba, 2) + 1e-3  # rounded, so that scores tie


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_scores_equal_scikit_learns(seed: int, k: int) -> None:
    y, proba = draw(seed, 60, k)
    proba /= proba.sum(axis=1, keepdims=True)
    called = proba.argmax(axis=1)
    found = evaluate(y, proba, [f"c{i}" for i in range(k)])
    assert found.accuracy == pytest.approx(witness.accuracy_score(y, called))
    assert found.balanced_accuracy == pytest.approx(witness.balanced_accuracy_score(y, called))
    assert found.macro_f1 == pytest.approx(witness.f1_score(y, called, average="macro", zero_division=0))
    assert found.log_loss == pytest.approx(witness.log_loss(y, proba, labels=range(k)))
    area = witness.roc_auc_score(y, proba[:, 1] if k == 2 else proba, multi_class="ovr")
    assert found.roc_auc == pytest.approx(area)
    table = witness.precision_recall_fscore_support(y, called, labels=range(k), zero_division=0)
    rows = [(row.precision, row.recall, row.f1, row.support) for row in found.per_class]
    np.testing.assert_allclose(rows, np.transpose(table))
    np.testing.assert_array_equal(found.confusion, witness.confusion_matrix(y, called, labels=range(k)))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
def test_the_choosing_score_is_the_reported_one(metric: str) -> None:
    y, proba = draw(3, 50, 4)
    sign = -1 if metric == "log_loss" else 1
    expected = getattr(evaluate(y, proba, list("abcd")), metric)
    assert metric_score(metric, y, proba.argmax(axis=1), proba) == pytest.approx(sign * expected)  # type: ignore[arg-type]


def test_a_class_without_held_out_rows_leaves_auc_undefined_with_a_reason() -> None:
    y, proba = draw(1, 30, 3)
    found = evaluate(y[y != 2], proba[y != 2], ["a", "b", "c"])
    assert found.roc_auc is None
    assert found.roc_auc_reason == "no held-out row of class 'c'"
    assert found.per_class[2].support == 0
    assert 0 <= found.balanced_accuracy <= 1


def test_a_sure_mistake_costs_a_finite_log_loss() -> None:
    assert np.isfinite(evaluate(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), ["a", "b"]).log_loss)


@pytest.mark.parametrize("sure", [1.0, 1 - 1e-10, 1 - 1e-6])
def test_log_loss_does_not_depend_on_the_models_dtype(sure: float) -> None:
    y, proba = np.array([1, 1]), np.array([[sure, 1 - sure], [0.1, 0.9]])
    in_float32 = evaluate(y, proba.astype(np.float32), ["a", "b"]).log_loss
    assert evaluate(y, proba, ["a", "b"]).log_loss == pytest.approx(in_float32, rel=1e-6)


def test_scores_that_differ_in_the_last_bit_alone_are_a_tie() -> None:
    assert rank_of("accuracy", 0.1 + 0.2) == rank_of("accuracy", 0.3)
    assert rank_of("log_loss", 0.2) > rank_of("log_loss", 0.3)


def test_the_baseline_is_the_majority_class_with_training_shares() -> None:
    y_train, y = np.array([0, 0, 0, 1]), np.array([0, 1])
    base = majority_baseline(y_train, y, ["a", "b"])
    assert base.accuracy == 0.5
    assert base.balanced_accuracy == 0.5
    assert base.roc_auc == 0.5
    assert base.log_loss == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)


def test_wilson_interval_equals_the_published_example() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, Wilson without correction
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
