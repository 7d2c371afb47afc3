"""XGBoost on shared matrices against ``XGBClassifier`` in plain scikit-learn pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import serial
from icecore.train.boosting import estimator_params
from icecore.train.folds import Fold, make_folds
from icecore.train.models import BuildOptions, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from numpy.typing import NDArray
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from xgboost import XGBClassifier

Data = tuple[NDArray[np.float32], NDArray[np.int64]]
SPEC = model_spec("xgboost")
NAMES = ("max_depth", "learning_rate", "n_estimators")


def clouds(k: int, n: int = 240, width: int = 40) -> Data:
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n) % k)
    scales = np.arange(1, width + 1) ** -0.7
    latent = (rng.normal(size=(n, width)) + rng.normal(size=(k, width))[y]) * scales
    return (latent @ rng.normal(size=(width, width)) * 5 + 30).astype(np.float32), y


def folds_of(y: NDArray[np.int64]) -> tuple[Fold, ...]:
    return make_folds(y, classes=[str(i) for i in range(y.max() + 1)], folds=3, seed=1)


def plain(point: tuple[float, ...], width: int, k: int) -> Pipeline:
    """The same model, as a user of the two libraries would write it."""
    depth, rate, rounds = point
    booster = XGBClassifier(
        tree_method="hist", max_bin=32, max_depth=int(depth), learning_rate=rate, n_estimators=int(rounds),
        subsample=0.8, colsample_bynode=min(1, 32 / width), random_state=0, n_jobs=1,
    )  # fmt: skip
    return make_pipeline(StandardScaler(), booster)


POINTS = ((2, 0.2, 12), (3, 0.2, 4), (2, 0.2, 5), (2, 0.3, 5))  # in no order


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


def test_fewer_rounds_are_scored_as_if_alone() -> None:
    X, y = clouds(3)
    folds = folds_of(y)
    together = score_folds(SPEC, X, y, values=POINTS, folds=folds, options=BuildOptions()).scores
    for point, scores in zip(POINTS, together, strict=True):
        alone = score_folds(SPEC, X, y, values=[point], folds=folds, options=BuildOptions()).scores[0]
        np.testing.assert_allclose(scores, alone, atol=1e-4)


@pytest.mark.parametrize("k", [2, 4])
def test_the_final_model_is_the_librarys_own(k: int, tmp_path: Path) -> None:
    X, y = clouds(k)
    point = (3, 0.2, 10)
    ours, notes = fit_pipeline(SPEC, X, y, value=point, options=BuildOptions())
    assert [name for name, _ in ours.steps] == ["scale", "model"]
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


def test_a_tree_and_a_node_are_given_so_many_columns() -> None:
    assert estimator_params({"max_depth": 3}, 20) == {"max_depth": 3, "colsample_bytree": 1, "colsample_bynode": 1}
    assert estimator_params({}, 128) == {"colsample_bytree": 1, "colsample_bynode": 0.25}
    assert estimator_params({}, 2048) == {"colsample_bytree": 0.125, "colsample_bynode": 0.125}
