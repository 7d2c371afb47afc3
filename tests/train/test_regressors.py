"""The regressors' solvers against plain scikit-learn and XGBoost on the same folds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import serial
from icecore.train.folds import Fold
from icecore.train.models import BuildOptions
from icecore.train.number_booster import NumberBooster
from icecore.train.out_of_fold import fit_pipeline, score_folds
from icecore.train.regression import TASK
from icecore.train.settings import params_of
from icecore.train.steps import Steps
from numpy.typing import NDArray
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVR, LinearSVR
from xgboost import XGBRegressor

OPTIONS = BuildOptions()
POINTS: dict[str, list[Any]] = {
    "ridge": [1e3, 10.0, 0.1],
    "linear_svr": [(1e-3, 0.1), (0.1, 0.5)],
    "knn": [20, 1000, 3],
    "rbf_svr": [(0.5, 0.3, 0.2), (20.0, 0.3, 0.2), (2.0, 1.0, 0.05), (2.0, 1.0, 0.3)],
    "xgboost": [(2, 0.2, 12), (2, 0.2, 4), (3, 0.2, 5)],
}


def numbers(n: int = 150, width: int = 20) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """A number in a unit of its own, far from zero, that features tell."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, width)) * rng.uniform(0.1, 20, width) + 300
    X[:, 3] = 7  # a dead feature
    target = StandardScaler().fit_transform(X) @ rng.normal(size=width) + rng.normal(size=n)
    return X.astype(np.float32), target * 250 + 4_000


def folds_of(y: NDArray[np.float64]) -> tuple[Fold, ...]:
    return TASK.make_folds(y, names=("age",), folds=3, seed=1, groups=None)


def plain(name: str, value: Any, width: int, n: int) -> Any:
    """The same model, as a user of scikit-learn would write it."""
    point = params_of(TASK.models[name], value)
    if name == "ridge":
        return make_pipeline(StandardScaler(), Ridge(**point))
    if name == "knn":
        number = min(int(point["n_neighbors"]), n)
        return make_pipeline(StandardScaler(), KNeighborsRegressor(number, weights="distance", metric="cosine"))
    if name == "xgboost":
        booster = XGBRegressor(
            tree_method="hist", max_bin=32, subsample=0.8, colsample_bynode=min(1, 32 / width), random_state=0,
            n_jobs=1, **point,
        )  # fmt: skip
        return make_pipeline(StandardScaler(), booster)
    if name == "linear_svr":
        machine = LinearSVR(loss="squared_epsilon_insensitive", dual=False, tol=1e-6, max_iter=50_000, **point)
    else:
        machine = SVR(C=point["C"], epsilon=point["epsilon"], gamma=point["gamma_scale"] / (width - 1))
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), machine), transformer=StandardScaler())


@pytest.mark.parametrize("name", list(TASK.models))
def test_out_of_fold_predictions_are_those_of_plain_fits(name: str) -> None:
    X, y = numbers()
    folds, before = folds_of(y), X.copy()
    found = score_folds(TASK.models[name], X, y, values=POINTS[name], folds=folds, options=OPTIONS)
    np.testing.assert_array_equal(X, before)
    assert found.scores.shape == (len(POINTS[name]), len(y), 1)
    loose = 15 if name == "xgboost" else 2  # of a spread of 1,200: float32, and liblinear's and libsvm's tolerances
    for value, scores in zip(POINTS[name], found.scores, strict=True):
        for train, test in folds:
            expected = plain(name, value, X.shape[1], len(train)).fit(X[train].astype(np.float64), y[train])
            np.testing.assert_allclose(scores[test, 0], expected.predict(X[test].astype(np.float64)), atol=loose)


@pytest.mark.parametrize("name", list(TASK.models))
def test_the_final_model_is_the_libraries_own_and_is_kept(name: str, tmp_path: Path) -> None:
    X, y = numbers()
    value = POINTS[name][-1]
    fitted, notes = fit_pipeline(TASK.models[name], X, y, value=value, options=OPTIONS)
    assert notes == ()
    assert isinstance(fitted["model"], NumberBooster) or type(fitted["model"]).__module__.startswith("sklearn.")
    expected = plain(name, value, X.shape[1], len(y)).fit(X.astype(np.float64), y).predict(X.astype(np.float64))
    np.testing.assert_allclose(fitted.predict(X), expected, atol=15 if name == "xgboost" else 2)
    serial.save_skops(fitted[:-1], tmp_path / "steps.skops")
    steps = serial.load_skops(tmp_path / "steps.skops")
    if name == "xgboost":
        serial.save_xgboost(fitted["model"], tmp_path / "model.json")
        model: Any = serial.load_xgboost(tmp_path / "model.json")
    else:
        serial.save_skops(fitted["model"], tmp_path / "model.skops")
        model = serial.load_skops(tmp_path / "model.skops")
    np.testing.assert_allclose(model.predict(steps.transform(X)), fitted.predict(X), rtol=1e-5)


@pytest.mark.parametrize("name", list(TASK.models))
def test_a_fold_knows_nothing_of_the_rows_that_it_is_validated_on(name: str) -> None:
    X, y = numbers()
    train, test = folds_of(y)[0]
    spoilt, others = X.copy(), y.copy()
    spoilt[test[1:]] = X[test[1:]] * 40 + 900
    others[test] = -y[test]
    spec, values = TASK.models[name], POINTS[name]
    before = score_folds(spec, X, y, values=values, folds=[(train, test)], options=OPTIONS).scores
    after = score_folds(spec, spoilt, others, values=values, folds=[(train, test)], options=OPTIONS).scores
    np.testing.assert_allclose(after[:, test[0]], before[:, test[0]], rtol=2e-3)  # rounding of another common offset


def test_ridge_with_fewer_rows_than_features_is_scikit_learns() -> None:
    X, y = numbers(40, 90)
    folds = folds_of(y)
    [scores] = score_folds(TASK.models["ridge"], X, y, values=[5.0], folds=folds, options=OPTIONS).scores
    fitted, _ = fit_pipeline(TASK.models["ridge"], X, y, value=5.0, options=OPTIONS)
    whole = plain("ridge", 5.0, 90, 40).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(fitted["model"].coef_, whole["ridge"].coef_, atol=0.5)
    for train, test in folds:
        expected = plain("ridge", 5.0, 90, 40).fit(X[train].astype(np.float64), y[train])
        np.testing.assert_allclose(scores[test, 0], expected.predict(X[test].astype(np.float64)), atol=2)


def test_ridge_of_a_part_of_a_fold_is_fitted_on_that_part() -> None:
    """As a learning curve asks: the rows left out of training are not validated either."""
    X, y = numbers()
    parts = [(train[::2], test) for train, test in folds_of(y)]
    [scores] = score_folds(TASK.models["ridge"], X, y, values=[1.0], folds=parts, options=OPTIONS).scores
    for train, test in parts:
        expected = plain("ridge", 1.0, X.shape[1], len(train)).fit(X[train].astype(np.float64), y[train])
        np.testing.assert_allclose(scores[test, 0], expected.predict(X[test].astype(np.float64)), atol=2)


def test_ridge_sums_features_anew_that_a_difference_would_cancel() -> None:
    X, y = numbers()
    train, test = folds_of(y)[0]
    X[test, 5] += (X[test, 5] - 300) * 400  # nearly all of its spread lies outside the training part
    found = score_folds(TASK.models["ridge"], X, y, values=[1.0], folds=folds_of(y), options=OPTIONS).scores[0]
    expected = plain("ridge", 1.0, X.shape[1], len(train)).fit(X[train].astype(np.float64), y[train])
    told = expected.predict(X[test].astype(np.float64))
    np.testing.assert_allclose(found[test, 0], told, rtol=1e-3)


@pytest.mark.parametrize("name", ["ridge", "rbf_svr", "knn"])
def test_steps_come_before_every_regressor(name: str) -> None:
    X, y = numbers()
    options, value, folds = BuildOptions(steps=Steps(l2_norm=True, pca=6)), POINTS[name][-1], folds_of(y)
    [scores] = score_folds(TASK.models[name], X, y, values=[value], folds=folds, options=options).scores
    fitted, _ = fit_pipeline(TASK.models[name], X, y, value=value, options=options)
    before = [Normalizer(), StandardScaler(), PCA(6)]
    for train, test in folds:
        pipeline = Pipeline([(str(i), step) for i, step in enumerate(before)])
        A = pipeline.fit_transform(X[train].astype(np.float64))
        held_out = pipeline.transform(X[test].astype(np.float64))
        t = (y[train] - y[train].mean()) / y[train].std()
        if name == "ridge":
            model: Any = Ridge(alpha=value)
        elif name == "knn":
            model = KNeighborsRegressor(value, weights="distance", metric="cosine")
        else:
            model = SVR(C=value[0], gamma=value[1] / A.var(axis=0).sum(), epsilon=value[2])
        expected = model.fit(A, t).predict(held_out) * y[train].std() + y[train].mean()
        np.testing.assert_allclose(scores[test, 0], expected, atol=5)
    assert fitted.predict(X).shape == (len(y),)


def test_numbers_far_from_zero_keep_their_digits() -> None:
    """Seconds since 1970: float32 would round them to two minutes."""
    X, y = numbers()
    y = y / 1_000 + 1.7e9
    for name in ("ridge", "linear_svr", "knn", "rbf_svr"):
        scores = score_folds(
            TASK.models[name], X, y, values=POINTS[name][-1:], folds=folds_of(y), options=OPTIONS
        ).scores
        assert np.sqrt(((scores[0, :, 0] - y) ** 2).mean()) < 1.2 * y.std()


@pytest.mark.parametrize("name", list(TASK.models))
@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (60.0, 1.7e9), (1.0, 1e7)])
def test_the_unit_of_the_numbers_does_not_matter(name: str, scale: float, shift: float, tmp_path: Path) -> None:
    X, y = numbers()
    spec, folds, value = TASK.models[name], folds_of(y), POINTS[name][0]
    plain = score_folds(spec, X, y, values=[value], folds=folds, options=BuildOptions()).scores[0, :, 0]
    turned = y * scale + shift
    ours = score_folds(spec, X, turned, values=[value], folds=folds, options=BuildOptions()).scores[0, :, 0]
    np.testing.assert_allclose((ours - shift) / scale, plain, atol=0.02 * y.std())
    fitted, _ = fit_pipeline(spec, X, turned, value=value, options=BuildOptions())
    back = (fitted.predict(X) - shift) / scale
    assert np.corrcoef(back, y)[0, 1] > 0.5
    if name == "xgboost":
        serial.save_xgboost(fitted["model"], tmp_path / "model.json")
        kept = serial.load_xgboost(tmp_path / "model.json").predict(fitted[:-1].transform(X))
        np.testing.assert_allclose(kept, fitted.predict(X), rtol=1e-12)
