"""Help is complete, suggests what was meant, and costs nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from icecore.cli.app import COMMANDS, cli

Icecore = Callable[..., Any]


def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*words, name))


TREE = sorted(walk(cli, ()))
LEAVES = [words for words in TREE if not any(other[: len(words)] == words != other for other in TREE)]


def test_the_tree_holds_what_is_documented() -> None:
    assert {" ".join(words) for words in TREE} == {
        "metrics", "runs", "runs ls", "runs show", "store backup",
        "", "advise", "compare", "demo", "doctor", "export", "extract", "finetune", "layers", "predict", "report",
        "report drift", "retrain", "sweep", "train",
        "models", "models ls", "models show", "models diff", "models promote", "models rollback", "models gc",
        "models export",
        "store", "store ls", "store show", "store verify",
        "store repair", "store compact",
        "store status", "store errors", "store du", "store export",
        "store log", "store tag", "store revert", "store diff", "store drop", "store gc",
    }  # fmt: skip


@pytest.mark.parametrize("words", TREE, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example(icecore: Icecore, words: tuple[str, ...], option: str) -> None:
    done = icecore(*words, option)
    assert (done.code, done.told) == (0, "")
    lines = [line.strip() for line in done.text.splitlines()]
    assert lines[0].startswith(f"Usage: icecore {' '.join(words)}".rstrip())
    assert lines[2][0].isupper()
    assert any(line.startswith(f"icecore {' '.join(words)}".rstrip() + " ") for line in lines[1:])
    assert "\\b" not in done.text


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_has_help(words: tuple[str, ...]) -> None:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None
        command = found
    options = [p for p in command.params if isinstance(p, click.Option)]
    assert {"--json", "--result-file", "--success-on", "--skip-code", "--log-json"} <= {
        o for option in options for o in option.opts
    }
    assert [option.opts for option in options if not option.help] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("strore",), "no command 'strore'; did you mean 'store'?"),
        (("extrakt", "x.toml"), "no command 'extrakt'; did you mean 'extract'?"),
        (("nosuch",), f"no command 'nosuch'; there are {', '.join(sorted(COMMANDS))}"),
        (("no\udcffsuch",), "no command 'no\\udcffsuch'; there are"),
        (("store", "shwo"), "No such command 'shwo'. Did you mean 'show'?"),
        (("extract", "x.toml", "--dryrun"), "--dry-run"),
        (("extract",), "Missing argument 'CONFIG'"),
        (("layers", "resnet18", "--size", "0"), "0 is not in the range 1<=x<=8192"),
    ],
)
def test_a_wrong_word_ends_with_2_and_says_what_was_meant(
    icecore: Icecore, words: tuple[str, ...], message: str
) -> None:
    done = icecore(*words)
    assert (done.code, done.out) == (2, b"")
    assert message in done.told


def test_no_command_shows_the_help_and_ends_with_2(icecore: Icecore) -> None:
    done = icecore()
    assert done.code == 2
    assert "icecore layers resnet18                # what can be extracted" in done.told


def test_help_loads_nothing_heavy() -> None:
    """The first help loads no library at all; that of a command neither torch nor scikit-learn."""
    code = """
import sys
from icecore.cli.app import COMMANDS, main
def help(*words):
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0
def loaded(*names):
    return [name for name in names if name in sys.modules]
help()
print(loaded("torch", "torchvision", "sklearn", "numpy", "h5py", "pydantic", "PIL", "icecore.store"), file=sys.stderr)
for line in (*COMMANDS, "runs ls", "store ls", "models ls"):
    help(*line.split())
print(loaded("torch", "torchvision", "sklearn", "xgboost", "matplotlib"), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n[]\n"


def test_the_version_is_that_of_the_package(icecore: Icecore) -> None:
    from importlib.metadata import version

    done = icecore("--version")
    assert (done.code, done.text) == (0, f"icecore, version {version('icecore')}\n")
