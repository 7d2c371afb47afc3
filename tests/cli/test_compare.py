"""``icecore compare``: text, JSON and page tell the same; what cannot be compared is named with the cure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore

Icecore = Callable[..., Any]
Tune = Callable[..., Any]
PLAIN = ("--set", "train.report=false")


def test_text_json_and_page_tell_the_same(icecore: Icecore, trained: Any, tune: Tune) -> None:
    tune(trained.store, "red")
    told = icecore("compare", "--config", trained.config, "--set", "train.report=true")
    assert told.code == 0
    facts = icecore("compare", "--config", trained.config, *PLAIN, "--json").outcome
    lines = told.text.splitlines()
    assert lines[0].startswith(f"A {facts['a']['name']}: torchvision.models.squeezenet1_1, weights ")
    assert lines[1].endswith(", fine-tuned 2026-01-02T03:04:05+00:00")
    assert lines[3].split()[:3] == ["layers", "model", "cv"]
    assert lines[5].split()[:2] == ["features.3:avg", "logistic_regression"]
    assert lines[-2] == facts["verdict"]["text"]
    assert any(line.startswith("B costs: fine-tuned for 9 s, 2 epochs, on 12 images; 18 images ext") for line in lines)
    page = Path(lines[-1].removeprefix("page "))
    assert page == trained.store / "comparisons" / f"{facts['a']['name']}-{facts['b']['name']}.html"
    assert facts["verdict"]["text"][1:] in page.read_text("utf-8")
    assert facts["page"] is None
    assert (facts["a"]["tuned"], facts["b"]["tuned"]) == (False, True)
    assert len(facts["b"]["epochs"]) == 3
    assert f"[1/1] {facts['b']['name']}: logistic_regression on features.3:avg: cv " in told.told


def test_names_tags_and_generations_stand_for_sides(icecore: Icecore, trained: Any, tune: Tune, tmp_path: Path) -> None:
    assert icecore("store", "tag", trained.store, "photos", "frozen").code == 0
    tune(trained.store, "red")
    plain = icecore("compare", "--config", trained.config, *PLAIN, "--json").outcome
    with FeatureStore.open(trained.store) as store:
        frozen = store.at("photos@frozen").generation
    for names in (("photos@frozen", "photos"), (frozen[:8], "photos"), ("photos",)):
        found = icecore("compare", *names, "--config", trained.config, *PLAIN, "--json").outcome
        assert found["winners"] == plain["winners"], names
    out = tmp_path / "page.html"
    alone = icecore("compare", "photos@frozen", "photos", "--store", trained.store, "--out", out, "--json").outcome
    assert alone["page"] == str(out)
    assert out.is_file()
    assert not (trained.store / "comparisons").exists()
    assert json.dumps(alone["winners"]["n"]) == "6"


def test_a_seen_held_out_image_ends_with_1_and_its_name(icecore: Icecore, trained: Any, tune: Tune) -> None:
    tune(trained.store, "red", seen="")
    done = icecore("compare", "--config", trained.config)
    assert done.code == 1
    assert "held-out images were seen by the fine-tuning of 2026-01-02" in done.told
    assert "6 by name ('val/blue/0.png'" in done.told
    assert not (trained.store / "comparisons").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--config", "job.toml"), 1, "is not of a fine-tuned backbone, so that it has no parent; name both sides"),
        (("photos", "photos@99", "--config", "job.toml"), 2, "set 'photos' has no version 99"),
        (("phtos", "--config", "job.toml"), 2, "did you mean 'photos'?"),
        (("abcdef1", "photos", "--config", "job.toml"), 2, "no generation 'abcdef1'"),
        (("photos",), 2, "name a config (--config), or a store (--store) and what to compare: A B"),
        (("--store", "features"), 2, "name a config (--config), or a store"),
        (("photos", "--store", "features", "--set", "train.folds=3"), 2, "--set changes a config"),
        (("photos", "--config", "job.toml", "--set", "train.memory=1GiB"), 4, "a comparison trains in memory"),
        (("photos", "--config", "job.toml", "--set", "train.folds=1"), 4, "greater than or equal to 2"),
        (("photos", "--config", "nosuch.toml"), 4, "nosuch.toml: no such file"),
        (("photos", "--config", "job.toml", "--out", "no/such/page.html"), 2, "there is no folder 'no/such'"),
        (("photos", "photos@1", "--config", "job.toml", "--least-gain", "-1"), 2, "is not in the range x>=0"),
        (("photos", "--store", "nosuch"), 3, "no feature store here"),
    ],
)
def test_what_cannot_be_is_named_with_the_cure(
    icecore: Icecore,
    trained: Any,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(trained.folder)
    done = icecore("compare", *words)
    assert done.code == code
    assert message in done.told


def test_a_page_that_cannot_be_written_does_not_lose_what_was_found(icecore: Icecore, trained: Any, tune: Tune) -> None:
    tune(trained.store, "red")
    (trained.store / "comparisons").write_text("in the way")
    done = icecore("compare", "--config", trained.config, "--set", "train.report=true")
    assert done.code == 1
    assert "the page cannot be written there" in done.told
    assert "95 % interval" in done.text
