"""Scores of numbers against scikit-learn's, and under weights against rows that are repeated."""

from __future__ import annotations

import numpy as np
import pytest
from icecore.train import UnknownModelError
from icecore.train.regression_metrics import REGRESSION_METRICS, WeightedErrors, error_score, evaluate_numbers
from icecore.train.resampling import gaps_between, intervals_of
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error


def some(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n) * 40 + 1e6
    return y, y + rng.normal(size=n) * 10 + 1


def test_scores_are_scikit_learns() -> None:
    y, predicted = some()
    found = evaluate_numbers(y, predicted)
    assert found.rmse == pytest.approx(root_mean_squared_error(y, predicted))
    assert found.mae == pytest.approx(mean_absolute_error(y, predicted))
    assert found.r2 == pytest.approx(r2_score(y, predicted))
    assert [error_score(metric, y, predicted) for metric in REGRESSION_METRICS] == [-found.rmse, -found.mae, found.r2]


def test_rows_of_one_number_have_no_r2_and_say_why() -> None:
    found = evaluate_numbers(np.full(3, 2.5), np.array([2.0, 2.5, 3.0]))
    assert found.r2 is None
    assert found.r2_reason == "every held-out row has the number 2.5"
    for predicted in (np.full(3, 2.5), np.array([2.0, 2.5, 3.0])):
        assert error_score("r2", np.full(3, 2.5), predicted) == r2_score(np.full(3, 2.5), predicted)


def test_an_unknown_metric_lists_those_there_are() -> None:
    with pytest.raises(UnknownModelError, match="no metric 'rsme'; there are rmse, mae, r2; did you mean 'rmse'"):
        error_score("rsme", *some())


def test_weights_count_rows() -> None:
    y, predicted = some()
    weights = np.random.default_rng(1).integers(0, 4, (5, len(y)))
    found = WeightedErrors(y, predicted).of(weights.astype(np.float32))
    for i, counts in enumerate(weights):
        drawn = np.repeat(np.arange(len(y)), counts)
        expected = evaluate_numbers(y[drawn], predicted[drawn])
        assert [found[name][i] for name in REGRESSION_METRICS] == pytest.approx(
            [expected.rmse, expected.mae, expected.r2]
        )


def test_a_draw_of_one_number_leaves_r2_undefined() -> None:
    y, predicted = np.array([1.0, 2.0, 2.0]), np.array([1.0, 1.0, 3.0])
    found = WeightedErrors(y, predicted).of(np.array([[0, 1, 1], [1, 1, 1]], np.float32))
    assert np.isnan(found["r2"][0])
    assert found["r2"][1] == pytest.approx(r2_score(y, predicted))


def test_intervals_cover_the_score_and_draw_groups_whole() -> None:
    y, predicted = some(200)
    alone = intervals_of(WeightedErrors(y, predicted), len(y))
    grouped = intervals_of(
        WeightedErrors(np.repeat(y, 5), np.repeat(predicted, 5)), 1000, groups=[f"g{i // 5}" for i in range(1000)]
    )
    whole = evaluate_numbers(y, predicted)
    for name in REGRESSION_METRICS:
        low, high = alone[name]  # type: ignore[misc]
        assert low < getattr(whole, name) < high
        assert grouped[name] == pytest.approx(alone[name], rel=0.1)  # five copies of a row tell no more than one


def test_a_better_model_is_told_by_its_gap() -> None:
    y, predicted = some(300)
    worse = predicted + np.random.default_rng(5).normal(size=300) * 20
    gaps = gaps_between(WeightedErrors(y, predicted), WeightedErrors(y, worse), len(y))
    assert gaps["rmse"].interval[1] < 0 < gaps["r2"].interval[0]  # type: ignore[union-attr]
