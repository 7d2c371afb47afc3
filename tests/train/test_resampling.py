"""Intervals cover as often as they say, scores under weights are those of repeated rows, and pairs are compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.train.errors import DatasetError
from icecore.train.metrics import evaluate
from icecore.train.resampling import HEADLINES, WeightedClasses, bootstrap_intervals, compare_models, draws_for


def draw(seed: int, n: int, k: int, *, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(k), rng.integers(k, size=n - k)])
    logits = rng.normal(size=(n, k)) + skill * np.eye(k)[y]
    proba = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 2) + 1e-3  # rounded, so that scores tie
    return y, proba / proba.sum(1, keepdims=True)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_a_score_under_weights_is_that_of_rows_repeated_so_often(seed: int, k: int) -> None:
    y, proba = draw(seed, 40, k)
    weights = np.random.default_rng(seed).integers(0, 4, 40)
    weights[:k] = 1  # every class is there
    rows = np.repeat(np.arange(40), weights)
    expected = evaluate(y[rows], proba[rows], [str(i) for i in range(k)])
    found = WeightedClasses(y, proba).of(weights[None].astype(np.float32))
    for name in HEADLINES:
        assert found[name][0] == pytest.approx(getattr(expected, name), abs=1e-6), name


@pytest.mark.parametrize("name", HEADLINES)
def test_intervals_hold_the_truth_about_as_often_as_they_say(name: str) -> None:
    truth = getattr(evaluate(*draw(10**6, 200_000, 3), ["a", "b", "c"]), name)
    held = 0
    for seed in range(100):
        interval = bootstrap_intervals(*draw(seed, 150, 3), resamples=400)[name]
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert held >= 87  # 95 expected, deviation 2.2; percentiles are a little narrow at 150 rows


def test_equal_input_gives_equal_intervals_whatever_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    y, proba = draw(1, 60, 3)
    whole = bootstrap_intervals(y, proba, resamples=100)
    monkeypatch.setattr("icecore.train.resampling._AT_A_TIME", 60 * 7)
    again = bootstrap_intervals(y, proba, resamples=100)
    np.testing.assert_allclose([again[name] for name in HEADLINES], [whole[name] for name in HEADLINES])
    assert bootstrap_intervals(y, proba, resamples=100, seed=1) != whole


def test_groups_are_drawn_whole() -> None:
    """Every row ten times over: ten times the rows, and no more knowledge."""
    y, proba = draw(2, 50, 2)
    names = [str(i) for i in range(50)] * 10
    plain = bootstrap_intervals(y, proba)["log_loss"]
    copies = bootstrap_intervals(np.tile(y, 10), np.tile(proba, (10, 1)), groups=names)["log_loss"]
    fooled = bootstrap_intervals(np.tile(y, 10), np.tile(proba, (10, 1)))["log_loss"]
    assert plain is not None
    assert copies is not None
    assert fooled is not None
    assert copies[1] - copies[0] == pytest.approx(plain[1] - plain[0], rel=0.15)
    assert fooled[1] - fooled[0] < 0.5 * (plain[1] - plain[0])


def test_a_score_that_most_draws_leave_undefined_has_no_interval() -> None:
    y, proba = draw(3, 40, 3)
    y[y == 2] = 0
    y[0] = 2
    found = bootstrap_intervals(y, proba)
    assert found["roc_auc"] is None
    assert found["accuracy"] is not None


def test_a_better_model_is_told_from_a_worse_one_and_equal_ones_are_not() -> None:
    y, good = draw(4, 800, 4, skill=2.0)
    poor = draw(4, 800, 4, skill=0.5)[1]
    found = compare_models(y, good, poor)
    called = good.argmax(1) == y, poor.argmax(1) == y
    assert (found.only_first, found.only_second) == ((called[0] & ~called[1]).sum(), (called[1] & ~called[0]).sum())
    assert found.p_value < 1e-6
    gap = found.gaps["accuracy"]
    assert gap is not None
    assert gap.difference == pytest.approx(called[0].mean() - called[1].mean())
    assert 0 < gap.interval[0] < gap.difference < gap.interval[1]
    same = compare_models(y, good, good)
    assert (same.p_value, same.only_first) == (1.0, 0)
    assert same.to_json()["gaps"]["log_loss"] == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_mcnemars_test_is_scikit_learns_neighbour() -> None:
    """Worked by hand: 8 rows to 2, two-sided, 2 * P(X <= 2) with X of 10 fair tosses."""
    y = np.zeros(100, dtype=int)
    right, wrong = np.tile([0.9, 0.1], (100, 1)), np.tile([0.9, 0.1], (100, 1))
    right[:2], wrong[2:10] = [0.1, 0.9], [0.1, 0.9]
    found = compare_models(y, right, wrong, resamples=50)
    assert (found.only_first, found.only_second) == (8, 2)
    assert found.p_value == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_equal_models_are_called_different_at_most_at_the_level() -> None:
    """Two models of equal skill on fresh rows: the exact test errs on the safe side."""
    told = 0
    for seed in range(200):
        y, first = draw(seed, 120, 3)
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(120, 3)) + np.eye(3)[y]
        second = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        told += compare_models(y, first, second, resamples=2).p_value < 0.05
    assert told <= 18  # 10 expected at most; 18 is beyond the 99th percentile


def test_models_that_scored_other_rows_are_refused() -> None:
    y, proba = draw(5, 30, 2)
    with pytest.raises(DatasetError, match="scored 30 and 29 rows"):
        compare_models(y, proba, proba[1:])


def test_many_rows_and_classes_are_drawn_less_often() -> None:
    assert [draws_for(153, 2), draws_for(20_000, 10), draws_for(200_000, 100)] == [1_000, 500, 300]
