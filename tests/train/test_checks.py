"""Copies across the split and wrong labels are named, and clean data raise no alarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from icecore.train.checks import Checks, find_copies, run_checks
from icecore.train.classification import TASK
from icecore.train.doubts import find_outliers, find_suspects
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict


def checked(X: Any, y: Any, train: Any, ids: Sequence[str], classes: Sequence[str], proba: Any) -> Checks:
    """What a run of classes with five folds looks at."""
    training = [ids[i] for i in np.flatnonzero(train)]
    return run_checks(
        X, y, train, ids=ids,
        suspects=TASK.doubts(proba, y[train], training, classes), small=TASK.small(y[train], classes, 5),
    )  # fmt: skip


def clouds(
    n: int = 300, d: int = 40, k: int = 3, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(k, size=n)
    X = (rng.normal(size=(k, d))[y] + rng.normal(size=(n, d)) + 5).astype(np.float32)
    return X, y, rng.random(n) < 0.75, [f"{i:03}.jpg" for i in range(n)]


def test_clean_data_have_no_copies() -> None:
    assert find_copies(*clouds()) == ()


@pytest.mark.parametrize("offset", [0, 1_000])
def test_equal_and_nearly_equal_rows_across_the_split_are_paired(offset: float) -> None:
    X, y, train, ids = clouds()
    held_out, training = np.flatnonzero(~train), np.flatnonzero(train)
    X = X + np.float32(offset)
    X[held_out[0]] = X[training[5]]
    noise = np.random.default_rng(1).normal(size=X.shape[1]) * 0.2
    X[held_out[1]] = X[training[9]] + noise
    y[held_out[0]], y[held_out[1]] = y[training[5]], (y[training[9]] + 1) % 3
    first, second = find_copies(X, y, train, ids)
    assert (first.held_out, first.training, first.cosine, first.same_label) == (
        ids[held_out[0]], ids[training[5]], 1.0, True,
    )  # fmt: skip
    assert (second.held_out, second.training, second.same_label) == (ids[held_out[1]], ids[training[9]], False)
    assert 0.9 < second.cosine < 1


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, train, ids = clouds()
    X[~train] = X[train][: (~train).sum()] + 0.1
    whole = find_copies(X, y, train, ids)
    monkeypatch.setattr("icecore.train.checks._AT_A_TIME", 7 * int(train.sum()))
    assert [(c.held_out, c.training) for c in find_copies(X, y, train, ids)] == [
        (c.held_out, c.training) for c in whole
    ]
    assert len(whole) == (~train).sum()


def test_constant_columns_and_rows_do_not_matter_to_copies() -> None:
    X, y, train, ids = clouds()
    X[:, 3] = 7
    X[np.flatnonzero(train)[0]] = X[train].mean(0)
    with np.errstate(all="raise"):
        assert find_copies(X, y, train, ids) == ()


def test_turned_labels_are_found_and_few_others() -> None:
    X, y, _, ids = clouds(600, seed=2)
    wrong = np.random.default_rng(3).choice(600, 30, replace=False)
    labels = y.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    proba = cross_val_predict(LogisticRegression(C=0.1, max_iter=500), X, labels, cv=5, method="predict_proba")
    found = find_suspects(proba, labels, ids, ["a", "b", "c"])
    named = {int(suspect.id[:3]) for suspect in found}
    assert len(named & set(wrong.tolist())) >= 24
    assert len(named - set(wrong.tolist())) <= 6
    assert {int(s.id[:3]) for s in found[:20]} <= set(wrong.tolist())
    truth = {i: "abc"[y[i]] for i in wrong.tolist()}
    assert all(s.likely == truth[int(s.id[:3])] for s in found if int(s.id[:3]) in truth)
    assert all(s.p_likely > s.p_label for s in found)


def test_labels_that_fit_raise_few_suspicions() -> None:
    X, y, _, ids = clouds(600, seed=4)
    proba = cross_val_predict(LogisticRegression(C=0.1, max_iter=500), X, y, cv=5, method="predict_proba")
    assert len(find_suspects(proba, y, ids, ["a", "b", "c"])) <= 6


def test_what_was_found_is_told_in_sentences_and_as_json() -> None:
    X, y, train, ids = clouds()
    X[:, 0] = 1
    y[:4], train[:4] = 3, True
    held_out, training = np.flatnonzero(~train), np.flatnonzero(train)
    X[held_out[1]] = X[training[9]] + 0.01
    proba = np.eye(4)[y[train]] * 0.9 + 0.025
    proba[7] = np.roll(proba[7], 1)
    found = checked(X, y, train, ids, ("a", "b", "c", "d"), proba)
    text = "\n".join(found.notes())
    assert "look like copies of a training image: 1 (" in text
    assert "speak against: 1 (" in text
    assert "1 of 40 features are the same" in text
    assert "rough: 'd: 4'" in text
    told = found.to_json()
    assert told["copies"][0]["held_out"] == ids[held_out[1]]
    assert told["small_classes"] == [{"label": "d", "training": 4}]
    assert told["suspects"][0]["id"] == ids[training[7]]


def test_no_image_at_all_is_held_out_twice() -> None:
    """A row is paired with its nearest training row only: at most one pair for each held-out image."""
    X, y, train, ids = clouds()
    training = np.flatnonzero(train)
    for i in np.flatnonzero(~train):
        X[i] = X[training[0]]
    pairs = find_copies(X, y, train, ids)
    assert len({pair.held_out for pair in pairs}) == len(pairs) == (~train).sum()


def test_beyond_its_work_the_search_for_copies_takes_a_part_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, train, ids = clouds()
    X[~train] = X[train][: (~train).sum()]
    monkeypatch.setattr("icecore.train.checks._WORK", 10 * int(train.sum()) * X.shape[1])
    proba = np.eye(3)[y[train]] * 0.9 + 0.05
    found = checked(X, y, train, ids, ("a", "b", "c"), proba)
    assert len(found.copies) == found.looked_at == 10
    assert f"copies were looked for among 10 of the {(~train).sum()} held-out images" in found.notes()


def test_numbers_far_from_their_predictions_are_outliers_farthest_first() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=400) * 50 + 200
    y = predicted + rng.normal(size=400) * 3 + 10  # that all are 10 off is nobody's fault
    y[[7, 30]] += [60, -25]
    found = find_outliers(predicted, y, [f"i{i}" for i in range(400)])
    assert [outlier.id for outlier in found] == ["i7", "i30"]
    assert found[0].deviations == pytest.approx(60 / 3, rel=0.15)
    assert (found[1].value, found[1].predicted) == (y[30], predicted[30])
    assert str(found[0]).startswith(f"i7: {y[7]:g}, or ")
    assert find_outliers(np.ones(5), np.array([1, 1, 1, 1, 9.0]), list("abcde")) == ()  # no spread to count in
