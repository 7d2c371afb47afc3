"""Groups, class weights and calibration on real features, by their example configs and against plain scikit-learn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import Steps, load_bundle, split_rows
from icecore.train.splits import HashSplit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAYER = "features.13"


def train(jobs: Any, work: Path, config: str, *overrides: str) -> dict[str, Any]:
    settings = [f"store={work / 'features'}", "set=hymenoptera", f"train.layers=['{LAYER}']", "train.report=false"]
    options = [word for setting in (*settings, *overrides) for word in ("--set", setting)]
    done = jobs.command(["train", CONFIGS / f"{config}.toml", *options, "--json"], work)
    assert done.code == 0, done.err
    facts: dict[str, Any] = done.facts
    return facts


def features(work: Path) -> tuple[list[str], np.ndarray]:
    with FeatureStore.open(work / "features") as store:
        return store["hymenoptera"].matrix(LAYER)


def test_groups_stay_whole_in_split_and_folds(work: Path, jobs: Any, tmp_path: Path) -> None:
    """Nine or so images a group, none on both sides; the folds are those of scikit-learn's grouped splitter."""
    ids, X = features(work)
    group = {image: f"{image.split('/')[1]}-{sum(image.encode()) % 20}" for image in ids}
    rows = [["id", "label", "group"], *([image, image.split("/")[1], group[image]] for image in ids)]
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    facts = train(jobs, work, "grouped", f"labels.csv={tmp_path / 'groups.csv'}", "train.models=['ridge']")
    assert (facts["folds"], facts["repeats"], len(facts["nested"]["folds"])) == (4, 3, 4)
    side = split_rows(HashSplit(0.25), ids, groups=group)
    assert facts["rows"]["split_sha256"] == side.digest
    assert not {group[i] for i, t in zip(ids, side.train, strict=True) if t} & {
        group[i] for i, t in zip(ids, side.train, strict=True) if not t
    }
    y = np.array([image.split("/")[1] == "bees" for image in ids]).astype(int)[side.train]
    of_row = [group[image] for image, training in zip(ids, side.train, strict=True) if training]
    plain = make_pipeline(StandardScaler(), RidgeClassifier(alpha=facts["winner"]["params"]["alpha"]))
    scores = [
        cross_val_score(
            plain, X[side.train], y, groups=of_row, cv=StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        ).mean()
        for seed in range(3)
    ]
    assert facts["winner"]["cv"]["mean"] == pytest.approx(np.mean(scores), abs=0.004)
    assert facts["nested"]["mean"] == pytest.approx(facts["winner"]["cv"]["mean"], abs=0.06)


def test_class_weights_and_curves_are_those_of_scikit_learn(work: Path, jobs: Any, tmp_path: Path) -> None:
    """Of the training bees one in six is kept: a rare class."""
    ids, X = features(work)
    bees = [image for image in ids if image.startswith("train/bees")]
    dropped = set(bees) - set(bees[::6])
    kept = np.array([image not in dropped for image in ids])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = [[image, image.split("/")[1], image.split("/")[0]] for image in np.array(ids)[kept].tolist()]
        csv.writer(file).writerows([["id", "label", "split"], *rows])
    facts = train(
        jobs, work, "balanced", f"labels.csv={tmp_path / 'labels.csv'}", "labels.missing=skip",
        "train.models=['logistic_regression']",
    )  # fmt: skip
    assert (facts["class_weight"], facts["calibration"], facts["metric"]) == (
        "balanced", "sigmoid", "balanced_accuracy",
    )  # fmt: skip
    training = np.array([image.startswith("train/") for image in ids])
    y = np.array([image.split("/")[1] == "bees" for image in ids]).astype(int)
    C = facts["winner"]["params"]["C"]
    model = LogisticRegression(C=C, class_weight="balanced", max_iter=5_000)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    plain = CalibratedClassifierCV(make_pipeline(StandardScaler(), model), method="sigmoid", cv=folds, ensemble=False)
    weights = compute_sample_weight("balanced", y[training & kept])
    with pytest.warns(UserWarning, match="sample_weight"):  # of the curves alone: the model weighs classes itself
        plain.fit(X[training & kept], y[training & kept], sample_weight=weights)
    held_out = ~training
    theirs = plain.predict_proba(X[held_out])
    ours = load_bundle(facts["bundles"][0]).predict_proba(X[held_out])
    np.testing.assert_allclose(ours, theirs, atol=5e-3)
    found = balanced_accuracy_score(y[held_out], ours.argmax(axis=1))
    assert facts["winner"]["held_out"]["balanced_accuracy"] == pytest.approx(found)
    assert facts["winner"]["steps"] == Steps().to_json()
