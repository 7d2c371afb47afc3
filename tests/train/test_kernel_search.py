"""The RBF SVM on shared distances against scikit-learn's ``SVC`` in plain pipelines."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from icecore.train import kernel_svm
from icecore.train.folds import Fold, make_folds
from icecore.train.models import BuildOptions, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from icecore.train.pairwise import PairwiseSVC
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

Data = tuple[NDArray[np.float32], NDArray[np.int64]]
OPTIONS = BuildOptions()
SPEC = model_spec("rbf_svm")
POINTS = ((10.0, 0.3), (0.3, 1.0), (1.0, 0.3), (100.0, 0.3), (1.0, 3.0))  # in no order


def clouds(k: int, n: int, width: int = 20, seed: int = 0, signal: float = 1.1) -> Data:
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % k)
    latent = rng.normal(size=(n, width)) + signal * rng.normal(size=(k, width))[y]
    X = np.maximum(latent @ rng.normal(size=(width, width)) * 3 + 20, 0)
    X[:, 4] = 7.1  # constant
    return X.astype(np.float32), y


def folds_of(y: NDArray[np.int64]) -> tuple[Fold, ...]:
    return make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=3, seed=1)


def plain(X: NDArray[np.float32], C: float, scale: float, weight: Any = None) -> Pipeline:
    """As scikit-learn fits it, in float64; ``gamma="scale"`` is one over features times their variance."""
    variance = StandardScaler().fit_transform(X.astype(np.float64)).var()
    gamma = scale / (X.shape[1] * variance)
    model = PairwiseSVC(C=C, gamma=gamma, decision_function_shape="ovo", class_weight=weight, cache_size=500)
    return make_pipeline(StandardScaler(), model)


@pytest.fixture(params=["whole", "pairs"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to solve: all pairs in one call, and pair by pair."""
    monkeypatch.setattr(kernel_svm, "WHOLE_PAIR", 0 if request.param == "pairs" else 10**9)
    return str(request.param)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("k", [2, 5])
def test_out_of_fold_scores_are_those_of_plain_fits(k: int, weight: Any, route: str) -> None:
    X, y = clouds(k, 300)
    keep = (y != 1) | (np.arange(300) % 3 == 0)  # a rare class, so that weights matter
    X, y, before = X[keep], y[keep], X[keep].copy()
    folds = folds_of(y)
    options = BuildOptions(class_weight=weight)
    ours = score_folds(SPEC, X, y, values=POINTS, folds=folds, options=options)
    np.testing.assert_array_equal(X, before)
    assert ours.scores.shape == (len(POINTS), len(y), 1 if k == 2 else k)
    for (C, scale), scores in zip(POINTS, ours.scores, strict=True):
        for train, test in folds:
            expected = plain(X[train], C, scale, weight).fit(X[train].astype(np.float64), y[train])
            expected = expected.decision_function(X[test].astype(np.float64))
            expected = expected[:, None] if k == 2 else expected
            np.testing.assert_allclose(scores[test], expected, atol=0.01 * np.abs(expected).max())
            called = [s.argmax(1) if k > 2 else s[:, 0] > 0 for s in (scores[test], expected)]
            assert (called[0] != called[1]).mean() <= 0.01  # one of 100 rows, on a tie


def test_the_search_calls_as_plain_fits_do_on_a_thousand_rows() -> None:
    X, y = clouds(8, 1000, 40, seed=3, signal=0.4)
    folds = folds_of(y)
    point = (10.0, 0.3)
    scores = score_folds(SPEC, X, y, values=(point,), folds=folds, options=OPTIONS).scores[0]
    called = np.empty_like(y)
    for train, test in folds:
        called[test] = plain(X[train], *point).fit(X[train], y[train]).predict(X[test])
    assert 0.6 < (called == y).mean() < 0.98  # neither is told by a task that all get right
    assert (scores.argmax(axis=1) != called).mean() <= 0.003


def test_a_larger_penalty_that_holds_no_row_back_gives_the_same_machines() -> None:
    X, y = clouds(4, 200)
    folds = folds_of(y)
    shared = score_folds(SPEC, X, y, values=[(1e3, 1.0), (1e4, 1.0)], folds=folds, options=OPTIONS).scores
    alone = score_folds(SPEC, X, y, values=[(1e4, 1.0)], folds=folds, options=OPTIONS).scores[0]
    np.testing.assert_array_equal(shared[0], shared[1])
    np.testing.assert_allclose(shared[1], alone, atol=1e-3)


@pytest.mark.parametrize("k", [2, 5])
def test_the_final_model_is_pairwise_svc_as_scikit_learn_fits_it(k: int, route: str) -> None:
    X, y = clouds(k, 240)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, notes = fit_pipeline(SPEC, X, y, value=(1.0, 0.5), options=OPTIONS)
    expected = plain(X, 1.0, 0.5).fit(X.astype(np.float64), y)
    assert type(ours["model"]) is PairwiseSVC
    assert not notes
    mine, theirs = vars(ours["model"]), vars(expected[-1])
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, np.ndarray):
            assert (mine[name].dtype, mine[name].ndim) == (value.dtype, value.ndim), name
    np.testing.assert_array_equal(ours["model"].n_support_.sum(), len(ours["model"].support_))
    np.testing.assert_allclose(ours["model"].support_vectors_, ours["scale"].transform(X)[ours["model"].support_])
    scores = expected.decision_function(X.astype(np.float64))
    np.testing.assert_allclose(ours.decision_function(X), scores, atol=0.01 * np.abs(scores).max())
    assert (ours.predict(X) == expected.predict(X)).mean() >= 0.99


def test_a_fold_knows_nothing_of_the_rows_that_it_is_validated_on() -> None:
    """Rows far away, of other classes, beside the probe in its fold change nothing of the probe's scores."""
    X, y = clouds(4, 200)
    train, test = folds_of(y)[0]
    spoilt, others = X.copy(), y.copy()
    spoilt[test[1:]] = X[test[1:]] * 40 + 900
    others[test] = (y[test] + 1) % 4
    before = score_folds(SPEC, X, y, values=POINTS, folds=[(train, test)], options=OPTIONS).scores
    after = score_folds(SPEC, spoilt, others, values=POINTS, folds=[(train, test)], options=OPTIONS).scores
    np.testing.assert_allclose(after[:, test[0]], before[:, test[0]], rtol=2e-3, atol=2e-3)


def test_squared_distances_are_euclidean_and_zero_to_themselves() -> None:
    rng = np.random.default_rng(0)
    A, B = (rng.normal(size=(n, 12)).astype(np.float32) for n in (30, 20))
    expected = euclidean_distances(A.astype(np.float64), B.astype(np.float64), squared=True)
    np.testing.assert_allclose(kernel_svm.squared_distances(A, B), expected, rtol=1e-5, atol=1e-5)
    assert not kernel_svm.squared_distances(A, A).diagonal().any()


def test_the_rows_blocks_do_not_change_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    from icecore.train import kernel_search

    X, y = clouds(3, 150)
    whole = score_folds(SPEC, X, y, values=POINTS, folds=folds_of(y), options=OPTIONS).scores
    monkeypatch.setattr(kernel_search, "BLOCK_ENTRIES", 700)
    split = score_folds(SPEC, X, y, values=POINTS, folds=folds_of(y), options=OPTIONS).scores
    np.testing.assert_allclose(split, whole, atol=1e-4)
