"""``icecore retrain`` and ``icecore models``, from the first model to the way back."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store.lock import retrain_lock
from icecore.train import load_bundle

Icecore = Callable[..., Any]
RETRAIN = '[retrain]\nname = "nightly"\nmin_rows = 5\nlevel = 0.2\nmax_class_drop = 1.0\n'


@pytest.fixture
def nightly(trained: Any) -> Any:
    """A project with features of 18 images, easily told apart, and a section for the gate."""
    trained.set(RETRAIN)
    return trained


def promoted(icecore: Icecore, project: Any) -> Any:
    done = icecore("retrain", project.config, "--json")
    assert done.code == 0, done.told
    return done.outcome


def another(icecore: Icecore, project: Any) -> str:
    """Have a challenger that is no better."""
    done = icecore("retrain", project.config, "--set", "train.seed=1", "--json")
    assert (done.code, done.outcome["decided"]) == (6, "kept")
    return Path(done.outcome["challenger"]).name


def test_a_first_model_is_promoted_and_the_same_inputs_give_the_same_answer(icecore: Icecore, nightly: Any) -> None:
    done = icecore("retrain", nightly.config)
    assert done.code == 0
    assert "something is new: training a challenger on 12 rows" in done.told
    assert "\npromoted: better than the baseline: accuracy 1.0000 against the baseline's 0.5000" in done.text
    assert f"champion {nightly.store}/models/nightly/" in done.text
    again = icecore("retrain", nightly.config)
    assert again.code == 0
    assert "nothing is new: what was decided of the same inputs holds (promoted)" in again.text
    assert "training" not in again.told
    as_json = icecore("retrain", nightly.config, "--json").outcome
    assert (as_json["decided"], as_json["recorded"], as_json["number"]) == ("promoted", True, 1)


def test_a_promotion_is_told_once_and_a_recorded_one_is_nothing_to_do(icecore: Icecore, nightly: Any) -> None:
    nightly.set('[hooks]\ndrop = "outbox"\ndrop_on = ["promote"]\n')
    outbox = nightly.folder / "outbox"
    assert promoted(icecore, nightly)["nothing_to_do"] is False
    (told,) = outbox.iterdir()
    again = icecore("retrain", nightly.config, "--skip-code", "99", "--json")
    assert (again.code, again.outcome["recorded"], again.outcome["nothing_to_do"]) == (99, True, True)
    another(icecore, nightly)
    assert icecore("retrain", nightly.config, "--set", "train.seed=1", "--force").code == 0
    assert len(list(outbox.iterdir())) == 2
    icecore("models", "rollback", nightly.store, "nightly", "--why", "it fails in the field")
    assert icecore("retrain", nightly.config, "--set", "train.seed=1").code == 0
    assert (len(list(outbox.iterdir())), told.exists()) == (2, True)


def test_a_challenger_that_is_no_better_ends_with_6_and_does_so_again(icecore: Icecore, nightly: Any) -> None:
    champion = promoted(icecore, nightly)["champion"]
    for recorded in (False, True):
        done = icecore("retrain", nightly.config, "--set", "train.seed=1", "--json")
        assert (done.code, done.outcome["outcome"]) == (6, "challenger kept back")
        assert (done.outcome["retryable"], done.outcome["recorded"]) == (False, recorded)
        assert done.outcome["champion"] == champion
        assert [rule["name"] for rule in done.outcome["rules"] if not rule["passed"]] == ["min_gain", "level"]
    shown = icecore("retrain", nightly.config, "--set", "train.seed=1").text
    assert "kept back: min_gain: accuracy 1.0000 against the champion's 1.0000, gain +0.0000" in shown


def test_a_dry_run_promotes_nothing_and_force_promotes_what_was_kept_back(icecore: Icecore, nightly: Any) -> None:
    dry = icecore("retrain", nightly.config, "--dry-run")
    assert dry.code == 0
    assert "\nwould be promoted: " in dry.text
    assert dry.text.rstrip().endswith("no champion yet")
    promoted(icecore, nightly)
    another(icecore, nightly)
    done = icecore("retrain", nightly.config, "--set", "train.seed=1", "--force", "--json")
    assert (done.code, done.outcome["decided"], done.outcome["forced"]) == (0, "promoted", True)
    assert " forced " in icecore("models", "show", nightly.store, "nightly").text


def test_a_run_at_work_ends_the_second_with_7_naming_it(icecore: Icecore, nightly: Any) -> None:
    promoted(icecore, nightly)
    with retrain_lock(nightly.store / "models" / "nightly", command="icecore retrain other.toml"):
        done = icecore("retrain", nightly.config, "--json")
    assert (done.code, done.outcome["retryable"]) == (7, True)
    assert f"being retrained by pid {os.getpid()} on " in done.outcome["error"]
    assert "(icecore retrain other.toml)" in done.outcome["error"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retrain.level=1.5", "retrain.level: input should be less than 1, found 1.5"),
        ("retrain.max_clas_drop=0.1", "did you mean 'max_class_drop'?"),
        ("retrain.metric=rmse", "retrain.metric: 'rmse' is not for classification"),
        ("train.save=all", "train.save: a retraining saves its challenger alone, found 'all'"),
        ("train.outer_folds=3", "train.outer_folds: a retraining is not nested, found 3"),
    ],
)
def test_what_cannot_be_is_a_fault_of_the_config(icecore: Icecore, nightly: Any, override: str, message: str) -> None:
    done = icecore("retrain", nightly.config, "--set", override)
    assert done.code == 4
    assert message in done.told


def test_models_are_listed_shown_and_compared(icecore: Icecore, nightly: Any) -> None:
    assert "default" in icecore("models", "ls", nightly.store).text, "bundles of icecore train, with no champion"
    champion = Path(promoted(icecore, nightly)["champion"]).name
    other = another(icecore, nightly)
    listed = icecore("models", "ls", nightly.store, "--json").outcome["models"]
    assert [(one["name"], one["champion"], one["bundles"]) for one in listed] == [
        ("default", None, 1),
        ("nightly", champion, 2),
    ]
    shown = icecore("models", "show", nightly.store, "nightly", "--json").outcome
    assert shown["champion"] == champion
    assert [one["bundle"] for one in shown["bundles"]] == sorted([champion, other])
    (history,) = shown["promotions"]
    assert (history["number"], history["bundle"], history["kind"], history["forced"]) == (1, champion, "promote", False)
    assert history["config"]["train"]["models"] == ["logistic_regression"]
    assert history["metrics"]["decision"]["decided"] == "promoted"
    differences = icecore("models", "diff", nightly.store, "nightly", other, "--json").outcome
    assert (differences["a"], differences["b"], differences["same"]) == (other, champion, False)
    assert {"field": "seed", "a": 1, "b": 0} in differences["differences"]
    text = icecore("models", "diff", nightly.store, "nightly", other, "champion").text
    assert [line.split() for line in text.splitlines() if line.startswith("seed")] == [["seed", "1", "0"]]
    assert icecore("models", "diff", nightly.store, "nightly", champion).text.strip() == "the same"


def test_a_bundle_is_promoted_by_hand_and_rolled_back(icecore: Icecore, nightly: Any) -> None:
    first = Path(promoted(icecore, nightly)["champion"]).name
    other = another(icecore, nightly)
    done = icecore("models", "promote", nightly.store, "nightly", other, "--why", "by hand", "--json")
    assert (done.code, done.outcome["number"], done.outcome["why"]) == (0, 2, "by hand")
    back = icecore("models", "rollback", nightly.store, "nightly", "--why", "no good")
    assert (back.code, back.text.strip()) == (
        0,
        f"nightly: {first} is in use again, as in promotion 1 (promotion 3)",
    )
    again = icecore("models", "rollback", nightly.store, "nightly", "--why", "better than thought", "--to", other)
    assert again.code == 0
    assert icecore("models", "ls", nightly.store, "--json").outcome["models"][1]["champion"] == other


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "{store}", "nigthly"), 2, "no model 'nigthly'; there are default, nightly; did you mean 'nightly'?"),
        (("show", "{store}/nowhere", "nightly"), 3, "no feature store here"),
        (("promote", "{store}", "nightly", "2031", "--why", "?"), 1, "no bundle of 'nightly': '2031'; there are 20"),
        (("promote", "{store}", "nightly", "20"), 2, "Missing option '--why'"),
        (("rollback", "{store}", "default", "--why", "?"), 1, "'default' has no champion to go back from"),
        (("diff", "{store}", "default", "champion"), 2, "'default' has no champion yet; name a bundle"),
        (("diff", "{store}", "nightly", "2031"), 2, "no bundle of 'nightly': '2031'"),
        (("gc", "{store}", "nigthly"), 2, "did you mean 'nightly'?"),
        (("export", "{store}", "nightly", "--to", "{store}"), 2, "exists already; choose another name"),
        (("export", "{store}", "nightly", "--to", "{store}/no/where"), 1, "there is no folder"),
    ],
)
def test_what_is_not_there_is_told(
    icecore: Icecore, nightly: Any, words: tuple[str, ...], code: int, message: str
) -> None:
    promoted(icecore, nightly)
    done = icecore("models", *(word.format(store=nightly.store) for word in words))
    assert done.code == code
    assert message in done.told


def test_gc_deletes_what_is_neither_in_use_nor_new(icecore: Icecore, nightly: Any) -> None:
    promoted(icecore, nightly)
    other = another(icecore, nightly)
    folder = nightly.store / "models" / "nightly" / other
    size = sum(file.stat().st_size for file in folder.iterdir())
    would = icecore("models", "gc", nightly.store, "nightly", "--keep-days", "0", "--dry-run")
    assert f"1 bundle would be deleted, {size:,} bytes would be freed" in would.text
    assert folder.is_dir()
    assert icecore("models", "gc", nightly.store, "--json").outcome["deleted"] == [], "all are new"
    done = icecore("models", "gc", nightly.store, "nightly", "--keep-days", "0", "--json").outcome
    assert ([one["bundle"] for one in done["deleted"]], done["bytes"]) == ([other], size)
    assert not folder.exists()


def test_the_champion_is_exported_as_a_folder_and_as_a_zip_that_load(icecore: Icecore, nightly: Any) -> None:
    champion = Path(promoted(icecore, nightly)["champion"])
    out = nightly.folder / "out"
    for to in (out, nightly.folder / "out.zip"):
        assert icecore("models", "export", nightly.store, "nightly", "--to", to).code == 0
        assert icecore("models", "export", nightly.store, "nightly", "--to", to).code == 2
        assert icecore("models", "export", nightly.store, "nightly", "--to", to, "--overwrite").code == 0
    assert load_bundle(out).card == load_bundle(champion).card
    with zipfile.ZipFile(nightly.folder / "out.zip") as archive:
        archive.extractall(nightly.folder / "unzipped")
    assert load_bundle(nightly.folder / "unzipped" / champion.name).card == load_bundle(champion).card
    assert [path.name for path in nightly.folder.glob(".out*")] == []
    refused = icecore("models", "export", nightly.store, "nightly", "--to", nightly.photos, "--overwrite")
    assert (refused.code, (nightly.photos / "train").is_dir()) == (1, True)
    assert "is no bundle, and is not replaced by one" in refused.told
    (champion / "steps.skops").write_bytes(b"ruined")
    damaged = icecore("models", "export", nightly.store, "nightly", "--to", nightly.folder / "third")
    assert damaged.code == 1
    assert "a damaged bundle is not handed out" in damaged.told


def test_a_damaged_card_is_shown_as_such(icecore: Icecore, nightly: Any) -> None:
    promoted(icecore, nightly)
    other = another(icecore, nightly)
    card = nightly.store / "models" / "nightly" / other / "card.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "seed": 9}))
    done = icecore("models", "show", nightly.store, "nightly")
    assert done.code == 0
    assert [line.split()[-1] for line in done.text.splitlines() if line.startswith(other)] == ["damaged"]
