"""A logistic regression as a probe of features: judged on rows that it has not learnt from."""

from __future__ import annotations

import numpy as np
import pytest
from icecore.train import HashSplit, Labels, SplitError, labels_from_folders, probe_features
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


def rows(
    split: tuple[str, ...] = ("train", "val"), n: int = 20, seed: int = 0
) -> tuple[list[str], np.ndarray, np.ndarray]:
    ids = [f"{side}/{label}/{number}.jpg" for side in split for label in ("ants", "bees") for number in range(n)]
    y = np.array([image.split("/")[1] == "bees" for image in ids], dtype=np.int64)
    X = np.random.default_rng(seed).normal(size=(len(ids), 6)).astype(np.float32)
    X[:, 0] += 1.5 * y
    return ids, X, y


def test_held_out_rows_are_judged_as_scikit_learn_alone_judges_them() -> None:
    ids, X, y = rows()
    noise = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    probe = probe_features({"fp32": X, "noise": noise}, ids, labels_from_folders(ids))
    assert probe is not None
    assert (probe.how, probe.judged) == ("held-out", 40)
    for name, features in (("fp32", X), ("noise", noise)):
        scaler = StandardScaler().fit(features[:40])
        model = LogisticRegression(max_iter=5000).fit(scaler.transform(features[:40]), y[:40])
        guess = model.predict(scaler.transform(features[40:]))
        assert probe.right[name] == (guess == y[40:]).sum()
        assert probe.accuracy(name) == probe.right[name] / 40
    assert probe.right["fp32"] > probe.right["noise"]
    assert probe.differing["fp32"] == 0 < probe.differing["noise"]


def test_without_splits_every_row_is_judged_in_folds() -> None:
    ids, X, _ = rows(split=("all",))
    labels = labels_from_folders(ids, layout="label")
    probe = probe_features({"a": X}, ids, labels)
    assert probe is not None
    assert (probe.how, probe.judged) == ("cross-validated", 40)
    assert probe.accuracy("a") > 0.6
    hashed = probe_features({"a": X}, ids, labels, HashSplit(0.3))
    assert hashed is not None
    assert (hashed.how, hashed.judged < 40) == ("held-out", True)


def test_images_without_a_label_are_left_out() -> None:
    ids, X, y = rows(split=("all",))
    labels = Labels({image: str(c) for image, c in zip(ids[5:], y[5:], strict=True)}, {}, {}, "here")
    probe = probe_features({"a": X}, ids, labels)
    assert probe is not None
    assert probe.judged == 35


def test_too_few_to_learn_from_is_none() -> None:
    ids, X, _ = rows(split=("all",), n=4)
    assert probe_features({"a": X}, ids, labels_from_folders(ids, layout="label")) is None
    one = [f"ants/{n}.jpg" for n in range(8)]
    assert probe_features({"a": X}, one, labels_from_folders(one, layout="label")) is None


def test_split_names_that_nobody_knows_are_refused() -> None:
    ids, X, _ = rows(split=("val", "odd"))
    with pytest.raises(SplitError, match="unknown names 'odd'"):
        probe_features({"a": X}, ids, labels_from_folders(ids))
