"""The crontab and the systemd units that come with icecore: sound, and of commands that there are."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from icecore.cli.app import COMMANDS, cli
from icecore.cli.exits import MAY_BE_SUCCESS, Exit

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
UNITS = sorted((CONFIGS / "systemd").iterdir())
SERVICES = [path for path in UNITS if path.suffix == ".service" and "failed" not in path.name]
SCHEDULED = ("extract", "predict", "retrain")


def takes_a_champion() -> bool:
    """Say whether all commands that the units start are there."""
    predict = cli.get_command(click.Context(cli), "predict")
    assert predict is not None
    return "retrain" in COMMANDS and any("--config" in option.opts for option in predict.params)


WITH_CHAMPIONS = pytest.mark.skipif(
    not takes_a_champion(), reason="there is no icecore retrain or predict champion yet"
)


def unit(path: Path) -> dict[str, dict[str, str]]:
    found = configparser.ConfigParser(interpolation=None, comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text("utf-8"))
    return {section: dict(found[section]) for section in found.sections()}


def parse(words: list[str], folder: Path) -> None:
    """Let the command line take these words, and run nothing."""
    assert words[0] in COMMANDS
    command, context = cli.get_command(click.Context(cli), words[0]), click.Context(cli, info_name="icecore")
    assert command is not None
    name, *rest = words
    while isinstance(command, click.Group):
        context = click.Context(command, parent=context, info_name=name)
        name, *rest = rest
        command = command.get_command(context, name)
        assert command is not None
    rest = [word.replace("/var/lib/node_exporter", str(folder)) for word in rest]
    command.make_context(name, rest, parent=context)


def test_there_is_a_service_and_a_timer_for_each_scheduled_command() -> None:
    names = {f"icecore-{name}.{kind}" for name in SCHEDULED for kind in ("service", "timer")}
    assert {path.name for path in UNITS} == names | {"icecore-failed@.service"}


@WITH_CHAMPIONS
@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.stem)
def test_a_service_says_all_that_a_scheduled_run_needs(path: Path, tmp_path: Path) -> None:
    found = unit(path)
    service = found["Service"]
    assert found["Unit"]["OnFailure"] == "icecore-failed@%n.service"
    assert service["Type"] == "oneshot"
    assert (service["KillMode"], service["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(service["Nice"]) > 0
    assert int(service["TimeoutStopSec"]) >= 90
    codes = {int(code) for code in service["SuccessExitStatus"].split()}
    assert Exit.INTERRUPTED in codes
    assert codes <= {int(code) for code in MAY_BE_SUCCESS}
    program, *words = shlex.split(service["ExecStart"])
    assert program == "/srv/icecore/.venv/bin/icecore"
    assert f"icecore-{words[0]}.service" == path.name
    parse(words, tmp_path)


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_timer_starts_every_night_and_makes_up_for_a_night_that_was_missed(name: str) -> None:
    found = unit(CONFIGS / "systemd" / f"icecore-{name}.timer")
    assert re.fullmatch(r"\*-\*-\* \d\d:\d\d:\d\d", found["Timer"]["OnCalendar"])
    assert found["Timer"]["Persistent"] == "true"
    assert found["Install"]["WantedBy"] == "timers.target"


def test_systemd_itself_finds_nothing_wrong_with_them(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here; the other tests read the units")
    home = tmp_path / "home"
    program = home / ".venv" / "bin" / "icecore"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copies = []
    for path in UNITS:
        copies.append(tmp_path / path.name.replace("@", "@x"))
        copies[-1].write_text(path.read_text("utf-8").replace("/srv/icecore", str(home)), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "icecore" in line]
    assert (done.returncode, told) == (0, []), done.stderr


@WITH_CHAMPIONS
def test_every_line_of_the_crontab_is_a_command_that_there_is(tmp_path: Path) -> None:
    lines = [line for line in (CONFIGS / "crontab").read_text("utf-8").splitlines() if line and line[0] != "#"]
    settings = [line for line in lines if re.match(r"[A-Z_]+=", line)]
    jobs = [line for line in lines if line not in settings]
    assert dict(line.split("=", 1) for line in settings)["ICECORE_SUCCESS_ON"] == "5,6"
    found = set()
    for line in jobs:
        *times, command = line.split(None, 5)
        assert all(re.fullmatch(r"\*(/\d+)?|\d+", time) for time in times), line
        assert "%" not in command, "cron takes it for a new line"
        for part in command.split("&&")[1:]:
            words = shlex.split(part.partition(">")[0])
            words = words[words.index("icecore") + 1 :]
            parse(words, tmp_path)
            found.add(words[0])
    assert {*SCHEDULED, "metrics", "store"} == found


def test_they_come_with_the_package() -> None:
    from importlib import resources

    folder = resources.files("icecore.configs")
    assert folder.joinpath("crontab").is_file()
    assert {path.name for path in folder.joinpath("systemd").iterdir()} == {path.name for path in UNITS}
