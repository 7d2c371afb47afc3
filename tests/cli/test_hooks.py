"""Who is told how a command ended, and that a failing hook changes nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.cli.exits import Exit, Outcome
from icecore.cli.hooks import call_hooks, events_of
from icecore.cli.watch_config import HookEvent, Hooks
from icecore.store import list_runs

Icecore = Callable[..., Any]
ICECORE = str(Path(sys.executable).with_name("icecore"))
NOTE = """
import json, os, sys
told = json.load(sys.stdin)
facts = {name: value for name, value in os.environ.items() if name.startswith("ICECORE_")}
with open("told.jsonl", "a") as file:
    file.write(json.dumps({"told": told, "facts": facts, "args": sys.argv[1:]}) + "\\n")
print("noted")
"""


@pytest.fixture
def hooked(trained: Any) -> Any:
    """A trained project whose hooks write down what they are told, and drop files."""
    (trained.folder / "note.py").write_text(NOTE)
    commands = "".join(
        f"on_{event} = {json.dumps([sys.executable, 'note.py', event])}\n"
        for event in ("promote", "keep", "fail", "success")
    )
    trained.set(f'\n[hooks]\n{commands}drop = "outbox"\n')
    return trained


def notes(project: Any) -> list[dict[str, Any]]:
    path = project.folder / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("outcome", "events"),
    [
        (Outcome(Exit.DONE), ("success",)),
        (Outcome(Exit.DONE, promoted=True), ("promote", "success")),
        (Outcome(Exit.SOME_IMAGES_FAILED), ("success",)),
        (Outcome(Exit.CHALLENGER_KEPT_BACK), ("keep",)),
        (Outcome(Exit.FAILED), ("fail",)),
        (Outcome(Exit.STORE_INVALID), ("fail",)),
        (Outcome(Exit.CONFIG_INVALID), ("fail",)),
        (Outcome(Exit.LOCKED), ("fail",)),
        (Outcome(Exit.INTERRUPTED), ("fail",)),
        (Outcome(Exit.DRIFTED), ("fail",)),
        (Outcome(Exit.LOCKED, returned=0), ("success",)),
    ],
)
def test_each_outcome_stands_for_its_events(outcome: Outcome, events: tuple[HookEvent, ...]) -> None:
    assert events_of(outcome) == events


def test_the_page_of_operations_lists_the_codes_of_each_event() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    for event in ("keep", "fail"):
        (told,) = re.findall(rf"^on_{event} = .*?# *([\d, ]*\d)", page, re.MULTILINE)
        assert [int(code) for code in told.split(",")] == [
            code for code in Exit if events_of(Outcome(code)) == (event,)
        ]


def test_a_success_is_told_with_the_outcome_and_drops_no_file_unless_asked(icecore: Icecore, hooked: Any) -> None:
    done = icecore("extract", hooked.config, "--json")
    (note,) = notes(hooked)
    assert note["args"] == ["success"]
    assert note["told"].items() >= done.outcome.items()
    assert note["told"]["store"] == str(hooked.store)
    assert (
        note["facts"].items()
        >= {
            "ICECORE_EVENT": "success",
            "ICECORE_COMMAND": "extract",
            "ICECORE_EXIT_CODE": "0",
            "ICECORE_OUTCOME_CODE": "0",
            "ICECORE_RUN": done.outcome["run"],
            "ICECORE_STORE": str(hooked.store),
        }.items()
    )
    assert done.told == "noted\n"  # its output does not mix with the result
    assert not (hooked.folder / "outbox").exists()
    (hook,) = list_runs(hooked.store)[0].hooks
    assert (hook["event"], hook["error"]) == ("success", "")


def test_a_failure_is_told_and_dropped_as_a_file(icecore: Icecore, hooked: Any) -> None:
    done = icecore("extract", hooked.config, "--set", "source.folder=nosuch", "--json")
    assert done.code == 1
    (note,) = notes(hooked)
    assert note["args"] == ["fail"]
    (file,) = (hooked.folder / "outbox").iterdir()
    assert file.name == f"{done.outcome['run']}-fail.json"
    assert json.loads(file.read_bytes()) == note["told"]
    assert list_runs(hooked.store)[0].hooks[0]["to"] == str(file)


def test_events_that_are_asked_for_are_dropped(icecore: Icecore, hooked: Any) -> None:
    assert icecore("extract", hooked.config, "--set", 'hooks.drop_on=["success"]').code == 0
    assert [path.name.split("-")[-1] for path in (hooked.folder / "outbox").iterdir()] == ["success.json"]


def test_a_dry_run_and_a_command_that_only_reads_call_no_hook(icecore: Icecore, hooked: Any) -> None:
    assert icecore("extract", hooked.config, "--dry-run").code == 0
    assert icecore("store", "ls", hooked.store).code == 0
    assert notes(hooked) == []


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with exit code 3"),
        (["nosuchprogram"], "cannot be started (No such file or directory)"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], "killed: it was not done after 0.5 seconds"),
    ],
)
def test_a_hook_that_fails_is_told_and_recorded_and_the_run_is_done(
    icecore: Icecore, trained: Any, command: list[str], error: str
) -> None:
    trained.set(f"\n[hooks]\non_success = {json.dumps(command)}\ntimeout = 0.5\n")
    done = icecore("extract", trained.config, "--json")
    assert done.code == 0
    assert done.told.startswith("icecore extract: the hook after 'success' failed: ")
    assert done.told.endswith(f"{error}\n")
    run = list_runs(trained.store)[0]
    assert (run.state, run.exit_code) == ("finished", 0)
    assert [hook["error"] for hook in run.hooks] == [error]


def test_a_folder_that_cannot_be_made_is_told(icecore: Icecore, hooked: Any) -> None:
    (hooked.folder / "outbox").write_bytes(b"in the way")
    done = icecore("extract", hooked.config, "--set", 'hooks.drop_on=["success"]', "--json")
    assert done.code == 0
    assert "the hook after 'success' failed: " in done.told
    assert len(notes(hooked)) == 1


def test_whatever_a_hook_began_is_killed_with_it(tmp_path: Path) -> None:
    child = "import os, sys, time; open('child', 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    hooks = Hooks(on_success=(sys.executable, "-c", parent), timeout=2.0)
    (told,) = call_hooks(hooks, Outcome(Exit.DONE), {}, folder=tmp_path, name="run", facts={})
    assert told.error == "killed: it was not done after 2 seconds"
    pid = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hook_that_ends_just_as_the_run_is_told_to_stop_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    communicate = subprocess.Popen.communicate

    def told_to_stop(process: Any, *args: Any, **options: Any) -> None:
        communicate(process, *args, **options)  # Popen itself waits a moment for the end, and finds it
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", told_to_stop)
    hooks = Hooks(on_success=("true",))
    (told,) = call_hooks(hooks, Outcome(Exit.DONE), {}, folder=tmp_path, name="run", facts={})
    assert told.error == "killed: this run was told to stop"


def test_a_hook_that_does_not_read_is_no_failure(tmp_path: Path) -> None:
    hooks = Hooks(on_success=("true",))
    told = call_hooks(hooks, Outcome(Exit.DONE), {"much": "x" * 1_000_000}, folder=tmp_path, name="run", facts={})
    assert [one.error for one in told] == [""]


def test_sigterm_during_a_hook_kills_it_and_code_file_and_record_stay_what_they_were(trained: Any) -> None:
    command = [sys.executable, "-c", "import time; open('begun', 'w').close(); time.sleep(60)"]
    trained.set(f"\n[hooks]\non_success = {json.dumps(command)}\n")
    result = trained.folder / "result.json"
    with subprocess.Popen(
        [ICECORE, "extract", str(trained.config), "--json", "--result-file", str(result)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as run:
        deadline = time.monotonic() + 60
        while not (trained.folder / "begun").exists():
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=30)
    assert run.returncode == 0
    assert b"killed: this run was told to stop" in err
    assert json.loads(out) == json.loads(result.read_bytes())
    assert list_runs(trained.store)[0].state == "finished"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('on_fail = "mail -s x y"', "hooks.on_fail: "),
        ('on_fails = ["x"]', "hooks.on_fails: unknown key; did you mean 'on_fail'?"),
        ('drop_on = ["failure"]', "hooks.drop_on[0]: "),
        ("timeout = 0", "hooks.timeout: "),
        ('on_keep = [""]', "hooks.on_keep[0]: "),
    ],
)
def test_faults_of_the_section_are_told_with_their_place(icecore: Icecore, trained: Any, line: str, fault: str) -> None:
    trained.set(f"\n[hooks]\n{line}\n")
    done = icecore("extract", trained.config)
    assert done.code == 4
    assert fault in done.told
    assert os.fspath(trained.config) in done.told


def test_a_bundle_does_not_hold_the_hooks_of_those_who_trained_it(icecore: Icecore, trained: Any) -> None:
    trained.set('\n[hooks]\non_success = ["true", "https://example/secret-token"]\n')
    done = icecore("train", trained.config, "--json")
    assert done.code == 0
    told = [path for path in (trained.store / "models").rglob("*") if path.is_file()]
    assert told
    assert [path for path in told if b"secret-token" in path.read_bytes()] == []
