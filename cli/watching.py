"""How an extraction is watched: a line on a terminal, a log of events, a heartbeat file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .exits import Exit, Outcome, outcome_of_error
from .running import current, exit_code_of, progressed

if TYPE_CHECKING:
    from icecore.extract import Event, Watch
    from icecore.extract.events import Listener

    from .config import ExtractConfig

__all__ = ["show_progress", "watch_run"]


def watch_run(config: ExtractConfig, *, quiet: bool, command: str) -> Watch:
    """Give what listens to a run as options and config ask; ``quiet`` writes nothing, for a run that does nothing."""
    from icecore.extract import Watch

    running = current()
    log, heartbeat = (None, None) if quiet or running is None else (running.log, running.heartbeat)
    watch = Watch(
        log=log,
        heartbeat=heartbeat,
        every=config.watch.every,
        facts={"store": str(config.store), "command": command},
        exit_code_of=_exit_code_of,
    )
    if running is not None:
        running.hand_over()
    return watch


@contextmanager
def show_progress(what: str, watch: Watch | None = None) -> Iterator[Listener]:
    """Show images done, rate, time left and failures on stderr where it is a terminal; ``watch`` hears all, too."""
    from tqdm import tqdm

    hidden = True if watch is not None and watch.is_on_stderr else None  # None: where there is no terminal
    with tqdm(desc=what, unit=" images", disable=hidden, leave=False) as bar:

        def listen(event: Event) -> None:
            if watch is not None:
                watch(event)
            if event.kind == "planned":
                progressed(event.counts.done, event.counts.total)  # there is a store now, for the record of the run
            if event.kind == "progress":
                bar.total = event.counts.total
                if event.counts.failed:
                    bar.set_postfix_str(f"{event.counts.failed:,} failed", refresh=False)
                bar.update(event.counts.done - bar.n)

        yield listen


def _exit_code_of(exc: BaseException) -> int:
    return exit_code_of(outcome_of_error(exc) or Outcome(Exit.FAILED))
