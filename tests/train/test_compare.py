"""Two generations on the same rows: numbers are scikit-learn's, and rows that would flatter one side are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecore.store import FeatureStore, LayerNotFoundError, SetNotFoundError
from icecore.store.tunings import tuned_weights_path
from icecore.train import (
    ComparisonError,
    CsvLabels,
    DatasetError,
    GenerationComparison,
    HashSplit,
    HeldOutDiffersError,
    HeldOutSeenError,
    TrainError,
    compare_generations,
    train_models,
)
from icecore.train.compare_page import comparison_path, render_comparison, write_comparison
from icecore.train.compare_rows import compare_rows
from icecore.train.compare_sides import choose_sides
from icecore.train.resampling import Comparison, Gap
from icecore.train.verdict import FEWEST, judge
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .conftest import CONTRACT, features_for, image_ids
from .tuned import AGAIN, TUNED, digest_of, train_side, tuned_store, write_features, write_record

IDS = image_ids(30, 20)
FAST: dict[str, Any] = {"folds": 3}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose fine-tuned generation is surely better. Never changed."""
    return tuned_store(tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="module")
def found(path: Path) -> GenerationComparison:
    return compare_generations(path, "photos", models=["logistic_regression", "nearest_mean"], **FAST)


def test_without_a_second_name_the_parent_is_held_against_the_tuned_one(
    path: Path, found: GenerationComparison
) -> None:
    with FeatureStore.open(path) as store:
        [(_, frozen)] = store.generations(CONTRACT)
        [(_, tuned)] = store.generations(TUNED)
    assert (found.a.provenance.generation, found.b.provenance.generation) == (frozen, tuned)
    assert (found.a.tunings, found.b.tunings[0].weights) == ((), TUNED.weights)
    named = compare_generations(path, frozen[:8], "photos", models=["logistic_regression", "nearest_mean"], **FAST)
    assert timeless(named) == timeless(found)


def timeless(found: GenerationComparison) -> dict[str, Any]:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items() if key not in ("seconds", "training_seconds")}
        return [without(item) for item in value] if isinstance(value, list) else value

    facts: dict[str, Any] = without(json.loads(json.dumps(found.to_json())))
    return facts


def test_scores_gaps_and_classes_are_those_of_plain_scikit_learn(path: Path, found: GenerationComparison) -> None:
    held_out = np.array([not image.startswith("train/") for image in IDS])
    y = np.array([image.split("/")[1] for image in IDS])
    right, recalls, accuracies = [], [], []
    pair = found.pairs[0]
    for side, cell in ((found.a, pair.a), (found.b, pair.b)):
        assert cell.model == "logistic_regression"
        with FeatureStore.open(path) as store:
            ids, X = store.at(side.provenance.generation).matrix("layer4")
        assert ids == IDS
        # The grid's C is that of a loss averaged over rows where the model says so; the fit itself is checked in full.
        C = cell.params["C"]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=10_000, tol=1e-8))
        called = model.fit(X[~held_out], y[~held_out]).predict(X[held_out])
        accuracies.append(accuracy_score(y[held_out], called))
        right.append(called == y[held_out])
        recalls.append(recall_score(y[held_out], called, average=None))
    assert [pair.a.evaluation.accuracy, pair.b.evaluation.accuracy] == pytest.approx(accuracies)
    gap = pair.comparison.gaps["accuracy"]
    assert gap is not None
    assert gap.difference == pytest.approx(accuracies[1] - accuracies[0])
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (pair.comparison.only_second, pair.comparison.only_first) == (only_a, only_b)
    n = only_a + only_b
    assert pair.comparison.p_value == pytest.approx(min(1, 2 * binom.cdf(min(only_a, only_b), n, 0.5)))
    rng = np.random.default_rng(7)
    drawn = [(right[1][rows].mean() - right[0][rows].mean()) for rows in rng.integers(0, 60, (4000, 60))]
    assert gap.interval == pytest.approx(
        np.percentile(drawn, [2.5, 97.5]), abs=0.03
    )  # of 1,000 draws, in steps of 1/60
    if found.winners.a == pair.a and found.winners.b == pair.b:
        changes = {change.label: change for change in found.classes}
        for i, label in enumerate(("ants", "bees", "wasps")):
            assert (changes[label].recall_a, changes[label].recall_b) == pytest.approx((recalls[0][i], recalls[1][i]))
            assert changes[label].support == 20
    assert [change.change for change in found.classes] == sorted(change.change for change in found.classes)


def test_each_side_is_searched_as_a_training_of_its_own(path: Path, found: GenerationComparison) -> None:
    for side, cells in ((found.a, [p.a for p in found.pairs]), (found.b, [p.b for p in found.pairs])):
        alone = train_models(
            path, "photos", layers=["layer4"], models=["logistic_regression", "nearest_mean"],
            version=side.provenance.version, report=False, name="alone", **FAST,
        )  # fmt: skip
        assert {(c.model, c.best.mean, c.evaluation.accuracy) for c in alone.cells} == {
            (c.model, c.best.mean, c.evaluation.accuracy) for c in cells
        }
        assert side.winner.model == alone.winner.model
        assert side.intervals == alone.intervals[0]
        assert found.rows.split.digest == alone.rows.split.digest


def test_a_sure_gain_is_worth_it_and_the_way_back_is_worse(path: Path, found: GenerationComparison) -> None:
    assert found.verdict.word == "worth it"
    assert found.verdict.text.startswith("worth it: accuracy +")
    assert "on 60 held-out images" in found.verdict.text
    back = compare_generations(path, found.b.name, found.a.name, models=["logistic_regression", "nearest_mean"], **FAST)
    assert back.verdict.word == "worse"
    assert back.verdict.text.endswith(f"; keep {found.b.name}")
    for name, gap in found.winners.comparison.gaps.items():
        other = back.winners.comparison.gaps[name]
        assert gap is not None
        assert other is not None
        assert other.difference == pytest.approx(-gap.difference)
        assert other.interval == pytest.approx((-gap.interval[1], -gap.interval[0]))


def test_a_gain_that_so_few_images_cannot_show_is_none(tmp_path: Path) -> None:
    path = tuned_store(tmp_path, before=0.8, after=0.8)
    found = compare_generations(path, "photos", **FAST)
    assert [change.change for change in found.classes] == [0, 0, 0]
    assert found.verdict.word == "no gain"
    assert found.verdict.text.startswith("no gain that 60 held-out images can show: accuracy +0.0 points")
    assert found.verdict.text.endswith("; keep the frozen features")
    assert found.winners.comparison.p_value == 1.0


def test_costs_are_those_of_record_store_and_files(path: Path, found: GenerationComparison) -> None:
    assert found.a.costs.tunings == ()
    [cost] = found.b.costs.tunings
    assert (cost.seconds, cost.epochs, cost.best_epoch, cost.images) == (12.5, 2, 1, 90)
    assert (cost.trained_parameters, cost.bytes, cost.device) == (1234, 4096, "cpu")
    assert found.a.costs.bytes == found.b.costs.bytes == len(IDS) * 8 * 2
    assert found.b.costs.images == len(IDS)
    assert found.a.costs.training_seconds == pytest.approx(sum(pair.a.seconds for pair in found.pairs))


def test_a_held_out_image_that_the_tuning_saw_is_named(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    smuggled = "val/bees/007.jpg"
    write_record(path, [*train_side(IDS), smuggled])
    with pytest.raises(HeldOutSeenError, match=r"1 by name \('val/bees/007.jpg'\); their scores would flatter") as told:
        compare_generations(path, "photos", **FAST)
    assert told.value.ids == (smuggled,)
    with pytest.raises(HeldOutSeenError):  # on whichever side it stands
        compare_generations(path, "photos", f"photos@{version_of(path, CONTRACT)}", **FAST)


def version_of(path: Path, contract: Any) -> int:
    with FeatureStore.open(path) as store:
        [(_, uuid)] = store.generations(contract)
        return store.at(uuid).version


def test_a_held_out_image_smuggled_under_another_name_is_found_by_its_file(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    seen = {image: image for image in train_side(IDS)}
    seen["train/bees/copy.jpg"] = "val/wasps/003.jpg"  # the same file
    write_record(path, seen)
    message = r"1 as a file of another name \('val/wasps/003.jpg = train/bees/copy.jpg'\)"
    with pytest.raises(HeldOutSeenError, match=message) as told:
        compare_generations(path, "photos", **FAST)
    assert told.value.ids == ("val/wasps/003.jpg",)


def test_what_an_earlier_tuning_saw_counts_too(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    write_features(path, IDS, {"layer4": features_for(IDS, 8, signal=1.3, seed=3)}, contract=AGAIN)
    write_record(path, train_side(IDS), parent=TUNED, tuned=AGAIN)
    found = compare_generations(path, "photos", **FAST)
    assert [tuning.weights for tuning in found.b.tunings] == [AGAIN.weights, TUNED.weights]
    assert [tuning.weights for tuning in found.a.tunings] == [TUNED.weights]
    assert len(found.b.costs.tunings) == 2
    write_record(path, [*train_side(IDS), "val/ants/001.jpg"])  # the first tuning, which both build on
    with pytest.raises(HeldOutSeenError, match=r"'val/ants/001\.jpg'"):
        compare_generations(path, "photos", **FAST)
    with FeatureStore.open(path) as store:
        [(_, frozen)] = store.generations(CONTRACT)
    with pytest.raises(HeldOutSeenError, match=r"'val/ants/001\.jpg'"):
        compare_generations(path, frozen, "photos", **FAST)


@pytest.mark.slow
def test_two_backbones_on_real_photos_score_as_plain_scikit_learn(tmp_path: Path, assets: Path) -> None:
    from icecore.extract import extract_images

    for name, file, layer in (
        ("mobilenet_v2", "mobilenet_v2_features.pth", "features.18"),
        ("squeezenet1_1", "squeezenet1_1.pth", "features.12"),
    ):
        extract_images(
            *(tmp_path / "features", name, assets / "data" / "hymenoptera"),
            backbone_name=name,
            weights=assets / "weights" / file,
            layers=[layer],
        )
    sides = {"squeezenet1_1": "features.12", "mobilenet_v2": "features.18"}
    found = compare_generations(
        *(tmp_path / "features", *sides), layers=["features.12"], layers_b=["features.18"],
        grids={"logistic_regression": (0.01,)},
    )  # fmt: skip
    right = []
    for side, (name, layer) in zip((found.a, found.b), sides.items(), strict=True):
        with FeatureStore.open(tmp_path / "features") as store:
            ids, X = store[name].matrix(layer)
        train = np.array([image.startswith("train/") for image in ids])
        is_bee = np.array([image.split("/")[1] == "bees" for image in ids])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=10_000, tol=1e-8))
        p_bee = model.fit(X[train], is_bee[train]).predict_proba(X[~train])[:, 1]
        assert side.predictions.outputs[:, 1] == pytest.approx(p_bee, abs=5e-3)
        called = np.where(abs(p_bee - 0.5) > 5e-3, p_bee > 0.5, side.predictions.outputs.argmax(1) == 1)  # both may be
        right.append(called == is_bee[~train])
        assert side.winner.evaluation.accuracy == pytest.approx(right[-1].mean())
    told = found.winners.comparison
    assert told.only_second == (right[0] & ~right[1]).sum()
    assert told.only_first == (right[1] & ~right[0]).sum()
    assert sum(change.support for change in found.classes) == 153


@given(names=st.sets(st.sampled_from(IDS)), files=st.sets(st.sampled_from(IDS)), behind=st.booleans())
def test_whatever_held_out_image_was_seen_is_found_and_no_other(
    path: Path, names: set[str], files: set[str], behind: bool
) -> None:
    """Seen by its name, with another file; and by its file, under another name; by the tuning or one before it."""
    seen = {image: f"other file {image}" for image in names} | {f"copy of {image}": image for image in files}
    with FeatureStore.open(path) as store:
        frozen, tuned = choose_sides(store, "photos")
        record = replace(
            tuned.tunings[0],
            seen_ids=tuple(seen),
            seen_contents=tuple(digest_of(text).hex() for text in seen.values()),
        )
        tunings = (*tuned.tunings, record) if behind else (record,)
        expected = {image for image in names | files if image.startswith("val/")}
        for sides in ((frozen, replace(tuned, tunings=tunings)), (replace(tuned, tunings=tunings), frozen)):
            if expected:
                with pytest.raises(HeldOutSeenError) as told:
                    compare_rows(*sides, ["layer4"], ["layer4"])
                assert set(told.value.ids) == expected
            else:
                rows, left_out = compare_rows(*sides, ["layer4"], ["layer4"])
                assert (rows.ids, left_out) == (tuple(IDS), ())


def test_images_in_groups_are_drawn_whole_and_mcnemar_has_no_say(path: Path, tmp_path: Path) -> None:
    lines = ["id,split,label,group"]
    lines += [f"{image},{image.split('/')[0]},{image.split('/')[1]},{image[:-5]}" for image in IDS]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = compare_generations(path, "photos", labels=CsvLabels(tmp_path / "labels.csv"), **FAST)
    assert found.rows.held_out_groups is not None
    assert len(set(found.rows.held_out_groups)) < len(found.rows.held_out_ids) / 2
    assert found.winners.comparison.p_value is not None
    assert "McNemar" not in found.verdict.text


def test_a_tuning_without_epochs_has_no_curves(path: Path, found: GenerationComparison) -> None:
    bare = replace(found.b, tunings=(replace(found.b.tunings[0], epochs=()),))
    text = render_comparison(replace(found, b=bare))
    assert "The fine-tuning of B" not in text
    assert "The fine-tuning of B" in render_comparison(found)


def test_another_split_brings_seen_images_to_the_held_out_side(path: Path) -> None:
    with pytest.raises(HeldOutSeenError, match="Compare on the split that it was tuned with"):
        compare_generations(path, "photos", split=HashSplit(0.3), **FAST)


def test_tuned_weights_without_their_record_are_refused(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    tuned_weights_path(path, TUNED.weights).with_suffix(".json").unlink()
    with pytest.raises(ComparisonError, match="nobody knows which images they have seen"):
        compare_generations(path, "photos", f"photos@{version_of(path, CONTRACT)}", **FAST)


def test_held_out_images_of_one_side_alone_are_refused(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    fewer = [image for image in IDS if image not in ("val/ants/000.jpg", "val/ants/001.jpg")]
    write_features(path, fewer, {"layer4": features_for(fewer, 8, signal=1.0)}, name="fewer")
    with pytest.raises(HeldOutDiffersError, match=r"2 in photos@3 alone \('val/ants/000.jpg', 'val/a") as told:
        compare_generations(path, "fewer", "photos", **FAST)
    assert told.value.ids == ("val/ants/000.jpg", "val/ants/001.jpg")


def test_a_held_out_image_whose_file_has_changed_is_refused(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    files = {"val/ants/005.jpg": "another picture", "val/ants/006.jpg": "val/ants/007.jpg", "val/ants/007.jpg": "x"}
    X = {"layer4": features_for(IDS, 8, signal=1.0)}
    write_features(path, IDS, X, name="changed", files=files)
    with pytest.raises(HeldOutDiffersError, match="3 whose files differ") as told:
        compare_generations(path, "photos", "changed", **FAST)
    assert set(told.value.ids) == set(files)


def test_training_images_that_differ_are_left_out_of_both_sides(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    gone, changed = "train/ants/000.jpg", "train/bees/001.jpg"
    ids = [image for image in IDS if image != gone]
    X = {"layer4": features_for(ids, 8, signal=1.0)}
    write_features(path, ids, X, name="other", files={changed: "another picture"})
    found = compare_generations(path, "photos", "other", **FAST)
    assert found.left_out == (gone, changed)
    assert len(found.rows.train_ids) == 88
    assert set(found.rows.train_ids).isdisjoint(found.left_out)
    assert found.rows.held_out_ids == tuple(image for image in IDS if image.startswith("val/"))
    assert any("training images left out" in note and gone in note for note in found.notes)


def test_a_class_that_loses_all_its_training_images_is_refused(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    files = {image: f"other {image}" for image in IDS if image.startswith("train/wasps/")}
    write_features(path, IDS, {"layer4": features_for(IDS, 8, signal=1.0)}, name="other", files=files)
    with pytest.raises(DatasetError, match="'wasps' has held-out rows but no training row"):
        compare_generations(path, "photos", "other", **FAST)


def test_layers_of_one_side_alone_are_an_error_with_the_cure(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    X = {"layer4": features_for(IDS, 8, signal=1.0), "layer3": features_for(IDS, 5, signal=1.0)}
    write_features(path, IDS, X, name="two")
    with pytest.raises(ComparisonError, match=r"'layer3' is in two@4 and not in photos@3, which has layer4:avg"):
        compare_generations(path, "photos", "two", layers=["layer4", "layer3"], **FAST)
    with pytest.raises(LayerNotFoundError, match="layer9"):
        compare_generations(path, "photos", "two", layers=["layer9"], **FAST)
    with pytest.raises(ComparisonError, match=r"'layer3:avg' is in two@4 and not in photos@3"):
        compare_generations(path, "photos", "two", layers=["layer*"], **FAST)
    globbed = compare_generations(path, "photos", "photos@1", layers=["lay*"], **FAST)
    assert [pair.b.columns for pair in globbed.pairs] == [("layer4:avg",)]
    found = compare_generations(path, "photos", "two", **FAST)
    assert "layers of two@4 alone, left out: layer3:avg" in found.notes
    joined = compare_generations(path, "photos", "two", layers=["layer4"], layers_b=[["layer3", "layer4"]], **FAST)
    assert (joined.pairs[0].a.columns, joined.pairs[0].b.columns) == (("layer4:avg",), ("layer3:avg", "layer4:avg"))
    with pytest.raises(ComparisonError, match="2 selections of layers for 1 of the first"):
        compare_generations(path, "photos", "two", layers=["layer4"], layers_b=["layer3", "layer4"], **FAST)
    write_features(path, IDS, {"deep": X["layer4"]}, name="deep")
    with pytest.raises(ComparisonError, match="no layer in common: layer4:avg; and deep:avg"):
        compare_generations(path, "photos", "deep", **FAST)


@pytest.mark.parametrize(
    ("a", "b", "kind", "message"),
    [
        ("photos", "photos@3", ComparisonError, "are both photos@3; name two versions that differ"),
        ("photos@1", None, ComparisonError, "photos@1 is not of a fine-tuned backbone"),
        ("phtos", None, SetNotFoundError, "did you mean"),
    ],
)
def test_what_cannot_be_compared_is_said(
    path: Path, a: str, b: str | None, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        compare_generations(path, a, b, **FAST)


def test_layers_stored_as_other_types_and_of_other_networks_are_compared(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    X = features_for(IDS, 8, signal=1.2, seed=3)
    other = replace(CONTRACT, architecture="torchvision.models.resnet34")
    write_features(path, IDS, {"layer4": X}, name="whole", contract=other, dtype="float32")
    found = compare_generations(path, "photos", "whole", **FAST)
    pair = found.pairs[0]
    assert (pair.a.columns, pair.b.columns) == (("layer4:avg",), ("layer4:avg:float32",))
    assert pair.a.evaluation == pair.b.evaluation  # the values are such that float16 holds them
    assert found.b.costs.bytes == 2 * found.a.costs.bytes
    told = f"{CONTRACT.architecture} and {other.architecture} are compared at the layers that have the same names"
    assert told in found.notes
    named = compare_generations(path, "photos", "whole", layers=["layer4"], layers_b=["layer4"], **FAST)
    assert told not in named.notes


def test_a_parent_without_features_is_said_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "features"
    write_features(path, IDS, {"layer4": features_for(IDS, 8, signal=1.0)}, contract=TUNED)
    write_record(path, train_side(IDS))
    with pytest.raises(ComparisonError, match=r"no generation of this store was extracted.*--set set=NAME"):
        compare_generations(path, "photos", **FAST)
    path = tuned_store(tmp_path / "collected")
    with FeatureStore.open(path) as store:
        store.collect()
    with pytest.raises(ComparisonError, match="gc has collected every version that showed it"):
        compare_generations(path, "photos", **FAST)
    write_features(path, IDS, {"layer4": features_for(IDS, 8, signal=0.3)}, name="frozen")
    assert compare_generations(path, "photos", **FAST).a.name.startswith("frozen@")


def test_records_that_name_each_other_as_parents_are_refused(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    write_record(path, train_side(IDS), parent=AGAIN, tuned=TUNED)
    write_record(path, train_side(IDS), parent=TUNED, tuned=AGAIN)
    with pytest.raises(ComparisonError, match="name each other as parents"):
        compare_generations(path, "photos", "photos@1", **FAST)


def test_numbers_and_several_labels_are_compared_too(tmp_path: Path) -> None:
    path = tuned_store(tmp_path)
    rows = ["id,split,age,sweet,sour"]
    rng = np.random.default_rng(1)
    for image in IDS:
        k = ("ants", "bees", "wasps").index(image.split("/")[1])
        rows.append(f"{image},{image.split('/')[0]},{10 * k + rng.normal():.3f},{int(k == 0)},{int(k == 1)}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    age = CsvLabels(tmp_path / "labels.csv", columns=("age",))
    numbers = compare_generations(path, "photos", task="regression", labels=age, **FAST)
    assert (numbers.verdict.word, numbers.verdict.score, numbers.classes) == ("worth it", "rmse", ())
    assert numbers.pairs[0].a.model == "ridge"
    assert numbers.winners.comparison.p_value is None
    taste = CsvLabels(tmp_path / "labels.csv", columns=("sweet", "sour"))
    several = compare_generations(path, "photos", task="multilabel", labels=taste, **FAST)
    assert several.verdict.word == "worth it"
    assert {change.label for change in several.classes} == {"sweet", "sour"}
    per_label = {row.label: row.recall for row in several.b.winner.evaluation.per_label}
    assert {change.label: change.recall_b for change in several.classes} == pytest.approx(per_label)
    for found in (numbers, several):
        json.dumps(found.to_json(), allow_nan=False)
        assert found.verdict.text[1:] in "".join(Page(render_comparison(found)).texts)


def comparison(difference: float, low: float, high: float, p_value: float | None = 0.01) -> Comparison:
    return Comparison(
        200, 5, 2, p_value, {"accuracy": Gap(difference, (low, high)), "rmse": Gap(difference, (low, high))}
    )


@pytest.mark.parametrize(
    ("args", "options", "word", "text"),
    [
        ((0.025, 0.005, 0.045), {}, "worth it", "worth it: accuracy +2.5 points (95 % interval +0.5 to +4.5 points, M"),
        ((0.025, 0.005, 0.045, 0.07), {}, "no gain", "no gain that 200 held-out images can show: accuracy +2.5 points"),
        ((0.025, 0.005, 0.045, 0.07), {"has_groups": True}, "worth it", "worth it"),
        ((0.025, -0.005, 0.045), {}, "no gain", "no gain that 200"),
        ((0.025, 0.005, 0.045), {"least_gain": 0.03}, "small gain", "a small gain: accuracy +2.5 points"),
        ((0.025, 0.005, 0.045), {"least_gain": 0.025}, "worth it", "worth it"),
        ((-0.02, -0.04, -0.001), {}, "worse", "worse: accuracy -2.0 points"),
        ((-0.02, -0.04, -0.001, 0.2), {}, "no gain", "no gain that 200"),
        ((-0.02, -0.04, -0.001), {"score": "rmse"}, "worth it", "worth it: RMSE -0.02 (95 % interval -0.04 to -0.001)"),
        ((-0.02, -0.04, -0.001), {"score": "rmse", "before": 40.0}, "small gain", "less than the 0.2 asked for"),
        ((0.02, 0.001, 0.04), {"score": "rmse"}, "worse", "worse: RMSE +0.02"),
    ],
)  # fmt: skip
def test_the_verdict_follows_its_rules(args: tuple[float, ...], options: dict[str, Any], word: str, text: str) -> None:
    score = options.pop("score", "accuracy")
    found = judge(comparison(*args), score, kept="A", **{"before": 0.9, **options})
    assert found.word == word
    assert text in found.text
    assert (word == "worth it") == ("keep A" not in found.text)


@pytest.mark.parametrize(
    ("low", "high", "options", "blur"),
    [
        (-0.05, 0.06, {}, "5.5 points"),
        (0.0, 0.02, {}, "3.0 points"),  # six of 200 images: McNemar's test has p = 0.03 there, and 0.06 of five
        (0.0, 0.02, {"has_groups": True}, "1.0 points"),
        (-4.0, 1.0, {"score": "rmse"}, "2.5"),
    ],
)
def test_what_would_not_show_is_told(low: float, high: float, options: dict[str, Any], blur: str) -> None:
    score = options.pop("score", "accuracy")
    found = judge(comparison(0.005, low, high, 1.0), score, before=0.9, kept="A", **options)
    assert f"; less than some {blur} would not show; keep A" in found.text
    assert binom.cdf(0, FEWEST, 0.5) * 2 <= 0.05 < binom.cdf(0, FEWEST - 1, 0.5) * 2


def test_an_undefined_score_is_no_verdict() -> None:
    found = judge(Comparison(3, 0, 0, 1.0, {"accuracy": None}), "accuracy", before=None, kept="A")
    assert (found.word, found.text) == (
        "no gain", "no verdict: accuracy is undefined on these 3 held-out images; keep A",
    )  # fmt: skip


@given(
    difference=st.floats(-0.5, 0.5),
    below=st.floats(0, 0.3),
    above=st.floats(0, 0.3),
    p_value=st.floats(0, 1),
    least=st.floats(0, 0.2),
)
def test_a_verdict_never_praises_what_its_interval_does_not(
    difference: float, below: float, above: float, p_value: float, least: float
) -> None:
    args = difference, difference - below, difference + above, p_value
    found = judge(comparison(*args), "accuracy", before=0.5, kept="A", least_gain=least)
    back = judge(
        comparison(-difference, -difference - above, -difference + below, p_value),
        "accuracy", before=0.5, kept="A", least_gain=least,
    )  # fmt: skip
    if found.word in ("worth it", "small gain"):
        assert difference - below > 0
        assert p_value <= 0.05
        assert (found.word == "worth it") == (difference >= least)
        assert back.word == "worse"
    if found.word == "no gain":
        assert back.word == "no gain"


def test_a_gain_below_zero_cannot_be_asked_for(path: Path) -> None:
    for least in (-0.1, float("nan")):
        with pytest.raises(TrainError, match="least_gain: 0 or more"):
            compare_generations(path, "photos", least_gain=least)


class Page(HTMLParser):
    """The tags of a page, with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_shows_curves_and_every_pair(path: Path, found: GenerationComparison, tmp_path: Path) -> None:
    text = render_comparison(found)
    labels = [attrs.get("aria-label") for tag, attrs in Page(text).tags if tag == "svg"]
    assert labels == [
        "Gaps of all cells with their intervals",
        "Losses of the fine-tuning by epoch",
        "Validation accuracy of the fine-tuning by epoch",
        "Recall gained or lost by class",
        "Confusion matrix of the held-out rows",
        "Confusion matrix of the held-out rows",
    ]
    ids = [str(attrs["id"]) for _, attrs in Page(text).tags if re.fullmatch("[pm][0-9a-f]{10}", attrs.get("id") or "")]
    assert len(ids) > 6
    assert len(set(ids)) == len(ids)
    assert text.count("Logistic regression") >= 2
    assert f"Accuracy of A, held out</span><b>{100 * found.a.winner.evaluation.accuracy:.1f} %</b>" in text
    out = comparison_path(tmp_path, found)
    assert out == tmp_path / "comparisons" / f"{found.a.name}-{found.b.name}.html"
    write_comparison(found, out)
    assert out.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert list(out.parent.iterdir()) == [out]


def test_hostile_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    evil = ("<script>alert(1)<", "b&b", '"quoted"')
    ids = image_ids(9, 5, evil)
    layer = "<img src=x onerror=alert(2)>"
    path = tuned_store(tmp_path, ids=ids, layer=layer)
    write_record(path, train_side(ids), device="<b onclick=x>gpu</b>", split="<i>split</i>")
    found = compare_generations(path, "photos", folds=2)
    text = render_comparison(replace(found, notes=("<svg onload=alert(3)> \udcff",)))
    page = Page(text)
    assert {tag for tag, _ in page.tags} & {"script", "img", "i", "link", "iframe", "object", "form"} == set()
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    shown = "".join(page.texts)
    for name in (layer, "<script>alert(1)<", "b&b", "<b onclick=x>gpu</b>", "<svg onload=alert(3)> \\xff"):
        assert name in shown, name
    text.encode("utf-8")
