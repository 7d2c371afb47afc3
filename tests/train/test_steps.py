"""Preprocessing before the models: each model with each combination, held against plain pipelines of scikit-learn."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from icecore.train import Steps, TrainError, every_combination, inputs, train_models
from icecore.train.folds import make_folds
from icecore.train.inputs import components_of, inputs_of
from icecore.train.metrics import metric_score
from icecore.train.models import MODELS, BuildOptions, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from icecore.train.pairwise import PairwiseSVC
from icecore.train.search import search_setting
from icecore.train.transforms import SignedSquareRoot
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import estimator_checks_generator

from .test_linear_search import pooled

X, Y = pooled(3, 240, 20, signal=0.35)
FOLDS = make_folds(Y, classes=["a", "b", "c"], folds=3, seed=0)
COMBINATIONS = (
    Steps(signed_sqrt=True),
    Steps(l2_norm=True),
    Steps(scale="none"),
    Steps(pca=6),
    Steps(pca=6, whiten=True),
    Steps(signed_sqrt=True, l2_norm=True, scale="none", pca=8, whiten=True),
)
PLAIN = {
    "logistic_regression": (0.1, lambda: LogisticRegression(C=0.1, tol=1e-7, max_iter=20_000)),
    "linear_svm": (0.01, lambda: LinearSVC(C=0.01, dual=False, tol=1e-7, max_iter=20_000)),
    "ridge": (10.0, lambda: RidgeClassifier(alpha=10.0)),
    "rbf_svm": ((1.0, 1.0), lambda: PairwiseSVC(C=1.0, gamma="scale", decision_function_shape="ovo")),
}


def plain_steps(steps: Steps) -> list[BaseEstimator]:
    return [
        *([FunctionTransformer(lambda X: np.sign(X) * np.sqrt(np.abs(X)))] if steps.signed_sqrt else []),
        *([Normalizer()] if steps.l2_norm else []),
        *([StandardScaler()] if steps.scale == "standard" else []),
        *([PCA(steps.pca, whiten=steps.whiten, svd_solver="full")] if steps.pca else []),
    ]


UNSCALED = ("rbf_svm", Steps(scale="none"))
"""Its gamma counts multiples of another unit there: see the next test."""


@pytest.mark.parametrize(
    ("name", "steps"), [pair for pair in product(PLAIN, COMBINATIONS) if pair != UNSCALED], ids=str
)
def test_out_of_fold_calls_are_those_of_a_plain_pipeline(name: str, steps: Steps) -> None:
    value, build = PLAIN[name]
    found = score_folds(model_spec(name), X, Y, values=[value], folds=FOLDS, options=BuildOptions(steps=steps))
    called = found.scores[0].argmax(axis=1)
    differing = 0
    for train, test in FOLDS:
        plain = make_pipeline(*plain_steps(steps), build()).fit(X[train], Y[train])
        differing += int((plain.predict(X[test]) != called[test]).sum())
    assert differing <= 1


def test_gamma_is_in_units_of_the_spread_where_nothing_scales_the_features() -> None:
    options = BuildOptions(steps=Steps(scale="none"))
    near, _ = fit_pipeline(model_spec("rbf_svm"), X, Y, value=(1.0, 1.0), options=options)
    far, _ = fit_pipeline(model_spec("rbf_svm"), X + np.float32(50), Y, value=(1.0, 1.0), options=options)
    assert near["model"].gamma == pytest.approx(1 / X.var(axis=0).sum(), rel=1e-4)
    assert far["model"].gamma == pytest.approx(near["model"].gamma, rel=1e-3)


@pytest.mark.parametrize("steps", [*COMBINATIONS, Steps()], ids=str)
@pytest.mark.parametrize("name", list(MODELS))
def test_a_fitted_pipeline_takes_raw_features(name: str, steps: Steps) -> None:
    """What is fitted on the training rows of a fold gives the very scores that the search saw."""
    spec, options = model_spec(name), BuildOptions(steps=steps)
    train, test = FOLDS[0]
    value = tuple(v for v in (spec.grid[0], *(setting.default for setting in spec.also)))
    point = value if spec.also else value[0]
    found = score_folds(spec, X, Y, values=[point], folds=[FOLDS[0]], options=options)
    fitted, _ = fit_pipeline(spec, X[train], Y[train], value=point, options=options)
    called = fitted.predict(X[test])
    assert (called == found.scores[0, test].argmax(axis=1)).mean() >= 0.98


def test_components_and_scales_are_those_of_the_training_rows() -> None:
    train, test = FOLDS[0]
    spoiled = X.copy()
    spoiled[test] *= 1000
    options = BuildOptions(steps=Steps(pca=5, whiten=True))
    clean, _ = inputs_of(X, options).fold(train, test)
    other, _ = inputs_of(spoiled, options).fold(train, test)
    np.testing.assert_allclose(np.abs(other), np.abs(clean), atol=2e-3)
    exact = PCA(5, whiten=True, svd_solver="full").fit_transform(StandardScaler().fit_transform(X[train]))
    np.testing.assert_allclose(np.abs(clean), np.abs(exact), atol=2e-3)


def test_components_of_few_rows_are_those_of_the_covariance() -> None:
    rows = StandardScaler().fit_transform(pooled(2, 40, 200)[0])
    found = components_of(6, rows.shape, 0).fit(rows)
    exact = PCA(6, svd_solver="covariance_eigh").fit(rows.astype(np.float64))
    np.testing.assert_allclose(np.abs((found.components_ * exact.components_).sum(axis=1)), 1, atol=1e-3)
    assert components_of(60, rows.shape, 0).n_components == 39


def test_many_features_are_reduced_by_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = StandardScaler().fit_transform(X)
    exact = components_of(4, rows.shape, 0).fit(rows)
    monkeypatch.setattr(inputs, "EXACT_WIDTH", 10)
    sampled = components_of(4, rows.shape, 0).fit(rows)
    assert (exact.svd_solver, sampled.svd_solver) == ("covariance_eigh", "randomized")
    assert sampled.explained_variance_ratio_.sum() > 0.98 * exact.explained_variance_ratio_.sum()


@pytest.mark.parametrize("pca", [20, 500])
def test_more_components_than_there_are_keep_all(pca: int) -> None:
    A, _ = inputs_of(X, BuildOptions(steps=Steps(pca=pca))).fold(*FOLDS[0])
    assert A.shape[1] == 20


def test_every_combination_once_in_order() -> None:
    found = every_combination(l2_norm=[False, True], pca=[0, 4], whiten=[False, True])
    assert found[0] == Steps()
    assert len(found) == len(set(found)) == 6
    assert all(steps.pca for steps in found if steps.whiten)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "robust"}, "scale must be standard or none, found 'robust'"),
        ({"pca": -1}, "pca must be a whole number"),
        ({"pca": 0.5}, "pca must be a whole number"),
        ({"whiten": True}, "whiten needs principal components"),
    ],
)
def test_steps_that_mean_nothing_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Steps(**arguments)  # type: ignore[arg-type]


def test_steps_are_told_in_short() -> None:
    assert str(Steps(signed_sqrt=True, l2_norm=True, pca=64, whiten=True)) == "sqrt, L2, standard, PCA 64 whitened"
    assert str(Steps(scale="none")) == "none"


def test_the_signed_square_root_is_an_estimator_of_scikit_learn() -> None:
    for estimator, check in estimator_checks_generator(SignedSquareRoot()):
        check(estimator)


def test_the_search_chooses_the_steps_that_tell_classes_apart() -> None:
    """Classes that differ in direction only, at lengths that drown it."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    direction = np.stack([np.where(y, 1.0, 0.8), np.where(y, 0.8, 1.0)], axis=1) + rng.normal(size=(300, 2)) * 0.02
    rows = (direction * np.exp(rng.normal(size=(300, 1)) * 3)).astype(np.float32)
    folds = make_folds(y, classes=["a", "b"], folds=3, seed=0)
    scores = [
        search_setting(
            model_spec("nearest_mean"), rows, y, folds=folds, metric="accuracy", options=BuildOptions(steps=steps)
        ).best.mean
        for steps in (Steps(), Steps(l2_norm=True))
    ]
    assert scores[1] == pytest.approx(1.0, abs=0.01)
    assert scores[0] < 0.8


def test_cells_of_several_steps_and_a_bundle_that_takes_raw_features(store_path: Path) -> None:
    from icecore.store import FeatureStore
    from icecore.train import load_bundle, load_dataset

    tried = every_combination(l2_norm=[True], signed_sqrt=[True], pca=[0, 4])
    result = train_models(
        store_path, "photos", layers=["good"], models=["ridge", "xgboost"], steps=tried, folds=3, name="steps",
        report=True, save="all",
    )  # fmt: skip
    cells = sorted(result.cells, key=lambda cell: (cell.model, cell.steps.pca))
    tried_each = [(model, steps) for model in ("ridge", "xgboost") for steps in tried]
    assert [(cell.model, cell.steps) for cell in cells] == tried_each
    with FeatureStore.open(store_path) as store:
        data = load_dataset(store, "photos", ["good"])
    rows, y = data.held_out()
    for cell, path in zip(result.cells, result.bundles, strict=True):
        loaded = load_bundle(path)
        assert loaded.card["steps"] == cell.steps.to_json()
        called = loaded.predict_proba(rows).argmax(axis=1)
        assert metric_score("accuracy", y, called, None) == cell.evaluation.accuracy


def test_no_steps_at_all_are_refused(store_path: Path) -> None:
    with pytest.raises(TrainError, match="steps: give at least one"):
        train_models(store_path, "photos", layers=["good"], steps=[])


def rows_of(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)


def test_the_signed_square_root_keeps_signs_and_types() -> None:
    rows = rows_of(0)
    found = SignedSquareRoot().fit_transform(rows)
    np.testing.assert_array_equal(np.sign(found), np.sign(rows))
    np.testing.assert_allclose(found**2, np.abs(rows), rtol=1e-6)
    assert found.dtype == np.float32
