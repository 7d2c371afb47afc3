"""How an extraction is watched: a line on a terminal, a log of events, a heartbeat file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .exits import outcome_of_error
from .options import OutputFile

if TYPE_CHECKING:
    from icecore.extract import Event, Watch
    from icecore.extract.events import Listener

    from .config import ExtractConfig

__all__ = ["show_progress", "watch_options", "watch_run"]


def watch_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--log`` and ``--heartbeat`` to a command."""
    command = click.option(
        "--heartbeat",
        type=OutputFile(),
        help="File rewritten while the run is at work, so that a monitor may alarm on its age. "
        "By default watch.heartbeat of CONFIG.",
    )(command)
    return click.option(
        "--log",
        type=OutputFile(allow_dash=True),
        help="Append one JSON line an event to this file; - for stderr. By default watch.log of CONFIG.",
    )(command)


def watch_run(config: ExtractConfig, log: Path | None, heartbeat: Path | None, *, quiet: bool, command: str) -> Watch:
    """Give what listens to a run as options and config ask; ``quiet`` writes nothing, for a run that does nothing."""
    from icecore.extract import Watch

    return Watch(
        log=None if quiet else log or config.watch.log,
        heartbeat=None if quiet else heartbeat or config.watch.heartbeat,
        every=config.watch.every,
        facts={"store": str(config.store), "command": command},
        exit_code_of=_exit_code_of,
    )


@contextmanager
def show_progress(what: str, watch: Watch | None = None) -> Iterator[Listener]:
    """Show images done, rate, time left and failures on stderr where it is a terminal; ``watch`` hears all, too."""
    from tqdm import tqdm

    hidden = True if watch is not None and watch.is_on_stderr else None  # None: where there is no terminal
    with tqdm(desc=what, unit=" images", disable=hidden, leave=False) as bar:

        def listen(event: Event) -> None:
            if watch is not None:
                watch(event)
            if event.kind == "progress":
                bar.total = event.counts.total
                if event.counts.failed:
                    bar.set_postfix_str(f"{event.counts.failed:,} failed", refresh=False)
                bar.update(event.counts.done - bar.n)

        yield listen


def _exit_code_of(exc: BaseException) -> int:
    outcome = outcome_of_error(exc)
    return 1 if outcome is None else int(outcome.code)
