"""The quick linear solvers against scikit-learn's estimators in plain pipelines, on features that are hard for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from icecore.train.folds import Fold, make_folds
from icecore.train.models import BuildOptions, ModelSpec, model_spec
from icecore.train.out_of_fold import fit_pipeline, plain_scores, score_folds
from icecore.train.search import search_setting
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

Data = tuple[NDArray[np.float32], NDArray[np.int64]]
NAMES = ("logistic_regression", "linear_svm", "ridge")
OPTIONS = BuildOptions()


def pooled(k: int, n: int, width: int, *, seed: int = 0, signal: float = 0.6) -> Data:
    """Non-negative features with a falling spectrum, as pooled maps after a ReLU have."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    scales = np.arange(1, width + 1) ** -0.5
    latent = (rng.normal(size=(n, width)) + signal * rng.normal(size=(k, width))[y]) * scales
    mixed = latent @ rng.normal(size=(width, width))
    return np.maximum(mixed + rng.normal(size=width), 0).astype(np.float32), y


def ordinary(k: int = 4) -> Data:
    return pooled(k, 400, 30)


def offset() -> Data:
    """A common offset thousands of times the spread, which costs float32 half its digits."""
    X, y = pooled(4, 400, 30)
    return X + np.float32(3_000), y


def wide() -> Data:
    return pooled(4, 120, 300)


def with_constants() -> Data:
    X, y = pooled(4, 400, 30)
    X[:, 3], X[:, 7], X[:, 11] = 0, 0.1, 5_000.1
    return X, y


def unbalanced() -> Data:
    X, y = pooled(5, 600, 30)
    keep = (y != 2) | (np.arange(600) % 60 == 2)  # ten rows of class 2
    return X[keep], y[keep]


CASES = {"ordinary": ordinary, "offset": offset, "wide": wide, "constants": with_constants, "unbalanced": unbalanced}


def folds_of(y: NDArray[np.int64], folds: int = 4) -> tuple[Fold, ...]:
    return make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=folds, seed=3)


def exact(spec: ModelSpec, value: float, options: BuildOptions) -> Pipeline:
    """The model as scikit-learn fits it, with tight tolerance."""
    if spec.name == "logistic_regression":
        model = LogisticRegression(C=value, tol=1e-8, max_iter=20_000, class_weight=options.class_weight)
    elif spec.name == "ridge":
        model = RidgeClassifier(alpha=value, class_weight=options.class_weight)
    else:
        model = LinearSVC(C=value, dual=False, tol=1e-8, max_iter=20_000, class_weight=options.class_weight)
    return make_pipeline(StandardScaler(), model)


def objective(spec: ModelSpec, fitted: Pipeline, X: NDArray[Any], y: NDArray[np.int64], options: BuildOptions) -> float:
    """What scikit-learn's documentation says is minimised, written out in float64."""
    scale, model = fitted[0], fitted[-1]
    A = (X.astype(np.float64) - scale.mean_) / scale.scale_
    scores = A @ model.coef_.T.astype(np.float64) + model.intercept_
    k = int(y.max()) + 1
    weights = np.ones(k) if options.class_weight is None else len(y) / (k * np.bincount(y))
    size = (model.coef_.astype(np.float64) ** 2).sum() / 2
    if spec.name == "logistic_regression":
        logits = np.column_stack((np.zeros(len(y)), scores)) if k == 2 else scores
        losses = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
        return float(size + model.C * (weights[y] * (losses - logits[np.arange(len(y)), y])).sum())
    is_class = (y[:, None] == np.arange(k))[:, 1 if k == 2 else 0 :]
    targets = np.where(is_class, 1, -1)
    if spec.name == "ridge":
        return float(model.alpha * size * 2 + (weights[y][:, None] * (targets - scores) ** 2).sum())
    size += (model.intercept_.astype(np.float64) ** 2).sum() / 2
    losses = np.maximum(0, 1 - targets * scores) ** 2
    by_row = (
        weights[y][:, None] if k == 2 else np.where(is_class, weights, 1)
    )  # liblinear: of several, the rest counts 1
    return float(size + model.C * (by_row * losses).sum())


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("case", [*CASES, "two"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_minimised_is_what_scikit_learn_minimises(name: str, case: str, weight: Any) -> None:
    X, y = ordinary(2) if case == "two" else CASES[case]()
    spec, options = model_spec(name), BuildOptions(class_weight=weight)
    for value in (spec.grid[1], spec.grid[3]):
        ours, notes = fit_pipeline(spec, X, y, value=value, options=options)
        witness = exact(spec, value, options).fit(X.astype(np.float64), y)
        least = objective(spec, witness, X, y, options)
        assert objective(spec, ours, X, y, options) <= least * (1 + 1e-3)
        assert (ours.predict(X) != witness.predict(X)).mean() <= 0.005
        assert not notes


@pytest.mark.parametrize("case", [*CASES, "two"])
@pytest.mark.parametrize("name", NAMES)
def test_out_of_fold_scores_are_those_of_plain_fits(name: str, case: str) -> None:
    X, y = ordinary(2) if case == "two" else CASES[case]()
    spec, folds = model_spec(name), folds_of(y, 2)
    values = (spec.grid[3], spec.grid[1])  # in no order
    before = X.copy()
    ours = score_folds(spec, X, y, values=values, folds=folds, options=OPTIONS)
    np.testing.assert_array_equal(X, before)
    assert ours.scores.shape == (2, len(y), 1 if case == "two" else y.max() + 1)
    assert ours.scores.dtype == np.float32
    for value, scores in zip(values, ours.scores, strict=True):
        for train, test in folds:
            plain = exact(spec, value, OPTIONS).fit(X[train].astype(np.float64), y[train]).decision_function(X[test])
            plain = plain[:, None] if plain.ndim == 1 else plain
            difference = np.abs(scores[test] - plain).mean()
            assert difference <= 0.02 * np.abs(plain).mean()
            called = [s.argmax(1) if s.shape[1] > 1 else s[:, 0] > 0 for s in (scores[test], plain)]
            assert (called[0] != called[1]).mean() <= 0.03  # of 30 to 100 rows


@pytest.mark.parametrize("name", NAMES)
def test_a_fold_knows_nothing_of_the_rows_that_it_is_validated_on(name: str) -> None:
    """With other rows beside them, far away and of other classes, validation rows get the scores that they had."""
    X, y = ordinary()
    train, test = folds_of(y)[0]
    n, spec = len(y), model_spec(name)
    fold = (train, np.concatenate((test, np.arange(n, n + 100))))
    scores = []
    for beside, classes in ((X[test], y[test]), (X[test] * 40 + 900, (y[test] + 1) % 4)):
        both, labels = np.concatenate((X, beside)), np.concatenate((y, classes))
        found = score_folds(spec, both, labels, values=spec.grid[1:4], folds=[fold], options=OPTIONS)
        scores.append(found.scores[:, test])
    np.testing.assert_allclose(scores[0], scores[1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
def test_the_search_scores_as_plain_fits_do(name: str, metric: Any) -> None:
    X, y = pooled(5, 600, 40, signal=0.4)
    spec, folds = model_spec(name), folds_of(y)
    ours = search_setting(spec, X, y, folds=folds, metric=metric, options=OPTIONS)
    plain = search_setting(replace(spec, solver=None), X, y, folds=folds, metric=metric, options=OPTIONS)
    for mine, theirs in zip(ours.grid, plain.grid, strict=True):
        assert mine.mean == pytest.approx(theirs.mean, abs=0.002 if metric == "accuracy" else 0.01)
    assert ours.best.mean == pytest.approx(plain.best.mean, abs=0.002 if metric == "accuracy" else 0.01)


@pytest.mark.parametrize("name", NAMES)
def test_the_final_fit_is_the_same_from_the_folds_and_from_nothing(name: str) -> None:
    X, y = ordinary()
    spec = model_spec(name)
    found = score_folds(spec, X, y, values=spec.grid[2:3], folds=folds_of(y), options=OPTIONS)
    assert found.starts is not None
    warm, _ = fit_pipeline(spec, X, y, value=spec.grid[2], options=OPTIONS, start=found.starts[0])
    cold, _ = fit_pipeline(spec, X, y, value=spec.grid[2], options=OPTIONS)
    assert (warm.predict(X) == cold.predict(X)).mean() >= 0.995
    np.testing.assert_allclose(warm.decision_function(X), cold.decision_function(X), atol=0.02)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_result_is_scikit_learns_own_estimator(name: str, k: int) -> None:
    X, y = ordinary(k)
    ours, _ = fit_pipeline(model_spec(name), X, y, value=1e-3, options=OPTIONS)
    plain = plain_fit_of(name, X, y)
    assert [type(step) for _, step in ours.steps] == [type(step) for _, step in plain.steps]
    assert set(vars(ours["model"])) == set(vars(plain["model"]))
    for attribute in ("coef_", "intercept_", "classes_", "n_iter_"):
        mine, theirs = (np.asarray(getattr(fitted["model"], attribute)) for fitted in (ours, plain))
        assert mine.shape == theirs.shape, attribute
        assert mine.dtype.kind == theirs.dtype.kind, attribute
    np.testing.assert_array_equal(ours.predict(X[:9]), ours["model"].classes_[_called(ours, X[:9])])
    np.testing.assert_array_equal(ours["scale"].mean_, plain["scale"].mean_)


def _called(fitted: Pipeline, X: NDArray[np.float32]) -> NDArray[Any]:
    scores = fitted.decision_function(X)
    return scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(int)


def plain_fit_of(name: str, X: NDArray[np.float32], y: NDArray[np.int64]) -> Pipeline:
    from icecore.train.out_of_fold import plain_fit

    return plain_fit(model_spec(name), X, y, value=1e-3, options=OPTIONS)[0]


def test_too_few_iterations_are_noted_with_their_number() -> None:
    X, y = ordinary()
    spec = replace(model_spec("logistic_regression"), build=lambda _: LogisticRegression(max_iter=2))
    found = score_folds(spec, X, y, values=(0.1,), folds=folds_of(y), options=OPTIONS)
    assert found.notes == ("did not converge: LogisticRegression was stopped after 2 iterations",)


def test_plain_scores_of_a_model_without_a_decision_function_are_logits() -> None:
    X, y = ordinary()
    folds = folds_of(y)
    spec = replace(model_spec("xgboost"), also=())
    found = plain_scores(spec, X, y, values=(2,), folds=folds, options=OPTIONS)
    train, test = folds[0]
    model = model_spec("xgboost").build(OPTIONS).set_params(max_depth=2)
    proba = make_pipeline(StandardScaler(), model).fit(X[train], y[train]).predict_proba(X[test])
    np.testing.assert_allclose(np.exp(found.scores[0][test]), proba, rtol=1e-5)


def test_features_that_vary_in_the_validation_rows_only_are_constant_for_their_fold() -> None:
    """Taken as a difference of sums, what is left of their variance would be rounding."""
    X, y = ordinary()
    folds = folds_of(y)
    spoilt = X.copy()
    test = folds[0][1]
    spoilt[:, 5] = 2
    spoilt[test[0], 5] = 30_000
    spoilt[:, 6] = np.where(np.isin(np.arange(len(y)), test), X[:, 6] * 1e4, X[:, 6])
    spec = model_spec("ridge")
    found = score_folds(spec, spoilt, y, values=(10.0,), folds=folds, options=OPTIONS).scores[0]
    for train, part in folds:
        witness = exact(spec, 10.0, OPTIONS).fit(spoilt[train].astype(np.float64), y[train])
        np.testing.assert_allclose(found[part], witness.decision_function(spoilt[part]), rtol=1e-2, atol=1e-3)


def test_a_penalty_too_weak_for_float32_still_gives_ridge() -> None:
    X, y = ordinary()
    X = np.column_stack((X, X, X[:, :3])).astype(np.float32)  # singular but for the penalty
    ours, _ = fit_pipeline(model_spec("ridge"), X, y, value=1e-5, options=OPTIONS)
    witness = exact(model_spec("ridge"), 1e-5, OPTIONS).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.decision_function(X), witness.decision_function(X), atol=2e-3)
