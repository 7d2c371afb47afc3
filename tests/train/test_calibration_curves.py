"""Sigmoid and isotonic probabilities, held against scikit-learn's on the same out-of-fold scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import TrainError, load_bundle, load_dataset, train_models
from icecore.train.calibration_curves import CurveMethod, Curves, SigmoidCurve, StepCurve, fit_curves
from icecore.train.folds import make_folds
from icecore.train.metrics import evaluate
from icecore.train.models import MODELS, BuildOptions, model_spec
from icecore.train.search import fit_model, search_setting
from icecore.train.serial import load_skops, save_skops
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from .test_linear_search import pooled

METHODS: tuple[CurveMethod, ...] = ("sigmoid", "isotonic")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [2, 3])
def test_probabilities_are_those_of_scikit_learn(method: CurveMethod, k: int) -> None:
    X, y = pooled(k, 400, 12, signal=0.35)
    ours = fit_model(
        model_spec("linear_svm"), X[:300], y[:300], value=0.01, options=BuildOptions(calibration=method),
        folds=(small := make_folds(y[:300], classes=[str(i) for i in range(k)], folds=4, seed=0)),
    )  # fmt: skip
    plain = CalibratedClassifierCV(
        make_pipeline(StandardScaler(), LinearSVC(C=0.01, dual=False, tol=1e-8, max_iter=20_000)),
        method=method, cv=list(small), ensemble=False,
    ).fit(X[:300], y[:300])  # fmt: skip
    np.testing.assert_allclose(ours.predict_proba(X[300:]), plain.predict_proba(X[300:]), atol=5e-3)


def test_a_sigmoid_finds_the_curve_that_made_the_classes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000) * 3 + 100
    p = 1 / (1 + np.exp(-(1.7 * (scores - 100) - 0.5)))
    curve = fit_curves("sigmoid", scores[:, None], (rng.random(20_000) < p).astype(int), are_logits=False).curves[0]
    assert curve.slope == pytest.approx(1.7, abs=0.1)
    assert curve.offset + 100 * curve.slope == pytest.approx(-0.5, abs=0.1)


def test_scores_that_tell_classes_apart_wholly_give_finite_curves() -> None:
    scores = np.concatenate([np.full(50, -1e4), np.full(50, 1e4)])[:, None]
    y = np.repeat([0, 1], 50)
    for method in METHODS:
        proba = fit_curves(method, scores, y, are_logits=False).proba(scores)
        assert np.isfinite(proba).all()
        assert (proba.argmax(axis=1) == y).all()
        np.testing.assert_allclose(proba.sum(axis=1), 1)


def test_a_row_that_no_class_wants_is_shared_evenly() -> None:
    never = StepCurve(np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    np.testing.assert_allclose(Curves([never] * 4, are_logits=False).proba(np.zeros((2, 4))), 0.25)


def test_logits_count_up_to_a_number_a_row() -> None:
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(90, 3)), np.arange(90) % 3
    curves = fit_curves("sigmoid", logits, y, are_logits=True)
    np.testing.assert_allclose(curves.proba(logits), curves.proba(logits + rng.normal(size=(90, 1))), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_can_be_calibrated_by_curves(name: str, method: CurveMethod) -> None:
    X, y = pooled(3, 240, 8, signal=0.6)
    folds = make_folds(y[:180], classes=["a", "b", "c"], folds=3, seed=0)
    spec, options = model_spec(name), BuildOptions(calibration=method)
    found = search_setting(spec, X[:180], y[:180], folds=folds, metric="log_loss", options=options)
    fitted = fit_model(spec, X[:180], y[:180], value=found.best.point, folds=folds, options=options, found=found.found)
    scores = evaluate(y[180:], fitted.predict_proba(X[180:]), ["a", "b", "c"])
    assert scores.log_loss < (1.1 if method == "sigmoid" else 2.5)
    assert scores.accuracy > 0.5
    np.testing.assert_allclose(found.outputs(spec, y[:180], options).sum(axis=1), 1)


def test_overconfident_probabilities_are_mended() -> None:
    X, y = pooled(2, 3_000, 60, signal=0.12)
    X, new, y, y_new = X[:400], X[400:], y[:400], y[400:]
    folds = make_folds(y, classes=["a", "b"], folds=5, seed=0)
    spec = model_spec("logistic_regression")
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=10.0, max_iter=5_000)).fit(X, y)
    fitted = fit_model(spec, X, y, value=10.0, folds=folds, options=BuildOptions(calibration="sigmoid"))
    before, after = (evaluate(y_new, model.predict_proba(new), ["a", "b"]).log_loss for model in (plain, fitted))
    assert after < before


def test_curves_survive_skops(tmp_path: Path) -> None:
    curves = Curves([SigmoidCurve(2.0, -1.0), StepCurve(np.array([0.0, 1.0]), np.array([0.1, 0.9]))], are_logits=False)
    save_skops(curves, tmp_path / "curves")
    scores = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(load_skops(tmp_path / "curves").proba(scores), curves.proba(scores))


def test_a_bundle_holds_its_curves(store_path: Path) -> None:
    result = train_models(
        store_path, "photos", layers=["good"], models=["linear_svm", "xgboost"], folds=3, name="curves",
        calibration="isotonic", save="all", report=False,
    )  # fmt: skip
    with FeatureStore.open(store_path) as store:
        data = load_dataset(store, "photos", "good")
    rows, y = data.held_out()
    for cell, path in zip(result.cells, result.bundles, strict=True):
        loaded = load_bundle(path)
        assert loaded.card["calibration"] == "isotonic"
        assert "calibration.skops" in loaded.card["files"]
        assert evaluate(y, loaded.predict_proba(rows), data.rows.classes) == cell.evaluation


def test_a_calibration_that_is_not_known_is_refused(store_path: Path) -> None:
    with pytest.raises(TrainError, match="calibration: one of None, sigmoid, isotonic, found 'beta'"):
        train_models(store_path, "photos", layers=["good"], calibration="beta")  # type: ignore[arg-type]


def test_weighted_classes_stay_weighted_through_the_curves() -> None:
    """One row in twenty is of the rare class: unweighted curves would call hardly any so."""
    rng = np.random.default_rng(0)
    y = (np.arange(2_000) % 20 == 0).astype(np.int64)
    X = (rng.normal(size=(2_000, 6)) + 0.6 * y[:, None]).astype(np.float32)
    folds = make_folds(y[:1_000], classes=["a", "b"], folds=4, seed=0)
    spec = model_spec("logistic_regression")
    for method in METHODS:
        options = BuildOptions(class_weight="balanced", calibration=method)
        fitted = fit_model(spec, X[:1_000], y[:1_000], value=0.1, folds=folds, options=options)
        scores = evaluate(y[1_000:], fitted.predict_proba(X[1_000:]), ["a", "b"])
        plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))
        called = plain.fit(X[:1_000], y[:1_000]).predict(X[1_000:])
        assert scores.per_class[1].recall == pytest.approx((called[y[1_000:] == 1] == 1).mean(), abs=0.15)
        assert scores.balanced_accuracy > 0.7
