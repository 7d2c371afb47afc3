"""``icecore advise``: text and JSON tell the same advice; what it is not for is named with the cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from icecore.train.advice_rules import RULES

Icecore = Callable[..., Any]


def test_text_and_json_tell_the_same(icecore: Icecore, trained: Any) -> None:
    told = icecore("advise", trained.config)
    assert told.code == 0
    facts = icecore("advise", trained.config, "--json").outcome
    lines = told.text.splitlines()
    assert lines[0].split()[:3] == ["layer", "features", "cv"]
    assert lines[2].split()[0] == "features.3:avg"
    assert lines[4].startswith("12 training images of 2 classes, the fewest 6 of blue; 6 held out; majority class 0.5")
    assert f"advice: {facts['action']}" in lines
    assert facts["action"] == "gather data"
    assert facts["reasons"][0]["rule"] == "tiny class"
    told_rules = [line.partition("[")[2].split(";")[0].split(" would")[0] for line in lines if line.startswith("  ")]
    known = [reason["rule"] for part in ("reasons", "against", "warnings") for reason in facts[part]]
    assert told_rules == known
    assert set(known) <= {rule.name for rule in RULES}
    assert facts["facts"]["layers"][0]["name"] == "features.3:avg"
    assert facts["facts"]["distance"]["looked_at"] == 6
    assert "features.3:avg: cv " in told.told


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("train.memory=1GiB", 4, "train.memory: advice is found in memory; leave the limit out"),
        ("train.version=nosuch", 4, "train.version: "),
        ("train.layers=['layer9']", 4, "has no layer 'layer9'; it has features.3:avg"),
        ("train.folds=50", 1, "class 'blue' has 6 training rows, fewer than the 50 folds"),
        ("set=phtos", 4, "did you mean 'photos'?"),
        ("store=nosuch", 3, "no feature store here"),
    ],
)
def test_what_cannot_be_is_named_with_the_cure(
    icecore: Icecore, trained: Any, override: str, code: int, message: str
) -> None:
    done = icecore("advise", trained.config, "--set", override)
    assert done.code == code
    assert message in done.told


def test_other_tasks_are_refused(icecore: Icecore, trained: Any) -> None:
    trained.set('\n[labels]\ncsv = "labels.csv"\ncolumns = ["age"]\n')
    done = icecore("advise", trained.config, "--set", "train.task=regression", "--set", "train.models=['ridge']")
    assert done.code == 4
    assert "train.task: advice is for classes, found 'regression'" in done.told
