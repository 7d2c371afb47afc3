"""Curves equal scikit-learn's, calibration and pairs are counted by hand, and the map holds what PCA finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.train.curves import calibration_of, confused_pairs, feature_map, precision_recall_curve, roc_curve
from sklearn import metrics as witness
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 60))
def test_curves_and_areas_equal_scikit_learns(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.4
    positive[:2] = True, False
    score = np.round(rng.random(n), 1)  # ties
    roc = roc_curve(positive, score)
    x, y, _ = witness.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose((roc.x, roc.y), (x, y))
    assert roc.area == pytest.approx(witness.roc_auc_score(positive, score))
    found = precision_recall_curve(positive, score)
    assert found.area == pytest.approx(witness.average_precision_score(positive, score))
    precision, recall, _ = witness.precision_recall_curve(positive, score)
    np.testing.assert_allclose((found.x[1:], found.y[1:]), (recall[:-1][::-1], precision[:-1][::-1]))


def test_calibration_is_counted_by_bins_of_the_called_class() -> None:
    proba = np.array([[0.95, 0.05], [0.92, 0.08], [0.3, 0.7], [0.25, 0.75], [1.0, 0.0]])
    found = calibration_of(np.array([0, 1, 1, 0, 0]), proba)
    np.testing.assert_allclose(found.confidence, [0.725, 2.87 / 3])
    np.testing.assert_allclose(found.accuracy, [0.5, 2 / 3])
    assert found.rows.tolist() == [2, 3]
    assert found.error == pytest.approx((2 * 0.225 + 3 * (2.87 / 3 - 2 / 3)) / 5)


def test_pairs_are_ordered_by_how_many_rows_they_cost() -> None:
    found = confused_pairs([[8, 2, 0], [3, 10, 1], [0, 1, 4]], ["a", "b", "c"])
    told = [(p.first, p.second, p.first_as_second, p.second_as_first) for p in found]
    assert told == [("a", "b", 2, 3), ("b", "c", 1, 1)]
    assert found[0].share == pytest.approx(5 / 24)


def test_the_map_is_that_of_plain_pca_on_standardised_training_rows() -> None:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(200, 12)) * np.linspace(1, 4, 12) @ rng.normal(size=(12, 12)) + 9).astype(np.float32)
    X[:, 4] = 3  # never changes
    train = rng.random(200) < 0.7
    found = feature_map(X, train)
    scaler = StandardScaler().fit(X[train])
    pca = PCA(2, svd_solver="full").fit(scaler.transform(X[train]))
    expected = pca.transform(scaler.transform(X))
    for axis in range(2):
        assert abs(np.corrcoef(found.points[:, axis], expected[:, axis])[0, 1]) > 0.999
    assert found.explained == pytest.approx(tuple(pca.explained_variance_ratio_), rel=1e-3)
    assert found.which.tolist() == list(range(200))


def test_a_large_set_is_mapped_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icecore.train.curves.MOST_MAPPED", 50)
    X = np.random.default_rng(1).normal(size=(300, 5)).astype(np.float32)
    found = feature_map(X, np.arange(300) % 3 > 0)
    assert found.points.shape == (50, 2)
    assert len(set(found.which.tolist())) == 50
