"""Nearest class means and nearest neighbours against scikit-learn's estimators and against formulae written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import serial
from icecore.train.folds import Fold, make_folds
from icecore.train.models import BuildOptions, model_spec
from icecore.train.nearest import NearestMean, SmoothedNeighbors
from icecore.train.out_of_fold import fit_pipeline, plain_scores, score_folds
from numpy.typing import NDArray
from scipy.special import softmax  # type: ignore[import-untyped]
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

Data = tuple[NDArray[np.float32], NDArray[np.int64]]
NAMES = ("nearest_mean", "knn")


def clouds(k: int, n: int = 240, width: int = 16, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    X = rng.normal(size=(n, width)) + 0.8 * rng.normal(size=(k, width))[y]
    return (X * 3 + 500).astype(np.float32), y


def folds_of(y: NDArray[np.int64]) -> tuple[Fold, ...]:
    return make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=3, seed=1)


@parametrize_with_checks([NearestMean(), SmoothedNeighbors(metric="euclidean")])  # type: ignore[misc]
def test_the_estimators_keep_scikit_learns_rules(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_search_scores_as_one_fit_a_setting_does(name: str, k: int, weight: Any) -> None:
    X, y = clouds(k)
    keep = (y != 1) | (np.arange(len(y)) % 3 == 0)
    X, y, before = X[keep], y[keep], X[keep].copy()
    spec, folds, options = model_spec(name), folds_of(y), BuildOptions(class_weight=weight)
    values = (*spec.grid[::-1], 1000 if name == "knn" else 1.5)  # in no order; more neighbours than rows
    ours = score_folds(spec, X, y, values=values, folds=folds, options=options).scores
    plain = plain_scores(spec, X, y, values=values, folds=folds, options=options).scores
    np.testing.assert_array_equal(X, before)
    assert ours.shape == plain.shape == (len(values), len(y), 1 if k == 2 else k)
    if k > 2:  # a sum that all classes of a row share says nothing
        ours, plain = (scores - scores.mean(axis=2, keepdims=True) for scores in (ours, plain))
    np.testing.assert_allclose(ours, plain, atol=2e-3 * np.abs(plain).max())


@pytest.mark.parametrize("threshold", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("priors", ["empirical", "uniform"])
def test_shrunken_means_are_those_of_nearest_centroid(threshold: float, priors: str) -> None:
    X, y = clouds(4)
    X, y = X[y != 3][:150], y[y != 3][:150]
    X = np.concatenate((X, X[y == 0])).astype(np.float64)
    y = np.concatenate((y, y[y == 0]))  # unequal shares
    ours = NearestMean(threshold, priors=priors).fit(X, y)
    theirs = NearestCentroid(shrink_threshold=threshold or None, priors="uniform").fit(X, y)
    spread = theirs.within_class_std_dev_ + np.median(theirs.within_class_std_dev_)
    distances = (((X[:, None] - theirs.centroids_) / spread) ** 2).sum(axis=2)
    shares = np.full(3, 1 / 3) if priors == "uniform" else np.bincount(y) / len(y)
    expected = -distances + 2 * np.log(shares)
    scores = ours.decision_function(X)
    shared = (expected - scores).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(scores + shared, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(ours.predict(X), expected.argmax(axis=1))


def test_shrinking_far_enough_leaves_no_feature() -> None:
    X, y = clouds(3)
    assert np.ptp(NearestMean(1e6).fit(X, y).coef_, axis=0).max() < 1e-9
    assert np.ptp(NearestMean(0.5).fit(X, y).coef_, axis=0).max() > 0.01


def test_features_that_are_mostly_constant_are_no_hindrance() -> None:
    X, y = clouds(3)
    X[:, 3:] = 7
    X[:, 4] = 10 * y  # tells the classes apart, and never differs within one
    assert (NearestMean(0.5).fit(X, y).predict(X) == y).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_votes_are_those_of_scikit_learns_neighbours_and_one_of_all_rows(metric: str) -> None:
    X, y = clouds(4)
    X = StandardScaler().fit_transform(X)
    X[200] = X[0]  # a row that is there twice, once to learn from
    shares = np.bincount(y[:180]) / 180
    ours = SmoothedNeighbors(7, metric=metric).fit(X[:180], y[:180])
    theirs = KNeighborsClassifier(7, weights="distance", metric=metric).fit(X[:180], y[:180])
    expected = (7 * theirs.predict_proba(X[180:]) + shares) / 8
    found = softmax(ours.decision_function(X[180:]), axis=1)
    far = np.arange(180, 240) != 200
    np.testing.assert_allclose(found[far], expected[far], rtol=1e-4)
    assert found[20].argmax() == y[0]
    assert (ours.predict(X[180:]) == theirs.predict(X[180:])).mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_a_fold_knows_nothing_of_the_rows_that_it_is_validated_on(name: str) -> None:
    X, y = clouds(4)
    train, test = folds_of(y)[0]
    spoilt, others = X.copy(), y.copy()
    spoilt[test[1:]] = X[test[1:]] * 40 + 900
    others[test] = (y[test] + 1) % 4
    spec, options = model_spec(name), BuildOptions()
    before = score_folds(spec, X, y, values=spec.grid, folds=[(train, test)], options=options).scores
    after = score_folds(spec, spoilt, others, values=spec.grid, folds=[(train, test)], options=options).scores
    np.testing.assert_allclose(after[:, test[0]], before[:, test[0]], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_kept_without_a_pickle(name: str, tmp_path: Path) -> None:
    X, y = clouds(3)
    fitted, _ = fit_pipeline(model_spec(name), X, y, value=model_spec(name).grid[0], options=BuildOptions())
    serial.save_skops(fitted["model"], tmp_path / "model.skops")
    loaded = serial.load_skops(tmp_path / "model.skops")
    rows = fitted["scale"].transform(X)
    np.testing.assert_array_equal(loaded.decision_function(rows), fitted["model"].decision_function(rows))
