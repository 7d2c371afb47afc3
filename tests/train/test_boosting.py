"""XGBoost on shared matrices against ``XGBClassifier`` and ``PCA`` in plain scikit-learn pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import serial
from icecore.train.folds import Fold, make_folds
from icecore.train.models import BuildOptions, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from numpy.typing import NDArray
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from xgboost import XGBClassifier

Data = tuple[NDArray[np.float32], NDArray[np.int64]]
SPEC = model_spec("xgboost")
NAMES = ("max_depth", "learning_rate", "n_estimators", "n_components")


def clouds(k: int, n: int = 240, width: int = 24) -> Data:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % k)
    scales = np.arange(1, width + 1) ** -0.7
    latent = (rng.normal(size=(n, width)) + rng.normal(size=(k, width))[y]) * scales
    return (latent @ rng.normal(size=(width, width)) * 5 + 30).astype(np.float32), y


def folds_of(y: NDArray[np.int64]) -> tuple[Fold, ...]:
    return make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=3, seed=1)


def plain(point: tuple[float, ...], width: int, k: int) -> Pipeline:
    """The same model, as a user of the two libraries would write it."""
    depth, rate, rounds, components = point
    used = min(int(components), width)
    steps = [] if used == width else [PCA(used, svd_solver="covariance_eigh")]
    booster = XGBClassifier(
        tree_method="hist", max_bin=32, max_depth=int(depth), learning_rate=rate, n_estimators=int(rounds),
        subsample=0.8, colsample_bytree=min(1, 32 / used), random_state=0, n_jobs=1,
    )  # fmt: skip
    return make_pipeline(StandardScaler(), *steps, booster)


POINTS = ((2, 0.2, 12, 6), (3, 0.2, 4, 6), (2, 0.2, 5, 6), (2, 0.2, 5, 3), (2, 0.3, 5, 100))  # in no order


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("k", [2, 4])
def test_out_of_fold_scores_are_those_of_plain_fits(k: int, weight: Any) -> None:
    X, y = clouds(k)
    keep = (y != 1) | (np.arange(len(y)) % 3 == 0)
    X, y, before = X[keep], y[keep], X[keep].copy()
    folds = folds_of(y)
    ours = score_folds(SPEC, X, y, values=POINTS, folds=folds, options=BuildOptions(class_weight=weight))
    np.testing.assert_array_equal(X, before)
    assert ours.scores.shape == (len(POINTS), len(y), 1 if k == 2 else k)
    for point, scores in zip(POINTS, ours.scores, strict=True):
        for train, test in folds:
            rows = compute_sample_weight(weight, y[train])
            expected = plain(point, X.shape[1], k).fit(X[train], y[train], xgbclassifier__sample_weight=rows)
            proba = expected.predict_proba(X[test])
            mine = expit(scores[test, 0]) if k == 2 else softmax(scores[test], axis=1)
            np.testing.assert_allclose(mine, proba[:, 1] if k == 2 else proba, atol=0.02)


def test_fewer_rounds_and_components_are_scored_as_if_alone() -> None:
    X, y = clouds(3)
    folds = folds_of(y)
    together = score_folds(SPEC, X, y, values=POINTS, folds=folds, options=BuildOptions()).scores
    for point, scores in zip(POINTS, together, strict=True):
        alone = score_folds(SPEC, X, y, values=[point], folds=folds, options=BuildOptions()).scores[0]
        np.testing.assert_allclose(scores, alone, atol=1e-4)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("components", [5, 100])
def test_the_final_model_is_the_libraries_own(k: int, components: int, tmp_path: Path) -> None:
    X, y = clouds(k)
    point = (3, 0.2, 10, components)
    ours, notes = fit_pipeline(SPEC, X, y, value=point, options=BuildOptions())
    assert [name for name, _ in ours.steps] == ["scale", *(["components"] if components == 5 else []), "model"]
    assert type(ours["model"]) is XGBClassifier
    assert not notes
    expected = plain(point, X.shape[1], k).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-5)
    serial.save_skops(ours[:-1], tmp_path / "steps.skops")
    serial.save_xgboost(ours["model"], tmp_path / "model.json")
    steps, model = serial.load_skops(tmp_path / "steps.skops"), serial.load_xgboost(tmp_path / "model.json")
    np.testing.assert_allclose(model.predict_proba(steps.transform(X)), ours.predict_proba(X), atol=1e-6)


def test_a_fold_knows_nothing_of_the_rows_that_it_is_validated_on() -> None:
    X, y = clouds(4)
    train, test = folds_of(y)[0]
    spoilt, others = X.copy(), y.copy()
    spoilt[test[1:]] = X[test[1:]] * 40 + 900
    others[test] = (y[test] + 1) % 4
    options = BuildOptions()
    before = score_folds(SPEC, X, y, values=POINTS, folds=[(train, test)], options=options).scores
    after = score_folds(SPEC, spoilt, others, values=POINTS, folds=[(train, test)], options=options).scores
    np.testing.assert_array_equal(after[:, test[0]], before[:, test[0]])


def test_fewer_rows_than_components_are_no_hindrance() -> None:
    X, y = clouds(2, 40, 80)
    point = (2, 0.3, 5, 60)
    found = score_folds(SPEC, X, y, values=[point], folds=folds_of(y), options=BuildOptions())
    fitted, _ = fit_pipeline(SPEC, X, y, value=point, options=BuildOptions())
    assert np.isfinite(found.scores).all()
    assert fitted["components"].n_components_ == 39


def test_components_of_few_rows_are_those_of_the_covariance() -> None:
    X, y = clouds(2, 40, 200)
    fitted, _ = fit_pipeline(SPEC, X, y, value=(2, 0.3, 5, 6), options=BuildOptions())
    A = StandardScaler().fit_transform(X.astype(np.float64))
    exact = PCA(6, svd_solver="covariance_eigh").fit(A)
    overlap = np.abs((fitted["components"].components_ * exact.components_).sum(axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-3)


def test_many_features_are_reduced_by_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    from icecore.train import inputs

    X, y = clouds(3)
    exact, _ = fit_pipeline(SPEC, X, y, value=(2, 0.3, 10, 4), options=BuildOptions())
    monkeypatch.setattr(inputs, "EXACT_WIDTH", 10)
    sampled, _ = fit_pipeline(SPEC, X, y, value=(2, 0.3, 10, 4), options=BuildOptions())
    shares = [fitted["components"].explained_variance_ratio_.sum() for fitted in (exact, sampled)]
    assert shares[1] > 0.98 * shares[0]
    assert (exact.predict(X) == sampled.predict(X)).mean() > 0.9
