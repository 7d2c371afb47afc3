"""``icecore sweep``: text, JSON and files tell the same; killed, it continues; two at once both end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Icecore = Callable[..., Any]
MODELS = "train.models=['logistic_regression','ridge','knn']"


def test_text_json_and_files_tell_the_same(icecore: Icecore, trained: Any) -> None:
    told = icecore("sweep", trained.config, "--set", MODELS)
    assert told.code == 0
    facts = icecore("sweep", trained.config, "--set", MODELS, "--json").outcome
    assert (facts["computed"], facts["reused"]) == (0, 4)
    winner = facts["winner"]
    lines = told.text.splitlines()
    assert lines[0].split() == ["layers", "model", "setting", "cv", "accuracy", "+-", "seconds"]
    assert lines[2].split()[:2] == [" + ".join(winner["columns"]), winner["model"]]
    assert len([line for line in lines if line.startswith("features.3:avg ")]) == 3
    assert f"chosen by cross-validation: {winner['model']} on features.3:avg" in lines
    assert f"held-out accuracy {winner['held_out']['accuracy']:.4f}" in told.text
    assert "4 cells computed, 0 read from an earlier sweep" in lines
    board = Path(lines[-1].removeprefix("leaderboard "))
    assert board == trained.store / "sweeps" / "default" / "leaderboard.csv"
    assert json.loads(board.with_suffix(".json").read_text())["cells"] == facts["cells"]
    assert max(map(len, lines[:5])) <= 110


def test_progress_and_the_quick_pass_are_told_on_stderr(icecore: Icecore, trained: Any) -> None:
    first = icecore("sweep", trained.config, "--set", MODELS)
    assert "[1/4] ridge on features.3:avg: cv " in first.told
    assert "[4/4] knn on features.3:avg: cv " in first.told
    assert "quick pass      features   ridge  nearest_mean" in first.told
    assert "goes on" in first.told
    again = icecore("sweep", trained.config, "--set", MODELS)
    assert again.told.count(", read\n") == 4


def test_the_leaderboard_goes_where_the_config_says(icecore: Icecore, trained: Any) -> None:
    trained.set('[sweep]\nout = "board"\nkeep = 1\n')
    done = icecore("sweep", trained.config, "--set", "train.report=true", "--json")
    assert done.code == 0
    names = ["leaderboard.csv", "leaderboard.json", "leaderboard.html"]
    assert done.outcome["files"] == [str(trained.folder / "board" / name) for name in names]
    assert all(Path(file).is_file() for file in done.outcome["files"])
    assert Path(done.outcome["report"]).is_file()


def test_the_winner_predicts(icecore: Icecore, trained: Any) -> None:
    bundle = icecore("sweep", trained.config, "--set", MODELS, "--json").outcome["bundles"][0]
    done = icecore("predict", bundle, trained.photos / "val")
    assert done.code == 0
    assert len(done.text.splitlines()) == 1 + 6


@pytest.mark.parametrize(
    ("override", "code", "message"),
    [
        ("train.save=all", 4, "train.save: a sweep saves its winner alone, found 'all'; or use icecore train"),
        ("train.outer_folds=3", 4, "train.outer_folds: a sweep is not nested, found 3; or use icecore train"),
        ("train.memory=1GiB", 4, "train.memory: a sweep trains in memory; leave the limit out, or use icecore train"),
        ("train.layers=['layer*']", 4, "has no layer 'layer*'; it has features.3:avg"),
        ("train.version=nosuch", 4, "train.version: "),
        ("sweep.keep=-1", 4, "sweep.keep: input should be greater than or equal to 0, found -1"),
        ("sweep.kep=1", 4, "unknown key; did you mean 'keep'?"),
        ("train.folds=50", 1, "class 'blue' has 6 training rows, fewer than the 50 folds"),
        ("set=phtos", 4, "did you mean 'photos'?"),
        ("store=nosuch", 3, "no feature store here"),
    ],
)
def test_what_cannot_be_is_named_with_the_cure(
    icecore: Icecore, trained: Any, override: str, code: int, message: str
) -> None:
    done = icecore("sweep", trained.config, "--set", override)
    assert done.code == code
    assert message in done.told
    assert not (trained.store / "sweeps").exists()


@pytest.mark.slow
def test_killed_in_the_middle_it_continues_to_the_same_leaderboard(icecore: Icecore, trained: Any) -> None:
    whole = icecore(
        "sweep", trained.config, "--set", "train.name=whole", "--set", "train.models=['ridge','xgboost']", "--json"
    )
    words = ["sweep", trained.config, "--set", "train.name=killed", "--set", "train.models=['ridge','xgboost']"]
    cells = trained.store / "sweeps" / "killed" / "cells"
    process = start(*words)
    wait_until(lambda: len(list(cells.glob("*.json"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = len([file for file in cells.glob("*.json") if '"what": "cell"' in file.read_text()])
    assert not (cells.parent / "leaderboard.json").exists()
    again = icecore(*words, "--json")
    assert again.code == 0
    assert again.outcome["reused"] >= min(found, 2)
    assert again.outcome["computed"] == 3 - again.outcome["reused"]
    assert comparable(again.outcome) == comparable(whole.outcome)


@pytest.mark.slow
def test_two_sweeps_of_one_name_at_once_both_end(trained: Any) -> None:
    words = ["sweep", trained.config, "--set", MODELS, "--json"]
    both = [start(*words) for _ in range(2)]
    outcomes = []
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        outcomes.append(json.loads(out.splitlines()[-1]))
    assert comparable(outcomes[0]) == comparable(outcomes[1])
    assert not list(trained.store.glob("sweeps/**/*.tmp"))


def comparable(outcome: dict[str, Any]) -> dict[str, Any]:
    cells = [{**cell, "seconds": None} for cell in outcome["cells"]]
    return {"cells": cells, "quick": outcome["quick"], "held_out": outcome["winner"]["held_out"]}


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "icecore.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def wait_until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def labelled(trained: Any) -> Any:
    """Images with a CSV of their mean brightness, and whether they are red, or bright for their kind."""
    lines = ["path,brightness,red,bright,split"]
    for path in sorted(trained.photos.rglob("*.png")):
        image, brightness = path.relative_to(trained.photos).as_posix(), float(np.asarray(Image.open(path)).mean())
        lines.append(f"{image},{brightness:.4f},{'/red/' in image:d},{int(path.stem) % 2},{image.split('/')[0]}")
    (trained.folder / "labels.csv").write_text("\n".join(lines), "utf-8")
    text = trained.config.read_text("utf-8").replace('models = ["logistic_regression"]', 'models = ["ridge", "knn"]')
    trained.config.write_text(text + '\n[labels]\ncsv = "labels.csv"\n', "utf-8")
    return trained


@pytest.mark.parametrize(
    ("task", "columns", "metric", "quick", "headline"),
    [
        ("regression", "['brightness']", "rmse", "ridge knn LogME", "held-out RMSE "),
        ("multilabel", "['red', 'bright']", "macro_f1", "ridge nearest_mean LogME", "held-out macro F1 "),
    ],
)
def test_numbers_and_labels_are_swept_told_and_predicted(
    icecore: Icecore, labelled: Any, task: str, columns: str, metric: str, quick: str, headline: str
) -> None:
    words = ["sweep", labelled.config, "--set", f"train.task={task}", "--set", f"labels.columns={columns}"]
    words += ["--set", "train.name=swept"]
    told = icecore(*words)
    assert told.code == 0, told.told
    header, _, first, second = told.text.splitlines()[:4]
    assert header.split() == ["layers", "model", "setting", "cv", metric, "+-", "seconds"]
    means = [float(line.split()[3]) for line in (first, second)]
    assert means == sorted(means, reverse=metric != "rmse")
    (ranked,) = [line for line in told.told.splitlines() if line.startswith("quick pass")]
    assert ranked.split()[3:] == quick.split()
    assert headline in told.text
    facts = icecore(*words, "--json").outcome
    assert (facts["task"], facts["metric"], facts["winner_reused"]) == (task, metric, True)
    (bundle,) = facts["bundles"]
    assert f"bundle {bundle}" in told.text.splitlines()
    assert icecore("predict", bundle, labelled.photos / "val").code == 0


def test_a_second_run_says_that_nothing_was_fitted(icecore: Icecore, trained: Any) -> None:
    first, second = (icecore("sweep", trained.config, "--set", MODELS, "--set", "train.name=twice") for _ in range(2))
    said = "nothing has changed since an earlier sweep made this bundle: no model was fitted"
    assert said not in first.text
    assert said in second.text.splitlines()
    assert len(list((trained.store / "models" / "twice").iterdir())) == 1
    assert {line for line in first.text.splitlines() if line.startswith(("bundle", "held-out"))} <= set(
        second.text.splitlines()
    )
