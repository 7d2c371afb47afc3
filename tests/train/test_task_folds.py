"""Folds of labels hold each label everywhere, folds of numbers small and large ones, and groups stay whole."""

from __future__ import annotations

import numpy as np
import pytest
from icecore.train import FoldError
from icecore.train.multilabel_folds import make_label_folds
from icecore.train.regression_folds import make_number_folds, quantile_bins

NAMES = ("red", "round", "ripe", "rare")


def labels(n: int = 200, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 4)) < (0.5, 0.3, 0.9, 0.0)).astype(np.int64)
    y[rng.choice(n, 5, replace=False), 3] = 1
    return y


def test_every_label_is_in_every_part_as_far_as_there_are_rows() -> None:
    for seed in range(20):
        y = labels(seed=seed)
        parts = make_label_folds(y, names=NAMES, folds=5, seed=seed)
        assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(y)))
        for train, test in parts:
            assert sorted([*train, *test]) == list(range(len(y)))
            assert y[test, 3].sum() == 1
            assert np.abs(y[test].mean(axis=0) - y.mean(axis=0)).max() < 0.1
            assert abs(len(test) - 40) <= 4


def test_label_folds_repeat_and_differ_by_seed() -> None:
    y = labels()
    first, again, other = (make_label_folds(y, names=NAMES, folds=3, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for pair in zip(first, again, strict=True) for a, b in zip(*pair, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_rows_without_any_label_are_divided_evenly() -> None:
    y = np.zeros((90, 1), dtype=np.int64)
    y[:9] = 1
    for _, test in make_label_folds(y, names=["red"], folds=3, seed=0):
        assert (len(test), y[test].sum()) == (30, 3)


def test_label_folds_keep_groups_whole() -> None:
    y = labels()
    groups = [f"g{i // 4}" for i in range(len(y))]
    for train, test in make_label_folds(y, names=NAMES, folds=3, seed=0, groups=groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}
        assert abs(len(test) - 67) < 14


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "label 'red': 1 of 12 training rows have it, and a fold would train on 0 of 8; add images of the rarer"),
        (11, "label 'red': 11 of 12 training rows have it, and a fold would train on 8 of 8"),
    ],
)
def test_a_label_that_a_training_part_cannot_teach_is_named(count: int, message: str) -> None:
    y = np.zeros((12, 1), dtype=np.int64)
    y[:count] = 1
    with pytest.raises(FoldError) as refused:
        make_label_folds(y, names=["red"], folds=3, seed=0)
    assert message in str(refused.value)
    assert (refused.value.label, refused.value.count, refused.value.folds) == ("red", count, 3)


def test_fewer_groups_than_folds_are_refused() -> None:
    y = np.arange(12)[:, None] % 2
    with pytest.raises(FoldError, match="2 groups of training rows, fewer than the 3 folds"):
        make_label_folds(y, names=["red"], folds=3, seed=0, groups=["a"] * 6 + ["b"] * 6)


def test_bins_are_of_one_size_whatever_the_numbers() -> None:
    y = np.array([5.0] * 7 + [1.0, 9.0, 1e9])
    bins = quantile_bins(y, 5)
    assert np.bincount(bins).tolist() == [2] * 5
    assert bins[np.argsort(y, kind="stable")].tolist() == sorted(bins.tolist())


def test_number_folds_hold_small_and_large_ones_alike() -> None:
    y = np.random.default_rng(0).lognormal(size=103)
    parts = make_number_folds(y, name="age", folds=5, seed=0)
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(len(y)))
    top, bottom = np.quantile(y, [0.9, 0.1])
    for _, test in parts:
        assert (y[test] >= top).any()
        assert (y[test] <= bottom).any()


def test_number_folds_keep_groups_whole() -> None:
    y = np.random.default_rng(0).normal(size=60)
    groups = [f"g{i // 4}" for i in range(60)]
    for train, test in make_number_folds(y, name="age", folds=3, seed=0, groups=groups):
        assert not {groups[i] for i in train} & {groups[i] for i in test}


@pytest.mark.parametrize(
    ("y", "groups", "message"),
    [
        (np.arange(7.0), None, r"'age' has 7 training rows, and 5 folds need 10: lower them \(--set train.folds=3\)"),
        (np.arange(3.0), None, "'age' has 3 training rows, and 5 folds need 10: add some"),
        (np.arange(20.0), list("ab") * 10, r"'age' has 2 groups of training rows, and 5 folds need 5: .*train.folds=2"),
        (np.array([0.0] * 15 + [1.0] * 5), ["a"] * 4 + ["b"] * 4 + ["c"] * 4 + ["d"] * 3 + ["e"] * 5,
         "'age': rows or groups are so uneven that a fold would train on a single number"),
    ],
)  # fmt: skip
def test_number_folds_that_cannot_be_are_refused_with_a_cure(
    y: np.ndarray, groups: list[str] | None, message: str
) -> None:
    with pytest.raises(FoldError, match=message):
        make_number_folds(y, name="age", folds=5, seed=0, groups=groups)
