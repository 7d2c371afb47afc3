"""The MLP's search against scikit-learn's own training, epoch by epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from icecore.train.folds import make_folds
from icecore.train.models import BuildOptions, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from icecore.train.serial import load_skops, save_skops
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from .test_linear_search import pooled

SPEC, OPTIONS = model_spec("mlp"), BuildOptions(seed=4)
VALUES = [(1, 8, 0.1), (6, 8, 0.1), (6, 8, 10.0), (3, 5, 0.1)]


@pytest.mark.parametrize("k", [2, 3])
def test_every_number_of_epochs_is_that_of_a_run_of_its_own(k: int) -> None:
    X, y = pooled(k, 180, 12, signal=0.5)
    folds = make_folds(y, classes=[str(i) for i in range(k)], folds=3, seed=0)
    found = score_folds(SPEC, X, y, values=VALUES, folds=folds, options=OPTIONS)
    for scores, value in zip(found.scores, VALUES, strict=True):
        for train, test in folds:
            alone, _ = fit_pipeline(SPEC, X[train], y[train], value=value, options=OPTIONS)
            proba = alone.predict_proba(X[test])
            ours = np.exp(scores[test] - np.logaddexp.reduce(scores[test], axis=1, keepdims=True))
            ours = ours if k > 2 else np.column_stack((np.zeros(len(test)), 1 / (1 + np.exp(-scores[test, 0]))))
            np.testing.assert_allclose(ours[:, 1:], proba[:, 1:], atol=1e-3)


def test_a_run_is_scikit_learns_own_fit_but_for_the_order_of_rows() -> None:
    X, y = pooled(3, 200, 12, signal=0.5)
    A = StandardScaler().fit_transform(X)
    for epochs, tolerance in ((1, 1e-5), (7, 0.05)):
        ours, _ = fit_pipeline(SPEC, X, y, value=(epochs, 6, 0.5), options=OPTIONS)
        plain = MLPClassifier((6,), alpha=0.5, batch_size=64, max_iter=epochs, random_state=4, tol=0)
        with pytest.warns(UserWarning, match="Maximum iterations"):
            plain.fit(A, y)
        for mine, theirs in zip(ours["model"].coefs_, plain.coefs_, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=tolerance)


def test_balanced_classes_count_alike() -> None:
    rng = np.random.default_rng(0)
    y = (np.arange(880) >= 800).astype(np.int64)  # ten to one
    X = (rng.normal(size=(880, 4)) + 0.7 * y[:, None]).astype(np.float32)
    plain, balanced = (
        fit_pipeline(SPEC, X, y, value=(10, 4, 10.0), options=BuildOptions(seed=4, class_weight=weight))[0].predict(X)
        for weight in (None, "balanced")
    )
    recalls = [(called[y == 1] == 1).mean() for called in (plain, balanced)]
    assert recalls[1] > recalls[0] + 0.2


def test_fewer_rows_than_a_batch_and_one_seed_one_network(tmp_path: Path) -> None:
    X, y = pooled(3, 30, 6, signal=1.0)
    fitted = [fit_pipeline(SPEC, X, y, value=(5, 8, 1.0), options=OPTIONS)[0] for _ in range(2)]
    np.testing.assert_array_equal(fitted[0].predict_proba(X), fitted[1].predict_proba(X))
    save_skops(fitted[0]["model"], tmp_path / "model")
    A = fitted[0][:-1].transform(X)
    np.testing.assert_array_equal(load_skops(tmp_path / "model").predict_proba(A), fitted[0].predict_proba(X))
