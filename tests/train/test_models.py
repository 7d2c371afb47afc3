"""Every model gives probabilities that agree with what it calls, the same for the same seed."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from icecore.train import MODELS, FoldError, UnknownModelError
from icecore.train.folds import make_folds
from icecore.train.metrics import METRICS
from icecore.train.models import BuildOptions, ModelSpec, model_spec
from icecore.train.pairwise import PairwiseSVC
from icecore.train.search import Fitted, fit_model, search_setting
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

OPTIONS = BuildOptions(seed=0)


def clouds(k: int, n: int = 90, width: int = 8, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    X = rng.normal(size=(k, width))[y] * 1.0 + rng.normal(size=(n, width))
    return (X * 50 + 7).astype(np.float32), y


def fit(
    spec: ModelSpec,
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    value: float,
    options: BuildOptions = OPTIONS,
) -> Fitted:
    folds = make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=3, seed=0)
    return fit_model(spec, X, y, value=value, folds=folds, options=options)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_gives_probabilities_and_repeats_itself(name: str, k: int) -> None:
    X, y = clouds(k)
    spec = model_spec(name)
    fitted = [fit(spec, X[:60], y[:60], spec.grid[1]) for _ in range(2)]
    proba = fitted[0].predict_proba(X[60:])
    assert proba.shape == (30, k)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    machine = getattr(fitted[0].model, "model", fitted[0].model)  # inside the calibration, where there is one
    np.testing.assert_array_equal(machine.predict(fitted[0].steps.transform(X[60:])), proba.argmax(axis=1))
    np.testing.assert_array_equal(proba, fitted[1].predict_proba(X[60:]))
    assert (proba.argmax(axis=1) == y[60:]).mean() > 0.6


@pytest.mark.parametrize("name", list(MODELS))
def test_balanced_weights_find_more_of_a_rare_class(name: str) -> None:
    rng = np.random.default_rng(4)
    y = (rng.random(1200) < 0.1).astype(np.int64)
    X = (rng.normal(size=(1200, 4)) + y[:, None] * 0.8).astype(np.float32)
    spec, rare = model_spec(name), y[600:] == 1
    found = {
        weight: fit(spec, X[:600], y[:600], spec.grid[1], BuildOptions(class_weight=weight)).predict_proba(X[600:])
        for weight in (None, "balanced")
    }  # type: ignore[misc]
    recall = {weight: proba.argmax(axis=1)[rare].mean() for weight, proba in found.items()}
    assert recall["balanced"] > recall[None] + 0.1


def test_the_search_equals_plain_scikit_learn() -> None:
    X, y = clouds(3)
    folds = make_folds(y, classes=["a", "b", "c"], folds=4, seed=7)
    found = search_setting(
        model_spec("logistic_regression"), X, y, folds=folds, metric="accuracy", options=OPTIONS, grid=[0.01, 1, 100]
    )
    plain = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": [0.01, 1, 100]},
        cv=StratifiedKFold(4, shuffle=True, random_state=7),
    ).fit(X, y)
    assert [point.mean for point in found.grid] == pytest.approx(plain.cv_results_["mean_test_score"])
    assert found.best.value == plain.best_params_["logisticregression__C"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["linear_svm", "logistic_regression"])
def test_every_metric_can_choose(name: str, metric: str) -> None:
    X, y = clouds(3)
    folds = make_folds(y, classes=["a", "b", "c"], folds=3, seed=0)
    found = search_setting(
        model_spec(name),
        X,
        y,
        folds=folds,
        metric=metric,
        options=OPTIONS,
        grid=[1e-4, 1e-1],  # type: ignore[arg-type]
    )
    assert found.best.mean > 0
    pick = min if metric == "log_loss" else max
    assert found.best.mean == pick(point.mean for point in found.grid)


def test_ties_go_to_the_simplest_setting() -> None:
    X, y = clouds(2)
    X += 1000 * y[:, None]  # so far apart that every setting is perfect
    folds = make_folds(y, classes=["a", "b"], folds=3, seed=0)
    found = search_setting(model_spec("rbf_svm"), X, y, folds=folds, metric="accuracy", options=OPTIONS)
    assert {point.mean for point in found.grid} == {1.0}
    assert found.best.value == model_spec("rbf_svm").grid[0]
    assert "edge of the grid" in found.notes[-1]


def test_a_solver_that_stops_early_is_noted_and_warns_nobody() -> None:
    X, y = clouds(2)
    hasty = replace(model_spec("linear_svm"), build=lambda _: LinearSVC(dual=True, max_iter=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fit(hasty, X, y, 1.0)
    assert any("did not converge" in note for note in found.notes)


def test_folds_refuse_a_class_with_too_few_rows() -> None:
    with pytest.raises(FoldError, match=r"class 'b' has 3 training rows, fewer than the 5 folds.*train\.folds=3") as e:
        make_folds(np.array([0] * 9 + [1] * 3), classes=["a", "b"], folds=5, seed=0)
    assert (e.value.label, e.value.count, e.value.folds) == ("b", 3, 5)


def test_folds_refuse_a_class_with_one_row() -> None:
    with pytest.raises(FoldError, match=r"class 'b' has 1 training rows.*add some, or remove the class"):
        make_folds(np.array([0] * 9 + [1]), classes=["a", "b"], folds=2, seed=0)


def test_folds_keep_groups_together() -> None:
    y = np.arange(60) % 2
    groups = [f"g{i // 4}" for i in range(60)]
    for train, test in make_folds(y, classes=["a", "b"], folds=3, seed=0, groups=groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}


def test_folds_refuse_a_class_with_too_few_groups() -> None:
    groups = [f"g{i}" for i in range(10)] + ["one"] * 10
    with pytest.raises(FoldError, match="class 'b' has 1 groups of training rows"):
        make_folds(np.array([0] * 10 + [1] * 10), classes=["a", "b"], folds=3, seed=0, groups=groups)


def test_pairwise_decoding_is_plain_svc_for_two_classes() -> None:
    X, y = clouds(2)
    ours, plain = PairwiseSVC(decision_function_shape="ovo").fit(X, y), SVC().fit(X, y)
    np.testing.assert_array_equal(ours.decision_function(X), plain.decision_function(X))
    np.testing.assert_array_equal(ours.predict(X), plain.predict(X))


def test_pairwise_decoding_calls_as_votes_do_and_gives_better_probabilities() -> None:
    X, y = clouds(5, 500, seed=3)
    X = StandardScaler().fit_transform(X)
    losses = []
    for machine in (PairwiseSVC(decision_function_shape="ovo"), SVC(break_ties=True)):
        model = CalibratedClassifierCV(machine, method="temperature", ensemble=False, cv=3).fit(X[:300], y[:300])
        proba = model.predict_proba(X[300:])
        losses.append(-np.log(proba[np.arange(200), y[300:]]).mean())
    agree = PairwiseSVC(decision_function_shape="ovo").fit(X[:300], y[:300]).predict(X[300:])
    assert (agree == SVC().fit(X[:300], y[:300]).predict(X[300:])).mean() > 0.95
    assert losses[0] < losses[1]


def test_an_unknown_model_lists_those_there_are() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'xgbost'; there are .*did you mean 'xgboost'"):
        model_spec("xgbost")
