"""Each label is answered as if it were alone, by the model's own solver, and probabilities are the label's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from icecore.train import MODELS, serial
from icecore.train.calibration import Calibrated
from icecore.train.label_models import LabelModels
from icecore.train.models import BuildOptions
from icecore.train.multilabel import TASK
from icecore.train.out_of_fold import score_folds
from icecore.train.search import fit_model, search_setting
from icecore.train.settings import grid_points
from icecore.train.steps import Steps
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

NAMES = ("red", "round", "ripe")


def tagged(n: int = 150, width: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n, width)) * 4 + 9).astype(np.float32)
    Z = X - X.mean(axis=0)
    return X, (Z[:, :3] + rng.normal(size=(n, 3)) * 2 > (0, 3, -3)).astype(np.int64)


@pytest.mark.parametrize("name", ["logistic_regression", "linear_svm", "nearest_mean", "rbf_svm"])
def test_scores_of_a_label_are_those_of_the_classifier_alone(name: str) -> None:
    X, y = tagged()
    folds = TASK.make_folds(y, names=NAMES, folds=3, seed=0, groups=None)
    options, values = BuildOptions(class_weight="balanced", steps=Steps(l2_norm=True)), grid_points(MODELS[name])[1:3]
    found = score_folds(TASK.models[name], X, y, values=values, folds=folds, options=options).scores
    assert found.shape == (2, len(y), 3)
    for i, one in enumerate(y.T):
        alone = score_folds(MODELS[name], X, one, values=values, folds=folds, options=options).scores
        np.testing.assert_array_equal(found[:, :, i], alone[:, :, 0])


def test_the_final_model_is_what_scikit_learns_own_would_be() -> None:
    X, y = tagged()
    folds = TASK.make_folds(y, names=NAMES, folds=3, seed=0, groups=None)
    options = BuildOptions(steps=Steps(l2_norm=True))
    spec = TASK.models["logistic_regression"]
    found = search_setting(spec, X, y, folds=folds, metric="mean_average_precision", options=options, grid=[0.1, 1.0])
    fitted = fit_model(spec, X, y, value=found.best.point, folds=folds, options=options, found=found.found)
    plain = make_pipeline(
        Normalizer(), StandardScaler(), MultiOutputClassifier(LogisticRegression(C=found.best.value, tol=1e-7))
    ).fit(X, y)
    expected = np.column_stack([proba[:, 1] for proba in plain.predict_proba(X)])
    np.testing.assert_allclose(fitted.outputs(X), expected, atol=2e-3)


def test_each_label_has_a_temperature_of_its_own_that_its_bundle_keeps(tmp_path: Path) -> None:
    X, y = tagged()
    folds = TASK.make_folds(y, names=NAMES, folds=3, seed=0, groups=None)
    spec, options = TASK.models["linear_svm"], BuildOptions()
    found = score_folds(spec, X, y, values=[0.01], folds=folds, options=options)
    fitted = fit_model(spec, X, y, value=0.01, folds=folds, options=options, found=found)
    for i, one in enumerate(y.T):
        alone = fit_model(MODELS["linear_svm"], X, one, value=0.01, folds=folds, options=options)
        assert fitted.model.models[i].inverse_temperature == pytest.approx(alone.model.inverse_temperature)
        np.testing.assert_allclose(fitted.outputs(X)[:, i], alone.outputs(X)[:, 1])
        calibrated = TASK.out_of_fold(spec, found.scores[0], y, options)[:, i]
        assert ((calibrated > 0.5) == (found.scores[0, :, i] > 0)).all()
    assert isinstance(fitted.model, LabelModels)
    assert all(isinstance(model, Calibrated) for model in fitted.model.models)
    serial.save_skops(fitted.model, tmp_path / "model.skops")
    loaded, A = serial.load_skops(tmp_path / "model.skops"), fitted.steps.transform(X)
    np.testing.assert_array_equal(loaded.predict_proba(A), fitted.model.predict_proba(A))


def test_strata_are_the_rarest_labels_of_the_rows() -> None:
    y = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 0]])
    assert TASK.strata(y).tolist() == [1, 0, 0, 3, 2, 1]
    assert not TASK.is_learnable(y[:3])
    assert TASK.is_learnable(y)
