"""The ``icecore`` command: its subcommands, and how every one of them ends."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from .common import common_options
from .output import echo
from .stopping import on_sigterm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .common import Common
    from .exits import Outcome
    from .running import Running
    from .stopping import Stop

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
    "metrics": "Tell Prometheus how a store stands: rows, failures, ages, last success.",
    "models": "Say which bundle is in use, and change it.",
    "predict": "Label images with a trained bundle.",
    "runs": "See what was run on a store, and how it ended.",
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
icecore runs ls features               # what was run, and how it ended
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


def command(
    *, example: str, rows_on_stdout: bool = False, reads_only: bool = False, tells_events: bool = False
) -> Callable[[Callable[..., Outcome]], click.Command]:
    """Make a click command of a function that gives an ``Outcome``, with all that commands have in common.

    These are the options of ``common.common_options``, a record in the store, and the config's hooks. The store is
    that of the option ``store``, or of the config that the function reads.

    Parameters
    ----------
    example
        Shown at the end of the help.
    rows_on_stdout
        The function itself writes its result; the outcome's text goes to stderr.
    reads_only
        It changes nothing: no record is kept, no hook is called, no time is limited.
    tells_events
        The function writes log and heartbeat itself.
    """

    def wrap(body: Callable[..., Outcome]) -> click.Command:
        @functools.wraps(body)
        def run(**options: Any) -> NoReturn:
            from .common import Common
            from .ending import finish

            common = Common.taken_from(options, changes=not reads_only)
            name = command_of(click.get_current_context())
            running, outcome = _run(functools.partial(body, **options), name, common, options, tells=not tells_events)
            finish(outcome, running, common, to_stderr=rows_on_stdout)

        help_page = common_options(run, changes=not reads_only)
        # said here too, because click keeps the names that it meets first
        names = {"help_option_names": ["-h", "--help"]}
        epilog = f"\b\nExample:\n  {example}"
        return click.command(name=body.__name__, epilog=epilog, context_settings=names)(help_page)

    return wrap


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with one of the documented codes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    on_sigterm()
    args = list(sys.argv[1:] if args is None else args)
    try:
        cli.main(args=args, prog_name="icecore", standalone_mode=False, obj=tuple(args))
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.UsageError as exc:
        exc.show()
        from .ending import finish_usage

        finish_usage(exc.format_message(), command_of(exc.ctx) if exc.ctx else "", args)
        sys.exit(2)
    except click.ClickException as exc:
        exc.show()
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(0)


def _run(
    body: Callable[[], Outcome], name: str, common: Common, options: Mapping[str, Any], *, tells: bool
) -> tuple[Running, Outcome]:
    """Run a command; give what is known of it, and its outcome, whatever happens."""
    from .running import Running
    from .stopping import stops

    store = options.get("store")
    running = Running(
        name,
        click.get_current_context().obj,
        store=store if isinstance(store, Path) else None,
        changes=common.changes,
        tells=tells,
        asked=common.asked,
        log=common.log,
        heartbeat=common.heartbeat,
    )
    with running:
        return running, _outcome_of(body, running, stops(common.max_minutes), common.max_minutes)


def _outcome_of(
    body: Callable[[], Outcome], running: Running, stopping: AbstractContextManager[Stop], minutes: float | None
) -> Outcome:
    from .exits import Exit, Outcome, outcome_of_error

    stop: Stop | None = None
    try:
        with stopping as stop:
            running.begin()
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
        if outcome.code is Exit.INTERRUPTED and stop is not None:
            return stop.explain(outcome, minutes)
        return outcome


def command_of(context: click.Context) -> str:
    """Give the words of the command that runs, without the program's: ``store ls``."""
    return context.command_path.removeprefix("icecore").strip()


@contextmanager
def progress_bar(what: str, *, unit: str = "img") -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr where it is a terminal: call with (done, total); ``B`` counts bytes."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, unit_scale=unit == "B", disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update
