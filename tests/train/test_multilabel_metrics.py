"""Scores of labels against scikit-learn's, and under weights against rows that are repeated."""

from __future__ import annotations

import numpy as np
import pytest
from icecore.train import UnknownModelError
from icecore.train.multilabel_metrics import MULTILABEL_METRICS, WeightedLabels, evaluate_labels, label_score
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    hamming_loss,
    precision_recall_fscore_support,
)

NAMES = ("red", "round", "ripe")


def some(n: int = 80, seed: int = 0, names: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, names)) < np.linspace(0.1, 0.6, names)).astype(np.int64)
    proba = 1 / (1 + np.exp(-2 * (y - 0.5) - rng.normal(size=y.shape) * 1.5))
    return y, proba.round(2)  # rounded, so that some tie


def test_scores_are_scikit_learns() -> None:
    y, proba = some()
    called, found = proba > 0.5, evaluate_labels(y, proba, NAMES)
    assert found.macro_f1 == pytest.approx(f1_score(y, called, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(y, called, average="micro"))
    assert found.subset_accuracy == pytest.approx(accuracy_score(y, called))
    assert found.hamming_loss == pytest.approx(hamming_loss(y, called))
    assert found.mean_average_precision == pytest.approx(average_precision_score(y, proba, average="macro"))
    columns = precision_recall_fscore_support(y, called)
    average = average_precision_score(y, proba, average=None)
    for i, row in enumerate(found.per_label):
        assert (row.label, row.support) == (NAMES[i], columns[3][i])
        assert (row.precision, row.recall, row.f1) == pytest.approx([column[i] for column in columns[:3]])
        assert row.average_precision == pytest.approx(average[i])


def test_a_label_that_no_row_has_or_gets_does_not_count() -> None:
    y, proba = some()
    y[:, 1], proba[:, 1] = 0, 0.2
    found = evaluate_labels(y, proba, NAMES)
    rest = evaluate_labels(y[:, [0, 2]], proba[:, [0, 2]], ("red", "ripe"))
    assert (found.macro_f1, found.mean_average_precision) == (rest.macro_f1, rest.mean_average_precision)
    assert found.per_label[1].average_precision is None
    assert label_score("mean_average_precision", y * 0, proba > 0.5, proba) == 0


def test_an_unknown_metric_lists_those_there_are() -> None:
    y, proba = some()
    with pytest.raises(UnknownModelError, match="no metric 'accuracy'; there are macro_f1, micro_f1"):
        label_score("accuracy", y, proba > 0.5, proba)


def test_weights_count_rows() -> None:
    y, proba = some()
    weights = np.random.default_rng(1).integers(0, 4, (6, len(y)))
    weights[5, y[:, 0] == 1] = 0  # a draw without the rarest label
    found = WeightedLabels(y, proba).of(weights.astype(np.float32))
    for i, counts in enumerate(weights):
        drawn = np.repeat(np.arange(len(y)), counts)
        expected = evaluate_labels(y[drawn], proba[drawn], NAMES)
        for name in MULTILABEL_METRICS:
            assert found[name][i] == pytest.approx(getattr(expected, name)), name
