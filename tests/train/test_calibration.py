"""Probabilities are calibrated on rows, and groups, that the model never saw; scikit-learn is the witness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from icecore.train.calibration import Calibrated, fit_temperature, scaled_softmax
from icecore.train.folds import make_folds
from icecore.train.metrics import evaluate
from icecore.train.models import BuildOptions, model_spec
from icecore.train.search import fit_model, search_setting
from icecore.train.serial import load_skops, save_skops
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

OPTIONS = BuildOptions(seed=0)
SVMS = {"linear_svm": 1e-3, "rbf_svm": 1.0}


def photo_series(n_groups: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Twelve near-copies of each of a few scenes: rows of a scene say almost the same."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n_groups) % 2
    scenes = rng.normal(size=(n_groups, 60)) + 0.35 * labels[:, None]
    scene = np.repeat(np.arange(n_groups), 12)
    X = scenes[scene] + 0.15 * rng.normal(size=(len(scene), 60))
    return X.astype(np.float32), labels[scene], [str(i) for i in scene]


@pytest.mark.parametrize("name", list(SVMS))
def test_copies_of_a_scene_do_not_make_probabilities_too_sure(name: str) -> None:
    """Calibrated on shuffled rows instead of groups, the linear SVM's log loss was 4.4 and the RBF SVM's 4.3."""
    X, y, groups = photo_series(30, seed=1)
    X_new, y_new, _ = photo_series(200, seed=101)
    folds = make_folds(y, classes=("a", "b"), folds=5, seed=0, groups=groups)
    fitted = fit_model(model_spec(name), X, y, value=SVMS[name], folds=folds, options=OPTIONS)
    assert evaluate(y_new, fitted.predict_proba(X_new), ("a", "b")).log_loss < 0.6


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", list(SVMS))
def test_probabilities_equal_scikit_learns_with_the_scaler_inside_the_folds(name: str, k: int) -> None:
    rng = np.random.default_rng(k)
    y = np.arange(90) % k
    X = (rng.normal(size=(k, 8))[y] + rng.normal(size=(90, 8)) * 2).astype(np.float32)
    folds = make_folds(y[:60], classes=list("abc")[:k], folds=3, seed=0)
    ours = fit_model(model_spec(name), X[:60], y[:60], value=SVMS[name], folds=folds, options=OPTIONS)
    machine = model_spec(name).build(OPTIONS).set_params(C=SVMS[name])
    pipeline = make_pipeline(StandardScaler(), machine)
    witness = CalibratedClassifierCV(pipeline, method="temperature", ensemble=False, cv=list(folds)).fit(X[:60], y[:60])
    # Both solvers of the linear SVM stop at a tolerance.
    np.testing.assert_allclose(ours.predict_proba(X[60:]), witness.predict_proba(X[60:]), atol=1e-4)


@pytest.mark.parametrize("name", list(SVMS))
@pytest.mark.parametrize("n", [5, 6])
def test_log_loss_can_choose_an_svm_with_as_few_rows_as_folds(name: str, n: int) -> None:
    y = np.repeat([0, 1], [40, n])
    X = (np.random.default_rng(0).normal(size=(len(y), 6)) + y[:, None]).astype(np.float32)
    folds = make_folds(y, classes=("a", "b"), folds=5, seed=0)
    found = search_setting(model_spec(name), X, y, folds=folds, metric="log_loss", options=OPTIONS)
    assert 0 < found.best.mean < 1
    assert found.best.mean == min(point.mean for point in found.grid)


def test_the_log_loss_that_chooses_is_honest_about_groups() -> None:
    X, y, groups = photo_series(30, seed=1)
    X_new, y_new, _ = photo_series(200, seed=101)
    folds = make_folds(y, classes=("a", "b"), folds=5, seed=0, groups=groups)
    spec = model_spec("linear_svm")
    found = search_setting(spec, X, y, folds=folds, metric="log_loss", options=OPTIONS, grid=[1e-3])
    fitted = fit_model(spec, X, y, value=1e-3, folds=folds, options=OPTIONS)
    told = evaluate(y_new, fitted.predict_proba(X_new), ("a", "b")).log_loss
    assert found.best.mean == pytest.approx(told, abs=0.15)


def test_a_temperature_is_the_one_of_least_loss() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 3)) * 5
    y = np.array([rng.choice(3, p=p) for p in scaled_softmax(scores, 0.3)])
    beta = fit_temperature(scores, y)

    def loss(value: float) -> float:
        return float(-np.log(scaled_softmax(scores, value)[np.arange(400), y]).mean())

    assert beta == pytest.approx(0.3, rel=0.2)
    assert loss(beta) <= min(loss(beta * 0.99), loss(beta * 1.01))


def test_scores_that_are_all_right_give_finite_probabilities() -> None:
    scores = np.array([-2.0, -1.0, 1.0, 2.0])
    proba = scaled_softmax(scores, fit_temperature(scores, np.array([0, 0, 1, 1])))
    assert np.isfinite(proba).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_a_saved_model_holds_no_training_rows(tmp_path: Path) -> None:
    y = np.arange(4000) % 2
    X = (np.random.default_rng(0).normal(size=(4000, 3)) + y[:, None]).astype(np.float32)
    folds = make_folds(y, classes=("a", "b"), folds=5, seed=0)
    model = fit_model(model_spec("linear_svm"), X, y, value=1e-3, folds=folds, options=OPTIONS).model
    save_skops(model, tmp_path / "model.skops")
    assert (tmp_path / "model.skops").stat().st_size < 20_000  # the positions of the folds alone are 160,000
    loaded = load_skops(tmp_path / "model.skops")
    assert isinstance(loaded, Calibrated)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
