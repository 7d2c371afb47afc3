"""What ``icecore train`` refuses, each with its message and exit code, and cures that work when followed."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Icecore = Callable[..., Any]

TRAIN = [f"train/{label}/{n}.png" for label in ("blue", "red") for n in range(6)]
VAL = [f"val/{label}/{n}.png" for label in ("blue", "red") for n in range(3)]


def row(image: str) -> str:
    return f"{image},{image.split('/')[1]},{image.split('/')[0]}"


def table(*rows: str, header: str = "path,label,split") -> str:
    return "\n".join([header, *rows]) + "\n"


ALL = [row(image) for image in (*TRAIN, *VAL)]


@pytest.fixture
def relabel(trained: Any) -> Callable[[str], None]:
    """Function that gives the project a CSV of labels."""

    def write(text: str) -> None:
        (trained.folder / "labels.csv").write_text(text, "utf-8")
        trained.set('[labels]\ncsv = "labels.csv"\n')

    return write


def test_a_good_csv_trains(icecore: Icecore, trained: Any, relabel: Callable[[str], None]) -> None:
    relabel(table(*ALL))
    done = icecore("train", trained.config, "--json")
    assert done.code == 0
    assert done.outcome["rows"]["training"] == 12
    assert done.outcome["classes"] == ["blue", "red"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (table(*ALL, "val/red/99.png,red,val"), ["1 labelled images are not in the store: 'val/red/99.png'"]),
        (table(*ALL[1:]), ["1 images of the store have no label: 'train/blue/0.png'", 'labels.missing = "skip"']),
        (table(*ALL, ALL[3]), ["lines 5 and 20: 'train/blue/3.png' is there twice"]),
        (table(*ALL, "v/r.png,,val", ",red,val"), ["line 20: empty label of 'v/r.png'", "line 21: empty path"]),
        (table(*ALL[:-1], "val/red/2.png,red,"), ["line 19: empty split of 'val/red/2.png'"]),
        (table(*ALL[:-1], "val/red/2.png,red"), ["line 19: 2 fields, the header has 3"]),
        (table(*ALL, header="file,label,split"), ["no column 'path'; found 'file', 'label', 'split'"]),
        (table(*ALL, header="path;label;split"), ["no column 'path' nor 'label'; found 'path;label;split'"]),
        (table(), ["it has a header but no rows"]),
        ("", ["found an empty file"]),
        (table('"open,red,val'), ["line 2: malformed CSV"]),
        (table(*(f"{r}s" for r in ALL)), ["unknown names 'trains', 'vals'; training rows are train or training"]),
        (table(*(r.replace(",val", ",train") for r in ALL)), ["none of the 18 rows is a held-out row"]),
        (table(*(r.replace(",train", ",val") for r in ALL)), ["none of the 18 rows is a training row"]),
        (table(*(r.replace(",red", ",blue") for r in ALL)), ["all images have the label 'blue'"]),
        (table(*ALL[:-1], "val/red/2.png,green,val"), ["class 'green' has held-out rows but no training row"]),
    ],
    ids=[
        "unknown id", "missing id", "duplicate id", "empty label", "empty split", "short row", "missing column",
        "semicolons", "no rows", "empty file", "malformed", "unknown split", "all training", "all held out",
        "one class", "class only held out",
    ],
)  # fmt: skip
def test_labels_that_do_not_fit_end_with_1_naming_the_lines(
    icecore: Icecore, trained: Any, relabel: Callable[[str], None], text: str, messages: list[str]
) -> None:
    relabel(text)
    done = icecore("train", trained.config, "--json")
    assert (done.code, done.outcome["outcome"]) == (1, "failed")
    for message in messages:
        assert message in done.told
        assert message in done.outcome["error"]
    assert len(list((trained.store / "models" / "default").iterdir())) == 1  # no bundle beside the fixture's


@pytest.mark.parametrize(
    ("text", "cure", "named"),
    [
        (table(*ALL, "val/red/99.png,red,val"), "labels.unknown=skip", "val/red/99.png"),
        (table(*ALL[1:]), "labels.missing=skip", "train/blue/0.png"),
    ],
)
def test_labels_can_be_skipped_on_request_and_that_is_noted(
    icecore: Icecore, trained: Any, relabel: Callable[[str], None], text: str, cure: str, named: str
) -> None:
    relabel(text)
    assert icecore("train", trained.config).code == 1
    done = icecore("train", trained.config, "--set", cure)
    assert done.code == 0
    (note,) = [line for line in done.text.splitlines() if line.startswith("note: ") and "skipped" in line]
    assert named in note


def test_a_missing_csv_ends_with_1(icecore: Icecore, trained: Any) -> None:
    trained.set('[labels]\ncsv = "nosuch.csv"\n')
    done = icecore("train", trained.config)
    assert done.code == 1
    assert f"{trained.folder / 'nosuch.csv'}: cannot read the labels (No such file or directory)" in done.told


def test_a_class_with_one_image_ends_with_1_naming_it(
    icecore: Icecore, trained: Any, noisy: Callable[..., Any]
) -> None:
    (trained.photos / "train" / "green").mkdir()
    noisy(5).save(trained.photos / "train" / "green" / "only.png")
    assert icecore("extract", trained.config).code == 0
    done = icecore("train", trained.config)
    assert done.code == 1
    assert "class 'green' has 1 training rows, fewer than the 2 folds: add some, or remove the class" in done.told


def test_too_many_folds_end_with_1_and_the_cure_named_works(icecore: Icecore, trained: Any) -> None:
    done = icecore("train", trained.config, "--set", "train.folds=50")
    assert done.code == 1
    assert "class 'blue' has 6 training rows, fewer than the 50 folds" in done.told
    cure = re.search(r"lower it \((--set) (train\.folds=\d+)\)", done.told)
    assert cure is not None
    assert icecore("train", trained.config, *cure.groups()).code == 0


def test_images_that_failed_are_noted_not_refused(icecore: Icecore, trained: Any) -> None:
    (trained.photos / "train" / "red" / "bad.png").write_bytes(b"")
    (trained.folder / "labels.csv").write_text(table(*ALL, "train/red/bad.png,red,train"), "utf-8")
    trained.set('[labels]\ncsv = "labels.csv"\n')
    assert icecore("extract", trained.config).code == 5
    done = icecore("train", trained.config, "--json")
    assert done.code == 0
    assert done.outcome["rows"]["failed_images"] == ["train/red/bad.png"]
    assert "could not be extracted" in done.outcome["notes"][0]


def test_folders_without_a_split_level_are_refused(icecore: Icecore, trained: Any) -> None:
    shutil.move(trained.photos / "val" / "red" / "0.png", trained.photos / "loose.png")
    assert icecore("extract", trained.config).code == 0
    done = icecore("train", trained.config)
    assert done.code == 1
    assert "1 of 18 images are not placed as SPLIT/LABEL/IMAGE: 'loose.png'" in done.told


def test_a_split_by_hash_holds_out_rows_where_none_are_given(icecore: Icecore, trained: Any) -> None:
    done = icecore("train", trained.config, "--set", "labels.layout=label", "--set", "split.by=hash", "--json")
    assert done.code == 0
    assert done.outcome["rows"]["training"] + done.outcome["rows"]["held_out"] == 18


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("train.layers=['features.4']", 4, "has no layer 'features.4'; it has features.3:avg; did you mean"),
        ("train.layers=['features.3:max']", 4, "has no layer 'features.3:max'"),
        ("set=phtos", 4, "no feature set 'phtos'; it has photos; did you mean 'photos'?"),
        ("store=nosuch", 3, "nosuch: no feature store here (no catalog.sqlite); `icecore extract` makes one"),
        ("train.models=['lgistic_regression']", 4, "did you mean 'logistic_regression'?"),
        ("train.metric=accurcy", 4, "found 'accurcy'; did you mean 'accuracy'?"),
        ("train.name='../x'", 4, "train.name: string should match pattern"),
        ("train.folds=1", 4, "train.folds: input should be greater than or equal to 2, found 1"),
        ("train.grids={svm=[1]}", 4, "train.grids"),
    ],
)
def test_what_is_not_there_is_named_with_what_there_is(
    icecore: Icecore, trained: Any, override: str, code: int, message: str
) -> None:
    done = icecore("train", trained.config, "--set", override)
    assert done.code == code
    assert message in done.told


def test_a_report_without_its_extra_is_refused_before_any_work(
    icecore: Icecore, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)  # as Python itself marks what cannot be imported
    done = icecore("train", trained.config, "--set", "train.report=true")
    assert done.code == 1
    assert done.told == "icecore train: the report needs jinja2: pip install 'icecore[report]'\n"
    assert icecore("train", trained.config).code == 0  # its config asks for no report


def test_text_and_json_tell_the_same(icecore: Icecore, trained: Any) -> None:
    told, facts = icecore("train", trained.config), icecore("train", trained.config, "--json")
    winner = facts.outcome["winner"]
    assert "chosen by cross-validation: logistic_regression on features.3:avg" in told.text
    assert f"held-out accuracy {winner['held_out']['accuracy']:.4f}" in told.text
    assert "[1/1] logistic_regression on features.3:avg: cv " in told.told
    bundle = told.text.splitlines()[-1].removeprefix("bundle ")
    assert (Path(bundle) / "card.json").is_file()
    assert Path(facts.outcome["bundles"][0]).is_dir()


def test_the_cure_named_for_labels_without_a_split_works(icecore: Icecore, trained: Any) -> None:
    done = icecore("train", trained.config, "--set", "labels.layout=label")
    assert done.code == 1
    found = re.search(r'\((split\.\w+) = "(\w+)"\)', done.told)
    assert found
    cure = f"{found[1]}={found[2]}"
    assert icecore("train", trained.config, "--set", "labels.layout=label", "--set", cure).code == 0


def test_training_learns_from_a_tagged_version(icecore: Icecore, trained: Any) -> None:
    tagged = icecore("store", "tag", trained.store, "photos", "paper")
    assert tagged.code == 0
    (trained.photos / "train" / "red" / "0.png").unlink()
    assert icecore("extract", trained.config).code == 0
    now = icecore("train", trained.config, "--json").outcome
    then = icecore("train", trained.config, "--json", "--set", "train.version=paper").outcome
    assert (now["version"], then["version"]) == (2, 1)
    assert then["rows"]["training"] == now["rows"]["training"] + 1
    unknown = icecore("train", trained.config, "--set", "train.version=papre")
    assert unknown.code == 4
    assert "train.version: " in unknown.told
    assert "did you mean 'paper'" in unknown.told
