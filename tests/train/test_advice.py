"""The rules on made facts, and on made features whose truth is known; what is measured is held against brute force."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecore.store import Column, FeatureStore, LayerNotFoundError, Pooling, SourceImage
from icecore.train import Advice, CsvLabels, DatasetError, Facts, advise, load_dataset, measure_facts
from icecore.train.advice_facts import LayerFact, expected_gain
from icecore.train.advice_measure import network_order
from icecore.train.advice_rules import FEW, LEAST_A_CLASS, RULES
from icecore.train.distance import MOST_ROWS, Distance, measure_distance
from icecore.train.evidence import LearningPoint
from icecore.train.folds import make_folds
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .conftest import CONTRACT, features_for, image_ids
from .tuned import tuned_store, write_features

FLAT = tuple(LearningPoint(rows, 0.8, 0.01) for rows in (100, 200, 400))
STEEP = tuple(LearningPoint(rows, 1 - 20 / rows**0.7, 0.01) for rows in (100, 200, 400))
NEAR = Distance(0.05, 0.5, 400, 0.4, 0.4)
FACTS = Facts(
    n_train=800,
    n_held_out=400,
    n_classes=5,
    smallest=("roses", 150),
    layers=(LayerFact("layer3:avg", 0.7, 256, 0.001), LayerFact("layer4:avg", 0.8, 512, None)),
    winner=1,
    majority=0.2,
    training_score=0.85,
    learning=FLAT,
    distance=NEAR,
)
EARLY = {"layers": (LayerFact("layer3:avg", 0.85, 256, 0.001), LayerFact("layer4:avg", 0.7, 512, None)), "winner": 0}
MAYBE = {"layers": (LayerFact("layer3:avg", 0.81, 256, 0.4), LayerFact("layer4:avg", 0.8, 512, None)), "winner": 0}
NOTHING = {"layers": (LayerFact("layer4:avg", 0.25, 512, None),), "winner": 0}


@pytest.mark.parametrize(
    ("changes", "action", "rule"),
    [
        ({}, "keep frozen", "few and close"),
        (EARLY, "keep frozen", "few and far"),
        (MAYBE, "keep frozen", "few and close"),
        ({"n_train": FEW}, "tune the last blocks", "many and close"),
        ({"n_train": FEW - 1}, "keep frozen", "few and close"),
        ({"n_train": 9_000, **EARLY}, "tune all", "many and far"),
        ({"n_train": 9_000, **MAYBE}, "tune the last blocks", "many and close"),
        ({"learning": STEEP}, "gather data", "still rising"),
        ({"learning": STEEP, "n_train": 9_000}, "tune the last blocks", "many and close"),
        ({"learning": ()}, "keep frozen", "few and close"),
        ({"n_held_out": 59, "n_train": 9_000}, "keep frozen", "nothing to show"),
        ({"n_held_out": 61, "n_train": 9_000}, "tune the last blocks", "many and close"),
        ({"distance": replace(NEAR, share=0.2, p_value=1e-9)}, "gather data", "uncovered"),
        ({"distance": replace(NEAR, share=0.2, p_value=0.05)}, "keep frozen", "few and close"),
        ({"distance": replace(NEAR, share=0.1, p_value=1e-9)}, "keep frozen", "few and close"),
        ({"distance": None}, "keep frozen", "few and close"),
        ({"smallest": ("rare", LEAST_A_CLASS - 1), "n_train": 9_000}, "gather data", "tiny class"),
        (NOTHING, "gather data", "blind, few images"),
        ({**NOTHING, "n_train": 9_000}, "tune all", "blind, many images"),
    ],
)
def test_each_rule_decides_its_case(changes: dict[str, Any], action: str, rule: str) -> None:
    found = advise(replace(FACTS, **changes))
    assert (found.action, found.reasons[0].rule) == (action, rule)
    assert found.reasons[0].source
    json.dumps(found.to_json(), allow_nan=False)


def test_every_rule_is_met_by_a_case_and_has_a_source() -> None:
    cases = test_each_rule_decides_its_case.pytestmark[0].args[1]  # type: ignore[attr-defined]
    warned = {reason.rule for changes, _, _ in cases for reason in advise(replace(FACTS, **changes)).warnings}
    assert {rule for _, _, rule in cases} | warned | {"by heart"} == {rule.name for rule in RULES}
    assert all(rule.source for rule in RULES)


def test_what_speaks_against_the_advice_is_told_too() -> None:
    found = advise(replace(FACTS, n_train=9_000, n_held_out=20, **EARLY))
    assert found.action == "keep frozen"
    assert [(reason.rule, reason.action) for reason in found.against] == [("many and far", "tune all")]
    warned = advise(replace(FACTS, training_score=0.99))
    assert [reason.rule for reason in warned.warnings] == ["by heart"]
    assert warned.action == advise(FACTS).action


@given(
    n_train=st.integers(2, 10**6),
    n_held_out=st.integers(1, 10**5),
    smallest=st.integers(1, 1000),
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    p_value=st.floats(0, 1),
    share=st.floats(0, 1),
    majority=st.floats(0, 1),
    training=st.floats(0, 1),
)
def test_there_is_always_one_advice_with_a_reason(
    n_train: int,
    n_held_out: int,
    smallest: int,
    scores: list[float],
    p_value: float,
    share: float,
    majority: float,
    training: float,
) -> None:
    layers = tuple(LayerFact(f"l{i}", s, 8, p_value if i < len(scores) - 1 else None) for i, s in enumerate(scores))
    facts = Facts(
        n_train, n_held_out, 2, ("a", smallest), layers, scores.index(max(scores)), majority, training, FLAT,
        Distance(share, p_value, n_held_out, 0.1, 0.1),
    )  # fmt: skip
    found = advise(facts)
    assert found.reasons
    assert {reason.action for reason in found.reasons} == {found.action}
    assert found.action not in {reason.action for reason in found.against}
    if n_train < FEW:
        assert not found.action.startswith("tune")


def test_the_gain_of_twice_the_images_is_that_of_a_power_law() -> None:
    points = [LearningPoint(rows, 1 - 3 * rows**-0.5, 0.0) for rows in (50, 100, 300, 500)]
    assert expected_gain(points) == pytest.approx(3 * 500**-0.5 - 3 * 1000**-0.5)
    assert expected_gain(points[:2]) is None
    assert expected_gain([replace(p, mean=1 - p.mean) for p in points]) == 0.0
    assert expected_gain([replace(p, mean=1.0) for p in points]) == pytest.approx(0)


def nearest(X: NDArray[Any], new: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    scaler = StandardScaler().fit(X)
    near = NearestNeighbors(algorithm="brute").fit(scaler.transform(X))
    among = near.kneighbors(scaler.transform(X), 2)[0][:, 1]
    return among, near.kneighbors(scaler.transform(new), 1)[0][:, 0]


def test_distances_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    X, new = (rng.normal(size=(n, 12)).astype(np.float32) for n in (300, 120))
    new[:40, 0] += 4
    found = measure_distance(X, new)
    assert found is not None
    among, beyond = nearest(X, new)
    far = int((beyond > np.quantile(among, 0.95)).sum())
    assert 10 < far < 120
    assert found.share == pytest.approx(far / 120)
    assert found.p_value == pytest.approx(binom.sf(far - 1, 120, 0.05), rel=1e-6)
    assert found.median == pytest.approx(np.median(beyond), rel=1e-3)
    assert found.median_training == pytest.approx(np.median(among), rel=1e-3)
    assert found.looked_at == 120


def test_images_like_the_training_ones_are_rarely_far_and_others_are() -> None:
    rng = np.random.default_rng(1)
    shares, p_values = [], []
    for _ in range(40):
        rows = rng.normal(size=(500, 16)).astype(np.float32)
        found = measure_distance(rows[:350], rows[350:])
        assert found is not None
        shares.append(found.share)
        p_values.append(found.p_value)
    assert 0.03 < np.mean(shares) < 0.07
    assert np.mean([p <= 0.01 for p in p_values]) < 0.15
    X = rng.normal(size=(300, 16)).astype(np.float32)
    X[:, :8] *= 5  # training rows differ along these axes, new ones along the others
    shifted = rng.normal(size=(150, 16)).astype(np.float32)
    shifted[:, 8:] *= 5
    assert share(X, shifted) > 0.8
    assert share(X, 3 * X[:100]) > 0.8  # the same directions, farther out


def share(X: NDArray[np.float32], new: NDArray[np.float32], groups: list[str] | None = None) -> float:
    found = measure_distance(X, new, groups=groups)
    assert found is not None
    return found.share


def test_rows_of_one_group_do_not_stand_for_each_other() -> None:
    """Three near copies of each image: without groups every new image would seem far."""
    rng = np.random.default_rng(2)
    pictures = rng.normal(size=(260, 10))
    copies = np.repeat(pictures[:130], 3, axis=0) + 0.01 * rng.normal(size=(390, 10))
    groups = [str(i // 3) for i in range(390)]
    X, new = copies.astype(np.float32), pictures[130:].astype(np.float32)
    assert share(X, new) > 0.9
    assert share(X, new, groups) < 0.2
    assert measure_distance(X, new, groups=["one"] * 390) is None
    assert measure_distance(X, new[:0]) is None


def test_many_rows_are_looked_at_in_part() -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(50, 4)).astype(np.float32)
    found = measure_distance(X, rng.normal(size=(3 * MOST_ROWS, 4)).astype(np.float32))
    assert found is not None
    assert found.looked_at == MOST_ROWS


def columns(*names: str) -> list[Column]:
    return [Column(name, Pooling("avg"), 4) for name in names]


@pytest.mark.parametrize(
    ("added", "ordered"),
    [
        (("features.18", "features.4", "features.10"), ("features.4", "features.10", "features.18")),
        (("layer4", "layer2"), ("layer2", "layer4")),
        (("blocks.2.1", "blocks.10.0", "blocks.2.0"), ("blocks.2.0", "blocks.2.1", "blocks.10.0")),
        (("layer4", "layer2", "avgpool"), ("layer4", "layer2", "avgpool")),  # names tell nothing: as they were added
        (("conv1",), ("conv1",)),
    ],
)
def test_layers_stand_in_the_order_of_the_network(added: tuple[str, ...], ordered: tuple[str, ...]) -> None:
    assert tuple(column.layer for column in network_order(columns(*added))) == ordered


def made(
    folder: Path,
    *,
    per_class: int,
    held_out: int = 40,
    early: float,
    late: float,
    shift: bool = False,
) -> Path:
    """Write two layers that tell the classes this well; shifted: held-out images vary along other axes."""
    ids = image_ids(per_class, held_out)
    X = {"layer2": features_for(ids, 12, signal=early, seed=5), "layer4": features_for(ids, 12, signal=late, seed=6)}
    if shift:
        new = np.array([image.startswith("val/") for image in ids])
        for values in X.values():
            values[new, 6:] *= 4
    return write_features(folder / "features", ids, X)


@pytest.mark.parametrize(
    ("options", "action", "rule"),
    [
        ({"per_class": 300, "early": 0.1, "late": 0.5}, "keep frozen", "few and close"),
        ({"per_class": 300, "early": 0.5, "late": 0.1}, "keep frozen", "few and far"),
        ({"per_class": 400, "early": 0.1, "late": 0.5}, "tune the last blocks", "many and close"),
        ({"per_class": 400, "early": 0.5, "late": 0.1}, "tune all", "many and far"),
        ({"per_class": 400, "early": 0.0, "late": 0.0}, "tune all", "blind, many images"),
        ({"per_class": 60, "early": 0.1, "late": 4.0}, "keep frozen", "nothing to show"),
        ({"per_class": 400, "early": 0.1, "late": 0.5, "shift": True}, "gather data", "uncovered"),
        ({"per_class": 8, "early": 0.1, "late": 0.5}, "gather data", "tiny class"),
    ],
)
def test_features_whose_truth_is_known_get_the_advice_that_fits(
    tmp_path: Path, options: dict[str, Any], action: str, rule: str
) -> None:
    found = advise(measure_facts(made(tmp_path, **options), "photos", folds=3))
    assert (found.action, found.reasons[0].rule) == (action, rule), found.to_json()
    assert [layer.name for layer in found.facts.layers] == ["layer2:avg", "layer4:avg"]


def test_a_curve_that_still_rises_asks_for_more_images(tmp_path: Path) -> None:
    """Many features that each tell a little: what they tell is learnt from many images alone."""
    ids = image_ids(60, 40)
    path = write_features(tmp_path / "features", ids, {"layer4": features_for(ids, 200, signal=0.12, seed=5)})
    found = advise(measure_facts(path, "photos", folds=3))
    assert (found.action, found.reasons[0].rule) == ("gather data", "still rising"), found.to_json()
    assert found.facts.learning[-1].mean > found.facts.learning[0].mean + 0.1


def test_scores_are_those_of_plain_scikit_learn_on_the_same_folds(tmp_path: Path) -> None:
    path = made(tmp_path, per_class=40, early=0.2, late=0.5)
    facts = measure_facts(path, "photos", folds=4, grids={"logistic_regression": (0.1,)})
    with FeatureStore.open(path) as store:
        data = load_dataset(store, "photos", "layer4")
    X, y = data.training()
    folds = make_folds(y, classes=data.rows.classes, folds=4, seed=0, groups=None)
    called = np.empty(len(y), dtype=np.int64)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=10_000, tol=1e-8))
    for train, test in folds:
        called[test] = model.fit(X[train], y[train]).predict(X[test])
    assert facts.layers[1].score == pytest.approx(accuracy_score(y, called))
    assert facts.winner == 1
    assert facts.training_score == pytest.approx(accuracy_score(y, model.fit(X, y).predict(X)))
    assert facts.learning[-1].mean == pytest.approx(facts.score, abs=0.01)  # the mean over folds that differ by a row
    assert (facts.n_train, facts.n_held_out, facts.n_classes, facts.smallest[1]) == (120, 120, 3, 40)
    assert facts.majority == pytest.approx(1 / 3)
    distance = facts.distance
    assert distance is not None
    among, beyond = nearest(X, data.held_out()[0])
    assert distance.share == pytest.approx((beyond > np.quantile(among, 0.95)).mean())


def test_held_out_labels_have_no_part_in_it(tmp_path: Path) -> None:
    path = made(tmp_path, per_class=30, early=0.2, late=0.6)
    with FeatureStore.open(path) as store:
        ids = store["photos"].ids()
    found = []
    for turn in (0, 1):
        lines = ["id,split,label"]
        for i, image in enumerate(ids):
            side, label, _ = image.split("/")
            names = ("ants", "bees", "wasps")
            lines.append(f"{image},{side},{names[(names.index(label) + turn * i) % 3] if side == 'val' else label}")
        (tmp_path / "labels.csv").write_text("\n".join(lines))
        found.append(measure_facts(path, "photos", labels=CsvLabels(tmp_path / "labels.csv"), folds=3))
    assert found[0] == found[1]


def test_a_layer_counts_once_by_its_best_pooling_and_ties_go_to_the_later_layer(tmp_path: Path) -> None:
    ids = image_ids(30, 10)
    good, poor = features_for(ids, 6, signal=0.8, seed=1), features_for(ids, 6, signal=0.1, seed=2)
    layers = {("layer3", "avg"): good, ("layer4", "max"): poor, ("layer4", "avg"): good}
    with FeatureStore.create(tmp_path / "features") as store:
        made_columns = {Column(layer, Pooling(pooling), 6): X for (layer, pooling), X in layers.items()}  # type: ignore[arg-type]
        with store.writer("photos", CONTRACT, list(made_columns)) as writer:
            digests = [bytes([i % 256, i // 256]) * 16 for i in range(len(ids))]
            writer.append([SourceImage(i, tmp_path / i, 1, 1, 1) for i in ids], digests, made_columns)
    facts = measure_facts(tmp_path / "features", "photos", folds=3)
    assert [layer.name for layer in facts.layers] == ["layer3:avg", "layer4:avg"]
    assert (facts.winner, facts.is_early, facts.layers[0].p_value) == (1, False, 1.0)
    one = measure_facts(tmp_path / "features", "photos", layers=[["layer4:max", "layer4:avg"]], folds=3)
    assert [layer.name for layer in one.layers] == ["layer4:avg"]
    assert measure_facts(tmp_path / "features", "photos", layers=["layer*:avg"], folds=3) == facts
    assert [reason.rule for reason in advise(one).warnings] == ["one layer"]


def test_a_tuned_backbone_is_refused_and_its_frozen_version_is_not(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    with pytest.raises(DatasetError, match=r"is of a fine-tuned backbone, which knows the training images"):
        measure_facts(path, "photos")
    with FeatureStore.open(path) as store:
        [(_, frozen)] = store.generations(CONTRACT)
        version = store.at(frozen).version
    assert measure_facts(path, "photos", version=version).n_train == 90


def test_a_layer_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayerNotFoundError, match="layer9"):
        measure_facts(made(tmp_path, per_class=10, early=0.5, late=0.5), "photos", layers=["layer9"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("photos", "actions"),
    [("hymenoptera", {"keep frozen"}), ("flowers", {"keep frozen", "gather data"})],
)
def test_photos_close_to_imagenet_are_not_worth_a_tuning(
    tmp_path: Path, assets: Path, photos: str, actions: set[str]
) -> None:
    """245 and 800 photos of what ImageNet is full of: the last layer wins, and unseen photos lie near."""
    from icecore.extract import extract_images

    extract_images(
        tmp_path / "features",
        "photos",
        assets / "data" / photos,
        backbone_name="mobilenet_v2",
        weights=assets / "weights" / "mobilenet_v2_features.pth",
        layers=["features.10", "features.18"],
    )
    found: Advice = advise(measure_facts(tmp_path / "features", "photos"))
    assert found.action in actions
    assert not found.facts.is_early
    assert found.facts.distance is not None
    assert found.facts.distance.share < 0.15
    assert all(a.rows < b.rows for a, b in pairwise(found.facts.learning))
