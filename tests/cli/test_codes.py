"""Exit codes as schedulers want them: one value for code, JSON, file, log, heartbeat and record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.cli.exits import DONE_SOMEHOW, MAY_BE_SUCCESS, MEANING, Asked, Exit, Outcome
from icecore.store import list_runs

Icecore = Callable[..., Any]


@pytest.fixture
def bad(trained: Any) -> Any:
    """A project with an image that is none: extract ends with 5."""
    (trained.photos / "train" / "red" / "bad.png").write_bytes(b"")
    return trained


@pytest.mark.parametrize("code", Exit)
def test_a_code_ends_as_0_only_when_it_is_listed_and_keeps_its_own_in_the_object(code: Exit) -> None:
    asked = Asked(frozenset({5, 6, 7, 130}))
    outcome = asked.applied(Outcome(code))
    told = outcome.to_json("extract")
    assert outcome.exit_code == told["exit_code"] == (0 if int(code) in {5, 6, 7, 130} else int(code))
    assert (told["outcome_code"], told["outcome"]) == (int(code), MEANING[code])
    assert Asked().applied(outcome).exit_code == int(code)


@pytest.mark.parametrize("code", Exit)
@pytest.mark.parametrize("nothing", [True, False])
def test_the_skip_code_stands_for_nothing_to_do_alone(code: Exit, nothing: bool) -> None:
    outcome = Asked(skip_code=99).applied(Outcome(code, nothing_to_do=nothing))
    assert outcome.exit_code == (99 if nothing and code is Exit.DONE else int(code))


def test_a_failure_is_never_called_a_success(icecore: Icecore, trained: Any) -> None:
    assert {Exit.SOME_IMAGES_FAILED, Exit.CHALLENGER_KEPT_BACK, Exit.LOCKED, Exit.INTERRUPTED} <= MAY_BE_SUCCESS
    assert not MAY_BE_SUCCESS & {Exit.DONE, Exit.FAILED, Exit.USAGE, Exit.STORE_INVALID, Exit.CONFIG_INVALID}
    for codes in ("1", "5,1", "0", "x", "5;6", "5,,6", "-5"):
        done = icecore("extract", trained.config, "--success-on", codes)
        assert done.code == 2, codes
        assert "expected some of 5, 6, 7" in done.told


@pytest.mark.parametrize("code", [1, 5, 7, 130, 256, -1])
def test_a_skip_code_that_means_something_already_is_refused(icecore: Icecore, trained: Any, code: int) -> None:
    done = icecore("extract", trained.config, "--skip-code", code)
    assert done.code == 2
    assert "--skip-code" in done.told


def test_success_on_is_in_code_json_file_log_heartbeat_and_record(icecore: Icecore, bad: Any, tmp_path: Path) -> None:
    result, log, beat = (tmp_path / name for name in ("result.json", "log.jsonl", "beat.json"))
    files = ("--result-file", result, "--log-json", log, "--heartbeat", beat)
    done = icecore("extract", bad.config, "--success-on", "5,6,7", "--json", *files)
    assert done.code == 0
    assert (done.outcome["exit_code"], done.outcome["outcome_code"]) == (0, 5)
    assert done.outcome["outcome"] == "done, but some images failed"
    assert json.loads(result.read_text()) == done.outcome
    assert json.loads(log.read_text().splitlines()[-1])["exit_code"] == 0
    assert json.loads(beat.read_text())["exit_code"] == 0
    newest = list_runs(bad.store)[0]
    assert (newest.exit_code, newest.outcome["outcome_code"]) == (0, 5)


def test_nothing_to_do_ends_with_the_skip_code_and_work_that_was_done_does_not(icecore: Icecore, trained: Any) -> None:
    time.sleep(2.1)  # until the files are old enough for their times to be trusted
    assert icecore("extract", trained.config).code == 0
    done = icecore("extract", trained.config, "--skip-code", "99", "--json")
    assert (done.code, done.outcome["nothing_to_do"], done.outcome["outcome_code"]) == (99, True, 0)
    planned = icecore("extract", trained.config, "--skip-code", "99", "--dry-run", "--json")
    assert (planned.code, planned.outcome["nothing_to_do"]) == (99, True)
    next(trained.photos.rglob("*.png")).unlink()
    again = icecore("extract", trained.config, "--skip-code", "99", "--json")
    assert (again.code, again.outcome["nothing_to_do"]) == (0, False)


@pytest.mark.parametrize(("words", "code"), [(["compact"], 99), (["repair"], 99), (["ls"], 0)])
def test_store_commands_say_when_there_was_nothing_to_do(
    icecore: Icecore, trained: Any, words: list[str], code: int
) -> None:
    assert icecore("store", *words, trained.store, "--skip-code", "99").code == code


def test_a_sweep_that_fits_nothing_says_that_there_was_nothing_to_do(icecore: Icecore, trained: Any) -> None:
    first, second = (icecore("sweep", trained.config, "--skip-code", "99", "--json") for _ in range(2))
    assert (first.code, second.code) == (0, 99)
    assert second.outcome["winner_reused"] is True


def test_the_environment_says_the_same_for_all_lines_of_a_crontab(
    icecore: Icecore, bad: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ICECORE_SUCCESS_ON", "5")
    monkeypatch.setenv("ICECORE_SKIP_CODE", "75")
    assert icecore("extract", bad.config).code == 0
    assert icecore("store", "compact", bad.store).code == 75
    assert icecore("store", "compact", bad.store, "--skip-code", "99").code == 99
    monkeypatch.setenv("ICECORE_SUCCESS_ON", "1")
    assert icecore("extract", bad.config).code == 2


def test_a_result_file_that_cannot_be_written_is_a_failure_whatever_was_asked(icecore: Icecore, trained: Any) -> None:
    result = trained.folder / ("x" * 250)
    done = icecore("extract", trained.config, "--skip-code", "99", "--json", "--result-file", result)
    assert (done.code, done.outcome["exit_code"], done.outcome["outcome_code"]) == (1, 1, 1)
    assert list_runs(trained.store)[0].exit_code == 1


def test_every_meaning_is_a_failure_or_not() -> None:
    assert {code for code in Exit if Outcome(code).is_failure} == set(Exit) - DONE_SOMEHOW
    assert not Outcome(Exit.LOCKED, returned=0).is_failure
