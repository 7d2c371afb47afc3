"""One value says how a command ended: its exit code, the last line of ``--json`` and ``--result-file`` agree."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from icecore.cli.exits import MEANING, RETRYABLE, Exit, outcome_of_error
from icecore.extract import DeviceError, ProcessLostError

Icecore = Callable[..., Any]
Situation = Callable[[Any], list[object]]

HOLDER = """
import sys
from pathlib import Path
from icecore.store.lock import writer_lock
with writer_lock(Path(sys.argv[1]), command="the nightly job"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(store: Path) -> Iterator[int]:
    """Hold the writer's lock in another process; gives its pid."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        yield other.pid
        other.stdin.close()
    assert other.returncode == 0


def add_bad(project: Any) -> list[object]:
    (project.photos / "train" / "red" / "bad.png").write_bytes(b"")
    return ["extract", project.config]


def break_store(project: Any) -> list[object]:
    (project.store / "catalog.sqlite").write_bytes(b"not a catalog" * 100)
    return ["store", "ls", project.store]


def generation(project: Any) -> str:
    (folder,) = (project.store / "segments" / "photos").iterdir()
    return folder.name


SITUATIONS: dict[str, tuple[Exit, Situation]] = {
    "extract": (Exit.DONE, lambda p: ["extract", p.config]),
    "train": (Exit.DONE, lambda p: ["train", p.config]),
    "predict": (Exit.DONE, lambda p: ["predict", p.bundle, p.photos / "val"]),
    "layers": (Exit.DONE, lambda p: ["layers", "squeezenet1_1"]),
    "store compact": (Exit.DONE, lambda p: ["store", "compact", p.store]),
    "store diff": (Exit.DONE, lambda p: ["store", "diff", p.store, "photos", p.bundle]),
    "store gc": (Exit.DONE, lambda p: ["store", "gc", p.store]),
    "store log": (Exit.DONE, lambda p: ["store", "log", p.store]),
    "store revert": (Exit.DONE, lambda p: ["store", "revert", p.store, "photos", "1"]),
    "store tag": (Exit.DONE, lambda p: ["store", "tag", p.store, "photos", "v1"]),
    "store ls": (Exit.DONE, lambda p: ["store", "ls", p.store]),
    "store show": (Exit.DONE, lambda p: ["store", "show", p.store, "photos"]),
    "store verify": (Exit.DONE, lambda p: ["store", "verify", p.store]),
    "no such folder": (Exit.FAILED, lambda p: ["extract", p.config, "--set", "source.folder=nosuch"]),
    "too many folds": (Exit.FAILED, lambda p: ["train", p.config, "--set", "train.folds=50"]),
    "store drop": (Exit.FAILED, lambda p: ["store", "drop", p.store, generation(p)]),
    "no such option": (Exit.USAGE, lambda p: ["extract", p.config, "--nosuch"]),
    "no argument": (Exit.USAGE, lambda p: ["store", "show", p.store]),
    "no such choice": (Exit.USAGE, lambda p: ["predict", p.bundle, p.photos, "--format", "xml"]),
    "not a demo": (Exit.USAGE, lambda p: ["demo", p.folder]),
    "no store": (Exit.STORE_INVALID, lambda p: ["store", "show", p.folder / "nosuch", "photos"]),
    "broken store": (Exit.STORE_INVALID, break_store),
    "config": (Exit.CONFIG_INVALID, lambda p: ["extract", p.config, "--set", "compute.batch_size=0"]),
    "bad image": (Exit.SOME_IMAGES_FAILED, add_bad),
    "bad prediction": (Exit.SOME_IMAGES_FAILED, lambda p: ["predict", p.bundle, p.config]),
}
COMMANDS = {
    "no such folder": "extract", "too many folds": "train", "no such option": "extract", "no argument": "store show",
    "no such choice": "predict", "not a demo": "demo", "no store": "store show", "broken store": "store ls",
    "config": "extract", "bad image": "extract", "bad prediction": "predict",
}  # fmt: skip


@pytest.mark.parametrize("name", SITUATIONS)
def test_code_json_and_result_file_are_one_value(icecore: Icecore, trained: Any, name: str) -> None:
    code, situation = SITUATIONS[name]
    result = trained.folder.parent / "result.json"
    result.write_text('{"exit_code": "of yesterday"}')
    done = icecore(*situation(trained), "--json", "--result-file", result)
    assert done.code == code
    assert json.loads(result.read_text()) == done.outcome
    assert done.outcome["command"] == COMMANDS.get(name, name)
    assert done.outcome["outcome"] == MEANING[code]
    assert done.outcome["retryable"] is False
    assert ("error" in done.outcome) == (code not in (Exit.DONE, Exit.SOME_IMAGES_FAILED))
    if "error" in done.outcome:
        assert done.outcome["error"] in done.told


@pytest.mark.parametrize("name", SITUATIONS)
def test_without_json_the_code_is_the_same_and_an_error_goes_to_stderr_alone(
    icecore: Icecore, trained: Any, name: str
) -> None:
    code, situation = SITUATIONS[name]
    done = icecore(*situation(trained))
    assert done.code == code
    if code in (Exit.DONE, Exit.SOME_IMAGES_FAILED):
        assert done.out
    else:
        assert done.out == b""
        assert done.told


def test_a_store_that_another_process_writes_to_ends_with_7_and_may_be_retried(icecore: Icecore, trained: Any) -> None:
    with held_by_another_process(trained.store) as pid:
        done = icecore("extract", trained.config, "--json")
        assert (done.code, done.outcome["outcome"]) == (7, "locked by another run")
        assert done.outcome["retryable"] is True
        assert f"{trained.store}: being written by pid {pid} on " in done.told
        assert "(the nightly job) since " in done.told
        readers = [
            icecore("store", "show", trained.store, "photos"),
            icecore("extract", trained.config, "--dry-run"),
            icecore("train", trained.config),
        ]
        assert [reader.code for reader in readers] == [0, 0, 0]
    assert icecore("extract", trained.config).code == 0


def test_only_what_may_end_otherwise_by_itself_is_retryable() -> None:
    """7 and 130 are made for real above and in test_processes; 6 belongs to retraining."""
    assert {Exit.LOCKED, Exit.INTERRUPTED} == RETRYABLE
    assert set(MEANING) == set(Exit)


@pytest.mark.parametrize(("error", "retryable"), [(ProcessLostError("killed"), True), (DeviceError("absent"), False)])
def test_a_process_that_was_lost_may_be_retried_and_a_device_that_is_not_there_not(
    error: DeviceError, retryable: bool
) -> None:
    outcome = outcome_of_error(error)
    assert outcome is not None
    assert (outcome.code, outcome.transient) == (Exit.FAILED, retryable)


def test_a_result_file_that_cannot_be_written_makes_a_failure_of_the_run(icecore: Icecore, trained: Any) -> None:
    folder = trained.folder / "full"
    folder.mkdir()
    result = folder / ("x" * 250)  # leaves no room for the temporary name that it is written under
    done = icecore("store", "ls", trained.store, "--json", "--result-file", result)
    assert done.code == 1
    assert f"{result}: the outcome cannot be written there (File name too long); it was: done" in done.told
    assert list(folder.iterdir()) == []


def test_a_defect_of_ours_still_ends_in_an_outcome(
    icecore: Icecore, trained: Any, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    from icecore.store import FeatureSet

    monkeypatch.delattr(FeatureSet, "coverage")
    result = trained.folder / "result.json"
    with pytest.raises(AssertionError, match="Traceback"):  # which no other test lets pass
        icecore("store", "show", trained.store, "photos", "--json", "--result-file", result)
    outcome = json.loads(result.read_text())
    assert (outcome["exit_code"], outcome["outcome"]) == (1, "failed")
    assert outcome["error"].startswith("unexpected AttributeError: 'FeatureSet' object has no attribute 'coverage'")
    assert "report it" in outcome["error"]
