"""The learning curve scores as plain fits on the same parts do, and nothing of the evidence chooses anything."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from icecore.train.evidence import SHARES, _by_class, _part, learning_curve
from icecore.train.folds import make_folds
from icecore.train.models import MODELS, BuildOptions
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def clouds(n: int = 240, d: int = 20, k: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(n) % k
    return (0.45 * rng.normal(size=(k, d))[y] + rng.normal(size=(n, d))).astype(np.float32), y


@pytest.mark.parametrize(
    ("name", "model"),
    [("logistic_regression", LogisticRegression(C=0.1, max_iter=1_000)), ("ridge", RidgeClassifier(alpha=0.1))],
)
def test_every_point_is_that_of_plain_fits_on_the_same_rows(name: str, model: Any) -> None:
    X, y = clouds()
    folds = make_folds(y, classes=["a", "b", "c"], folds=4, seed=0)
    found = learning_curve(*(MODELS[name], X, y), value=0.1, folds=folds, metric="accuracy", options=BuildOptions())
    assert [point.rows for point in found] == [18, 36, 72, 126, 180]
    for point, share in zip(found, SHARES, strict=True):
        scores = []
        for train, test in folds:
            part = _part(_by_class(train, y, 0), share)
            plain = make_pipeline(StandardScaler(), model).fit(X[part], y[part])
            scores.append(plain.score(X[test], y[test]))
        assert point.mean == pytest.approx(np.mean(scores), abs=0.006)  # a row or so in 240
    assert found[-1].mean > found[0].mean + 0.05


def test_parts_grow_hold_every_class_and_never_a_validation_row() -> None:
    y = np.array([0] * 40 + [1] * 40 + [2] * 4)
    for train, test in make_folds(y, classes=["a", "b", "c"], folds=2, seed=1):
        parts = [_part(_by_class(train, y, 5), share) for share in SHARES]
        for small, large in itertools.pairwise(parts):
            assert set(small.tolist()) <= set(large.tolist())
        assert all(set(np.unique(y[part])) == {0, 1, 2} for part in parts)
        assert not set(parts[-1].tolist()) & set(test.tolist())
        assert parts[-1].tolist() == sorted(train.tolist())


def test_a_loss_is_told_as_a_loss() -> None:
    X, y = clouds()
    folds = make_folds(y, classes=["a", "b", "c"], folds=3, seed=0)
    found = learning_curve(
        *(MODELS["logistic_regression"], X, y), value=0.1, folds=folds, metric="log_loss", options=BuildOptions()
    )
    assert all(point.mean > 0 for point in found)
    assert found[-1].mean < found[0].mean


def test_a_model_with_several_settings_learns_with_all_of_them() -> None:
    """With a Gaussian so wide that every image looks alike nothing is learnt: the second setting counts."""
    X, y = clouds()
    folds = make_folds(y, classes=["a", "b", "c"], folds=3, seed=0)
    good, blind = (
        learning_curve(
            *(MODELS["rbf_svm"], X, y), value=(1.0, gamma), folds=folds, metric="accuracy", options=BuildOptions()
        )
        for gamma in (1.0, 1e-6)
    )
    assert good[-1].mean > blind[-1].mean + 0.1
