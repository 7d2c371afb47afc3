"""Numbers for Prometheus: as a command, at the end of each run, and of the model in use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from icecore.store import promote
from prometheus_client.parser import text_string_to_metric_families

Icecore = Callable[..., Any]


def numbers(text: str, name: str) -> dict[str, float]:
    """Give the values of a family by the label that is no store, as Prometheus reads them."""
    found = next((f for f in text_string_to_metric_families(text) if f.name == name), None)
    samples = [] if found is None else found.samples
    return {",".join(v for k, v in sample.labels.items() if k != "store"): sample.value for sample in samples}


def test_metrics_are_written_at_the_end_of_each_run(icecore: Icecore, trained: Any) -> None:
    trained.set('\n[watch]\nmetrics = "icecore.prom"\n')
    out = trained.folder / "icecore.prom"
    assert icecore("extract", trained.config).code == 0
    assert f'icecore_rows{{store="{trained.store}",set="photos"}} 18\n' in out.read_text()
    assert 'command="extract"} 0\n' in out.read_text()
    assert icecore("train", trained.config, "--set", "train.folds=50").code == 1
    assert "icecore_last_run_outcome{" in out.read_text()
    assert 'command="train"} 1\n' in out.read_text()
    out.unlink()
    out.mkdir()
    done = icecore("extract", trained.config)
    assert done.code == 0
    assert f"{out}: the metrics cannot be written (" in done.told


def test_metrics_as_a_command_print_or_write_the_same(icecore: Icecore, trained: Any) -> None:
    out = trained.folder / "icecore.prom"
    done = icecore("metrics", trained.store, "--out", out, "--json")
    shown = icecore("metrics", trained.store)

    def names(text: str) -> list[str]:
        return [line.rpartition(" ")[0] for line in text.splitlines()]

    assert names(out.read_text()) == names(shown.text)
    assert done.outcome["samples"] == sum(not line.startswith("#") for line in shown.text.splitlines())
    assert icecore("metrics", trained.folder).code == 3


def test_the_scores_of_the_model_in_use_are_those_of_its_card(
    icecore: Icecore, trained: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert numbers(icecore("metrics", trained.store).text, "icecore_champion_score") == {}
    bundle = trained.bundle
    made = promote(trained.store, "default", bundle, why="first")
    card = json.loads((bundle / "card.json").read_bytes())
    text = icecore("metrics", trained.store).text
    scores = numbers(text, "icecore_champion_score")
    assert scores["default,accuracy"] == pytest.approx(card["held_out"]["accuracy"])
    assert scores["default,log_loss"] == pytest.approx(card["held_out"]["log_loss"])
    assert numbers(text, "icecore_champion_held_out_images") == {"default": 6}
    assert numbers(text, "icecore_champion_promoted_timestamp_seconds").keys() == {"default"}
    shutil.rmtree(made.path)
    without = icecore("metrics", trained.store)
    assert "no scores can be read from its card" in caplog.text
    assert numbers(without.text, "icecore_champion_score") == {}
    assert numbers(without.text, "icecore_rows") == {"photos": 18}
