"""Retraining: only what is better is promoted, on rows that stay held out, and a kill leaves the old or the new one."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    LockedError,
    Pooling,
    RefusedError,
    SetNotFoundError,
    SourceImage,
    Tuning,
    champion_of,
    promote,
    promotions,
    rollback,
)
from icecore.store.lock import retrain_lock
from icecore.store.tunings import write_tuning
from icecore.train import (
    CsvLabels,
    GateLimits,
    GivenSplit,
    HashSplit,
    Retrained,
    SplitError,
    TrainError,
    load_bundle,
    retrain_model,
    train_models,
)
from icecore.train import retraining as retraining_module
from icecore.train.row_list import ROWS, hash_id, read_row_list

EASY = GateLimits(min_rows=10, max_class_drop=None)
CONTRACT = Contract("torchvision.models.resnet18", {}, "ab" * 32, ({"op": "resize", "size": 256},), "pillow",
                    ("full",), "fp32")  # fmt: skip
WIDTH = 8
QUICK = {("conclude", True), ("promote", False), ("promote", True)}
"""Kills that every run of the suite tries; the others are slow ones."""


class World:
    """Images that grow, their labels in a CSV, and features that are a function of the image and of the network."""

    def __init__(self, folder: Path) -> None:
        self.store, self.csv = folder / "features", folder / "labels.csv"
        self.labels: dict[str, str] = {}
        self.true: dict[str, str] = {}
        self.split: dict[str, str] = {}
        self.signal, self.contract = 1.0, CONTRACT

    def add(self, count: int, *, classes: tuple[str, ...] = ("ants", "bees"), start: int = 0, prefix: str = "") -> None:
        new = [f"{prefix}{label}-{i:04}.jpg" for label in classes for i in range(start, start + count)]
        self.true |= {image: image.removeprefix(prefix).split("-")[0] for image in new}
        self.labels |= {image: self.true[image] for image in new}
        self.write(new)

    def features(self, image: str) -> np.ndarray:
        label, rng = self.true[image], np.random.default_rng(list(hashlib.sha256(image.encode()).digest()))
        centre = np.random.default_rng(list(label.encode())).normal(size=WIDTH)
        return (centre * self.signal + rng.normal(size=WIDTH)).astype(np.float16).astype(np.float32)

    def write(self, images: list[str]) -> None:
        """Store the features of these images, in the generation of the contract of now; and the labels of all."""
        column = Column("layer4", Pooling("avg"), WIDTH)
        images = sorted(images)
        with FeatureStore.create(self.store) as store, store.writer("photos", self.contract, [column]) as writer:
            contents = [hashlib.sha256(image.encode()).digest() for image in images]
            sources = [SourceImage(image, Path("/nowhere") / image, 1, 1, 1) for image in images]
            writer.append(sources, contents, {column: np.stack([self.features(image) for image in images])})
        self.write_labels()

    def remove(self, images: list[str]) -> None:
        with FeatureStore.open(self.store) as store:
            photos = store["photos"]
            with store.writer("photos", photos.contract, photos.columns) as writer:
                writer.remove(images)
        for image in images:
            del self.labels[image], self.true[image]
        self.write_labels()

    def write_labels(self) -> None:
        with self.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label", *(["split"] if self.split else [])])
            for image, label in sorted(self.labels.items()):
                writer.writerow([image, label, *([self.split[image]] if self.split else [])])

    def retrain(self, **options: Any) -> Retrained:
        settings: dict[str, Any] = {
            "name": "ants", "models": ["ridge"], "grids": {"ridge": [1.0]}, "folds": 2, "report": False, "gate": EASY,
            "labels": CsvLabels(self.csv), "split": HashSplit(0.4), "who": "me@here",
        }  # fmt: skip
        return retrain_model(self.store, "photos", **{**settings, **options})

    @property
    def champion(self) -> str | None:
        found = champion_of(self.store, "ants")
        return None if found is None else found.bundle

    def bundles(self) -> list[str]:
        return sorted(path.parent.name for path in (self.store / "models/ants").glob("*/card.json"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """80 images of two classes that are not easy to tell apart, and no champion."""
    made = World(tmp_path)
    made.signal = 0.8
    made.add(40)
    return made


def held_out(world: World, bundle: str) -> set[str]:
    """Which images of the world a bundle holds out."""
    listed = read_row_list(world.store / "models/ants" / bundle)
    assert listed is not None
    return {image for image in world.true if hash_id(image) in listed.held_out}


def better(world: World, classes: tuple[str, ...] = ("ants", "bees")) -> None:
    """Let a network come that tells the classes apart: a new generation, for all images."""
    world.signal, world.contract = 3.0, replace(world.contract, weights="cd" * 32)
    world.write(sorted(world.true))


def test_the_first_model_is_promoted_when_it_beats_the_baseline(world: World) -> None:
    done = world.retrain()
    assert (done.decided, done.recorded, done.reused, done.forced, done.number) == ("promoted", False, False, False, 1)
    assert done.challenger is not None
    assert world.champion == done.challenger.name
    assert done.champion == done.challenger
    assert done.numbers["is_first"] is True
    promotion = champion_of(world.store, "ants")
    assert promotion is not None
    assert (promotion.who, promotion.why) == ("me@here", done.why)
    assert promotion.metrics["decision"]["numbers"] == done.numbers
    assert {rule["name"] for rule in done.rules} >= {"min_rows", "min_gain", "level"}


def test_a_first_model_that_knows_nothing_is_kept_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.signal = 0.0
    world.add(100)
    done = world.retrain()
    assert (done.decided, done.champion, world.champion) == ("kept", None, None)
    assert "against the baseline's" in "".join(rule["told"] for rule in done.rules)


def test_where_nothing_is_new_the_recorded_decision_is_given_and_nothing_is_trained(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.retrain()
    better(world)
    second = world.retrain(gate=replace(EASY, min_gain=0.9))
    assert second.decided == "kept"
    monkeypatch.setattr(retraining_module, "train_rows", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(retraining_module, "share_rows", lambda *_, **__: pytest.fail("read the rows"))
    again = world.retrain(gate=replace(EASY, min_gain=0.9))
    assert (again.decided, again.recorded, again.key) == ("kept", True, second.key)
    assert (again.numbers, again.rules, again.why) == (second.numbers, second.rules, second.why)
    assert again.champion == first.champion
    assert len(promotions(world.store, "ants")) == 1


def test_equal_inputs_have_an_equal_key_and_each_other_one_another(world: World) -> None:
    key = world.retrain().key
    os.utime(world.csv)
    assert world.retrain().key == key
    assert world.retrain(report=False, who="you@there", config={"other": 1}).key == key
    different = {
        "seed": world.retrain(seed=1, dry_run=True).key,
        "models": world.retrain(models=["nearest_mean"], grids={}, dry_run=True).key,
        "gate": world.retrain(gate=replace(EASY, min_gain=0.01), dry_run=True).key,
        "split": world.retrain(split=HashSplit(0.41), dry_run=True).key,
    }
    world.labels["ants-0000.jpg"] = "bees"
    world.write_labels()
    different["labels"] = world.retrain(dry_run=True).key
    world.add(1, start=90)
    different["images"] = world.retrain(dry_run=True).key
    better(world)
    different["generation"] = world.retrain(dry_run=True).key
    assert len({key, *different.values()}) == 1 + len(different)


def test_a_better_network_is_promoted_and_the_champion_scored_on_its_own_features(world: World) -> None:
    first = world.retrain()
    champion = load_bundle(first.champion or "")
    own = {image: world.features(image) for image in world.true}  # under the old network
    better(world)
    done = world.retrain()
    assert (done.decided, done.number) == ("promoted", 2)
    assert any("of another generation, read as of version 1" in note for note in done.notes)
    test = sorted(held_out(world, first.challenger.name if first.challenger else ""))
    expected = np.mean([champion.predict(own[image][None])[0] == world.true[image] for image in test])
    assert done.numbers["champion"] == pytest.approx(expected)
    assert done.numbers["rows"] == len(test)
    assert done.numbers["challenger"] > done.numbers["champion"]


def test_the_challenger_is_scored_on_the_rows_that_the_card_says(world: World) -> None:
    world.retrain()
    better(world)
    done = world.retrain()
    assert done.challenger is not None
    card = json.loads((done.challenger / "card.json").read_text())
    assert done.numbers["challenger"] == pytest.approx(card["held_out"]["accuracy"])
    assert done.numbers["rows"] == card["rows"]["held_out"]


def test_what_is_no_better_is_kept_back(world: World) -> None:
    first = world.retrain()
    world.add(2, start=100)
    done = world.retrain()
    assert (done.decided, done.champion) == ("kept", first.champion)
    assert "level" in done.why
    assert world.champion == (first.champion.name if first.champion else "")


def test_force_promotes_against_the_gate_and_says_so_in_the_history(world: World) -> None:
    world.retrain()
    world.add(2, start=100)
    kept = world.retrain()
    done = world.retrain(force=True)
    assert (done.decided, done.forced, done.reused) == ("promoted", True, True)
    assert done.challenger == kept.challenger, "it was trained already"
    newest = promotions(world.store, "ants")[0]
    assert newest.forced
    assert newest.why.startswith("forced, against the gate: ")
    assert world.retrain(force=True).recorded, "what was promoted is not promoted twice"


def test_a_dry_run_promotes_and_records_nothing_and_its_challenger_serves_the_next_run(world: World) -> None:
    would = world.retrain(dry_run=True)
    assert (would.decided, would.champion, world.champion) == ("promoted", None, None)
    assert not (world.store / "models/ants/decisions.jsonl").exists()
    done = world.retrain()
    assert (done.decided, done.reused, done.challenger) == ("promoted", True, would.challenger)
    assert len(world.bundles()) == 1


def test_after_a_rollback_the_same_inputs_do_not_promote_again(world: World) -> None:
    first = world.retrain()
    better(world)
    assert world.retrain().decided == "promoted"
    rollback(world.store, "ants", why="it fails in the field")
    again = world.retrain()
    assert (again.decided, again.recorded, again.champion) == ("promoted", True, first.champion)
    assert world.champion == (first.champion.name if first.champion else "")


def test_what_was_kept_back_is_held_against_the_champion_of_now(world: World) -> None:
    first = world.retrain()
    better(world)
    assert world.retrain().decided == "promoted"
    kept = world.retrain(seed=1)
    assert (kept.decided, world.retrain(seed=1).recorded) == ("kept", True)
    rollback(world.store, "ants", why="it fails in the field")
    again = world.retrain(seed=1)
    assert (again.decided, again.recorded, again.reused) == ("promoted", False, True)
    assert again.challenger == kept.challenger == again.champion != first.champion


def test_what_was_kept_back_and_promoted_by_hand_is_nothing_new(world: World) -> None:
    world.retrain()
    kept = world.retrain(seed=1)
    assert (kept.decided, kept.challenger is None) == ("kept", False)
    promote(world.store, "ants", kept.challenger or "", why="by hand")
    again = world.retrain(seed=1)
    assert (again.decided, again.champion) == ("nothing new", kept.challenger)


def test_where_the_champion_was_trained_on_these_inputs_there_is_nothing_new(world: World) -> None:
    """Other limits of the gate make another decision, but no other challenger."""
    first = world.retrain()
    done = world.retrain(gate=replace(EASY, min_gain=0.01))
    assert (done.decided, done.recorded, done.challenger) == ("nothing new", False, None)
    assert done.champion == first.champion


def test_sides_stay_as_the_data_grows(world: World) -> None:
    before = held_out(world, world.retrain().challenger.name)  # type: ignore[union-attr]
    world.add(40, start=200)
    after = held_out(world, world.retrain().challenger.name)  # type: ignore[union-attr]
    assert before < after
    assert all(image >= "ants-0200" for image in after - before if image.startswith("ants"))


def test_given_sides_that_were_changed_are_not_followed_and_that_is_told(world: World) -> None:
    """What the champion has learned by heart would flatter it; what was held out would flatter the challenger."""
    images = sorted(world.true)
    world.split = {image: "val" if i % 2 else "train" for i, image in enumerate(images)}
    world.write_labels()
    first = world.retrain(split=GivenSplit())
    trained, held = images[0], images[1]
    world.split |= {trained: "val", held: "train"}
    world.write_labels()
    done = world.retrain(split=GivenSplit())
    assert f"{1} rows were given for training, were held out for an earlier champion, and stay held out" in done.notes
    assert f"{1} rows were given as held out, trained the champion or a backbone, and are on neither side" in done.notes
    assert done.challenger is not None
    listed = read_row_list(done.challenger)
    assert listed is not None
    assert hash_id(held) in listed.held_out
    assert hash_id(trained) not in {*listed.training, *listed.held_out}
    assert done.numbers["rows"] == len(images) // 2
    assert first.numbers["rows"] == len(images) // 2


def test_what_was_held_out_for_any_champion_stays_so(world: World) -> None:
    images = sorted(world.true)
    world.split = {image: "val" if i % 2 else "train" for i, image in enumerate(images)}
    world.write_labels()
    world.retrain(split=GivenSplit())
    world.split[images[1]] = "train"  # is left out of the second champion's training, and held out by it again
    world.write_labels()
    better(world)
    assert world.retrain(split=GivenSplit()).decided == "promoted"
    world.split[images[3]] = "train"
    world.write_labels()
    third = world.retrain(split=GivenSplit())
    listed = read_row_list(third.challenger or Path())
    assert listed is not None
    assert {hash_id(images[1]), hash_id(images[3])} <= set(listed.held_out)


def test_sides_that_were_swapped_leave_nothing_to_compare_on(world: World) -> None:
    images = sorted(world.true)
    world.split = {image: "val" if i % 2 else "train" for i, image in enumerate(images)}
    world.write_labels()
    world.retrain(split=GivenSplit())
    world.split = {image: "train" if i % 2 else "val" for i, image in enumerate(images)}
    world.write_labels()
    with pytest.raises(SplitError, match="no training row is left where sides stay as they were"):
        world.retrain(split=GivenSplit())


def test_what_a_fine_tuned_backbone_has_seen_is_not_compared_on(world: World) -> None:
    first = world.retrain()
    assert first.challenger is not None
    test = sorted(held_out(world, first.challenger.name))
    better(world)
    record = Tuning(
        weights=world.contract.weights, created="2030-01-01T00:00:00+00:00", set_name="photos", parent=CONTRACT,
        parent_generation=None, version=1, split_digest="", split="", classes=("ants", "bees"),
        seen_ids=tuple(test[:3]), seen_contents=("0" * 64,) * 3, skipped={}, unfrozen=(), trained_parameters=0,
        epochs=(), best_epoch=0, seconds=0.0, device="cpu", config={}, key="", versions={},
    )  # fmt: skip
    write_tuning(world.store, record)
    done = world.retrain()
    assert done.numbers["rows"] == len(test) - 3
    assert "3 rows were given as held out, trained the champion or a backbone, and are on neither side" in done.notes


def strip_rows(bundle: Path) -> None:
    """Make a bundle as earlier releases did: it does not list its rows."""
    from icecore.train.bundle_format import seal

    card = json.loads((bundle / "card.json").read_text())
    del card["card_sha256"], card["files"][ROWS]
    (bundle / ROWS).unlink()
    (bundle / "card.json").write_text(json.dumps({**card, "card_sha256": seal(card)}))


def test_a_champion_of_an_earlier_release_is_compared_where_a_hash_divides_and_refused_where_not(world: World) -> None:
    images = sorted(world.true)
    trained = train_models(
        world.store, "photos", layers=["layer4"], models=["ridge"], labels=CsvLabels(world.csv), split=HashSplit(0.4),
        folds=2, name="ants", report=False,
    )  # fmt: skip
    strip_rows(trained.bundles[0])
    promote(world.store, "ants", trained.bundles[0], why="by hand")
    better(world)
    done = world.retrain()
    assert done.decided == "promoted"
    assert any("does not list its held-out rows" in note for note in done.notes)
    rollback(world.store, "ants", why="again")
    world.split = {image: "val" if i % 2 else "train" for i, image in enumerate(images)}
    world.write_labels()
    with pytest.raises(TrainError, match=r"does not list its training rows.*icecore models promote"):
        world.retrain(split=GivenSplit())


def test_bad_labels_on_held_out_rows_leave_it_undecided_and_are_named(world: World) -> None:
    world.signal = 3.0
    better(world)
    first = world.retrain()
    test = sorted(held_out(world, first.challenger.name))  # type: ignore[union-attr]
    for image in test[: len(test) // 3]:
        world.labels[image] = "bees" if world.true[image] == "ants" else "ants"
    world.write_labels()
    done = world.retrain()
    assert (done.decided, done.champion) == ("undecided", first.champion)
    assert f"{len(test) // 3} of them have another label" in done.why
    assert world.retrain().recorded
    forgiving = world.retrain(gate=replace(EASY, max_champion_drop=None))
    assert forgiving.decided == "kept"


def test_labels_that_changed_count_as_they_are_now_for_both(world: World) -> None:
    world.signal = 3.0
    better(world)
    first = world.retrain()
    test = sorted(held_out(world, first.challenger.name))  # type: ignore[union-attr]
    world.labels[test[0]] = "bees" if world.true[test[0]] == "ants" else "ants"
    world.write_labels()
    done = world.retrain()
    assert done.numbers["relabelled"] == 1
    assert done.numbers["champion"] == pytest.approx(first.numbers["challenger"] - 1 / len(test))
    assert (done.numbers["champion_then"], done.numbers["champion_rows"]) == (first.numbers["challenger"], len(test))


def test_images_that_went_are_not_compared_on(world: World) -> None:
    first = world.retrain()
    test = sorted(held_out(world, first.challenger.name))  # type: ignore[union-attr]
    world.remove(test[:3])
    done = world.retrain()
    assert done.numbers["rows"] == len(test) - 3 == done.numbers["champion_rows"]


def test_a_class_that_appears_counts_for_the_challenger_that_knows_it(world: World) -> None:
    world.signal = 3.0
    better(world)
    assert world.retrain().decided == "promoted"
    world.add(40, classes=("wasps",))
    done = world.retrain()
    assert done.decided == "promoted"
    assert set(done.numbers["classes"]) == {"ants", "bees"}, "the fall of a class is told of those that both know"
    assert load_bundle(done.champion or "").classes == ("ants", "bees", "wasps")


def test_a_class_that_falls_keeps_the_champion(world: World) -> None:
    world.signal = 3.0
    better(world)
    first = world.retrain()
    train = sorted(set(world.true) - held_out(world, first.challenger.name))  # type: ignore[union-attr]
    for image in [image for image in train if image.startswith("ants")]:
        world.labels[image] = "bees" if hash_id(image)[0] < "c" else "ants"
    world.write_labels()
    done = world.retrain(gate=replace(EASY, max_class_drop=0.05, class_rows=5))
    assert done.decided == "kept"
    assert "max_class_drop: 'ants' recall" in done.why


def test_numbers_are_retrained_too(world: World, tmp_path: Path) -> None:
    def write(noise: float) -> None:
        with world.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "age"])
            for image in sorted(world.true):
                writer.writerow([image, float(world.features(image)[0]) * 10 + noise * (int(hash_id(image), 16) % 7)])

    write(3.0)
    options: dict[str, Any] = {"task": "regression", "labels": CsvLabels(world.csv, columns=("age",))}
    done = world.retrain(**options)
    assert (done.decided, done.numbers["metric"]) == ("promoted", "rmse")
    assert done.numbers["challenger"] < done.numbers["champion"], "of a loss less is better"
    better(world)
    write(0.0)
    assert world.retrain(**options).numbers["relabelled"] > 0


def test_a_second_run_is_refused_naming_the_first_and_predictors_go_on(world: World) -> None:
    done = world.retrain()
    with retrain_lock(world.store / "models/ants", command="icecore retrain nightly.toml"):
        told = rf"ants: being retrained by pid {os.getpid()} on .*\(icecore retrain nightly.toml\)"
        with pytest.raises(LockedError, match=told):
            world.retrain()
        assert load_bundle(champion_of(world.store, "ants").path).path == done.champion  # type: ignore[union-attr]
        assert world.retrain(name="bees").decided == "promoted", "another name is another lock"


def test_an_extraction_at_work_keeps_no_retraining_waiting(world: World) -> None:
    with FeatureStore.open(world.store) as store:
        photos = store["photos"]
        with store.writer("photos", photos.contract, photos.columns):
            assert world.retrain().decided == "promoted"


def test_a_promotion_by_hand_during_the_training_is_not_overrun(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.retrain()
    other = world.store / "models/ants/20300101T000000Z-00000000"
    shutil.copytree(world.store / "models/ants" / str(world.champion), other)
    better(world)
    judge: Callable[..., Any] = retraining_module.judge

    def meanwhile(*args: Any) -> Any:
        promote(world.store, "ants", other, why="by hand")
        return judge(*args)

    monkeypatch.setattr(retraining_module, "judge", meanwhile)
    with pytest.raises(RefusedError, match=r"promotion 2 of 'ants' came meanwhile \(expected 1\)"):
        world.retrain()
    assert world.champion == other.name


STEPS = [
    pytest.param(step, after, id=f"{when}-{step}", marks=[] if (step, after) in QUICK else [pytest.mark.slow])
    for step in ("train_rows", "conclude", "hold_contest", "judge", "promote", "record_decision")
    for when, after in (("before", False), ("after", True))
]


@pytest.mark.parametrize(("step", "after"), STEPS)
def test_killed_at_any_step_the_next_run_goes_on(world: World, step: str, after: bool) -> None:
    world.retrain()
    old = world.champion
    better(world)
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, str(world.store), str(world.csv), step, str(int(after))], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    is_promoted = step == "record_decision" or (step == "promote" and after)
    assert (world.champion != old) is is_promoted
    before = len(world.bundles())
    done = world.retrain(gate=GateLimits(min_rows=10, max_class_drop=None))
    assert (done.decided, done.number) == ("promoted", 2)
    assert world.champion == (done.challenger.name if done.challenger else "")
    is_trained = step not in {"train_rows"} and (step != "conclude" or after)
    assert len(world.bundles()) == before + (not is_trained), "what was trained is not trained again"
    assert len(promotions(world.store, "ants")) == 2
    assert world.retrain().recorded


_KILLED = textwrap.dedent("""
    import os, signal, sys
    from icecore.train import CsvLabels, GateLimits, HashSplit, retrain_model, retraining
    store, labels, step, after = sys.argv[1:]
    real = getattr(retraining, step)
    def die(*args, **options):
        if after == "1":
            real(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(retraining, step, die)
    retrain_model(
        store, "photos", name="ants", models=["ridge"], grids={"ridge": [1.0]}, folds=2, report=False,
        gate=GateLimits(min_rows=10, max_class_drop=None), labels=CsvLabels(labels), split=HashSplit(0.4),
    )
""")


def test_a_challenger_that_was_damaged_since_is_trained_anew(world: World) -> None:
    would = world.retrain(dry_run=True)
    assert would.challenger is not None
    (would.challenger / "model.skops").write_bytes(b"ruined")
    done = world.retrain()
    assert (done.decided, done.reused) == ("promoted", False)
    assert done.challenger != would.challenger


def test_a_champion_that_was_damaged_is_told_with_the_cure(world: World) -> None:
    first = world.retrain()
    ((first.champion or Path()) / "model.skops").write_bytes(b"ruined")
    better(world)
    with pytest.raises(TrainError, match=r"altered since it was written.*icecore models rollback"):
        world.retrain()


def test_a_set_that_is_not_there_leaves_nothing_behind(world: World) -> None:
    with pytest.raises(SetNotFoundError, match=r"no feature set 'photo'.*did you mean 'photos'"):
        retrain_model(world.store, "photo", name="ants", report=False)
    assert not (world.store / "models").exists()


def test_events_tell_what_is_done_in_order(world: World) -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []
    world.retrain(on_event=lambda what, facts: told.append((what, facts)))
    assert [what for what, _ in told] == ["training", "trained", "compared", "promoted"]
    told.clear()
    world.retrain(on_event=lambda what, facts: told.append((what, facts)))
    assert [(what, facts["recorded"]) for what, facts in told] == [("promoted", True)]


def test_the_rows_of_a_bundle_are_listed_with_side_and_label(world: World) -> None:
    done = world.retrain()
    assert done.challenger is not None
    listed = read_row_list(done.challenger)
    assert listed is not None
    assert len(listed.training) + len(listed.held_out) == len(world.true)
    assert all(listed.held_out[hash_id(image)] == world.true[image] for image in held_out(world, done.challenger.name))
    card = json.loads((done.challenger / "card.json").read_text())
    assert card["files"][ROWS] == hashlib.sha256((done.challenger / ROWS).read_bytes()).hexdigest()
    trained = sorted(image for image in world.true if hash_id(image) in listed.training)
    assert hashlib.sha256("\n".join(trained).encode()).hexdigest() == card["rows"]["training_ids_sha256"]
