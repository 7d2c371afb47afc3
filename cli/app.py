"""The ``icecore`` command: its subcommands, and how every one of them ends."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .options import OutputFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .exits import Outcome

__all__ = ["command", "echo", "main"]

COMMANDS = {
    "advise": "Say whether fine-tuning is worth trying, before any GPU hour is spent.",
    "compare": "Say whether one generation of features is worth more than another.",
    "demo": "Run the whole job on bundled digits, offline, and write a report.",
    "doctor": "Look at libraries, devices, disk and store: what will break, and the cure.",
    "export": "Write a trained bundle in another format: ONNX.",
    "extract": "Push images through a frozen network and store pooled activations.",
    "finetune": "Train the last layers of the backbone on training rows; new weights for extract.",
    "layers": "List a network's layers with their shapes and pooled widths.",
    "models": "Say which bundle is in use, and change it.",
    "predict": "Label images with a trained bundle.",
    "report": "Tell what a store has recorded over time: drift.",
    "retrain": "Train a challenger where anything is new; promote it where it is better.",
    "store": "Look into a feature store and keep it in order.",
    "sweep": "Compare layers, poolings and models on stored features: one leaderboard.",
    "train": "Train classifiers on stored features and write a report.",
}
"""Subcommand -> one line of help; its module in this package has the same name and holds it under ``command``."""
HELP = """Freeze a CNN, drill once, study its layers for years.

\b
icecore demo                           # the whole job on bundled digits
icecore layers resnet18                # what can be extracted
icecore extract experiment.toml        # images -> features, incremental
icecore train experiment.toml          # features -> classifiers -> report.html
icecore sweep experiment.toml          # layers x poolings x models -> leaderboard
icecore advise experiment.toml         # is fine-tuning worth trying?
icecore compare A B --config e.toml    # was fine-tuning worth it?
icecore predict BUNDLE photos/         # new images -> labels
icecore retrain retrain.toml           # nightly: promote only what is better
"""
"""``\\b`` keeps click from filling the lines of the paragraph that follows."""


class _Lazy(click.Group):
    """A group that imports a subcommand only when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f".{name}", __package__).command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(COMMANDS))}"
            ctx.fail(f"no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="icecore")
def cli() -> None:
    """Hold the subcommands; what ``icecore --help`` says is ``HELP``."""


def command(*, example: str, rows_on_stdout: bool = False) -> Callable[[Callable[..., Outcome]], click.Command]:
    """Make a click command of a function that gives an ``Outcome``; adds ``--json`` and ``--result-file``.

    Parameters
    ----------
    example
        Shown at the end of the help.
    rows_on_stdout
        The function itself writes its result; the outcome's text goes to stderr.
    """

    def wrap(body: Callable[..., Outcome]) -> click.Command:
        @functools.wraps(body)
        def run(*, as_json: bool, result_file: Path | None, **options: Any) -> NoReturn:
            outcome = _run(functools.partial(body, **options))
            _finish(outcome, _command_of(), as_json=as_json, result_file=result_file, to_stderr=rows_on_stdout)

        run = click.option("--result-file", type=OutputFile(), help="Also write the outcome there, as JSON.")(run)
        run = click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON line, last.")(run)
        return click.command(name=body.__name__, epilog=f"\b\nExample:\n  {example}")(run)

    return wrap


def echo(text: str, *, err: bool = False) -> None:
    """Print a line whatever bytes its file names hold."""
    stream = sys.stderr if err else sys.stdout
    stream.flush()
    stream.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
    stream.buffer.flush()


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    signal.signal(signal.SIGTERM, _interrupt)
    args = list(sys.argv[1:] if args is None else args)
    try:
        cli.main(args=args, prog_name="icecore", standalone_mode=False)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.UsageError as exc:
        exc.show()
        _tell_usage(exc, args)
        sys.exit(2)
    except click.ClickException as exc:
        exc.show()
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(0)


def _run(body: Callable[[], Outcome]) -> Outcome:
    from .exits import Exit, Outcome, outcome_of_error

    try:
        return body()
    except click.UsageError as exc:
        return Outcome(Exit.USAGE, error=exc.format_message())
    except BrokenPipeError:
        # Whoever read our output has left: nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Outcome(Exit.FAILED, error="the reader of the output closed it")
    except (Exception, KeyboardInterrupt) as exc:  # noqa: BLE001 - however it ends, it ends in one outcome
        outcome = outcome_of_error(exc)
        if outcome is None:
            traceback.print_exc()
            told = f"unexpected {type(exc).__name__}: {exc}\nthis is a defect: report it with the traceback above"
            return Outcome(Exit.FAILED, error=told)
        return outcome


def _finish(outcome: Outcome, name: str, *, as_json: bool, result_file: Path | None, to_stderr: bool) -> NoReturn:
    # The file first: it must not be yesterday's when the reader of our output has left.
    if result_file is not None:
        outcome = _write_result(result_file, outcome, name)
    if outcome.error:
        echo(f"icecore {name}: {outcome.error}", err=True)
    if outcome.text and not as_json:
        echo(outcome.text, err=to_stderr)
    if as_json:
        echo(json.dumps(_jsonable(outcome.to_json(name))))
    sys.exit(int(outcome.code))


def _write_result(path: Path, outcome: Outcome, name: str) -> Outcome:
    """Write the outcome's object; give the outcome, which is a failure when that cannot be done."""
    from icecore.store.durable import write_bytes

    from .exits import Exit

    try:
        write_bytes(path, json.dumps(_jsonable(outcome.to_json(name)), indent=2).encode() + b"\n")
    except OSError as exc:
        told = f"{path}: the outcome cannot be written there ({exc.strerror}); it was: {outcome.meaning}"
        return replace(outcome, code=Exit.FAILED, error="\n".join(filter(None, [outcome.error, told])))
    return outcome


def _tell_usage(error: click.UsageError, args: Sequence[str]) -> None:
    """Give the object of a command line that could not be parsed, where it asks for one."""
    from .exits import Exit, Outcome

    name = _command_of(error.ctx) if error.ctx else ""
    outcome = Outcome(Exit.USAGE, error=error.format_message())
    apart = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--result-file=") else [arg])]
    file = next((after for option, after in pairwise(apart) if option == "--result-file"), None)
    if file is not None and Path(file).parent.is_dir() and not Path(file).is_dir():
        outcome = _write_result(Path(file), outcome, name)
    if "--json" in args:
        echo(json.dumps(outcome.to_json(name)))


def _command_of(context: click.Context | None = None) -> str:
    """Give the words of the command that runs, without the program's: ``store ls``."""
    return (context or click.get_current_context()).command_path.removeprefix("icecore").strip()


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def progress_bar(what: str, *, unit: str = "img") -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr where it is a terminal: call with (done, total); ``B`` counts bytes."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=unit == "B", disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
