"""What ends a command from outside: Ctrl-C, SIGTERM, or a limit of time; each by a KeyboardInterrupt, at a commit."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .exits import Outcome

__all__ = ["Stop", "on_sigterm", "stops", "undisturbed"]

TIME_LIMIT = "max-minutes"
"""What ``Stop.by`` says where the limit of time was reached."""


class Stop:
    """Who ended a command, if somebody did."""

    def __init__(self) -> None:
        self.by: str | None = None
        """``SIGINT``, ``SIGTERM`` or ``max-minutes``; None where nobody has"""

    def explain(self, outcome: Outcome, minutes: float | None) -> Outcome:
        """Add to the outcome of an interrupted command who interrupted it."""
        if self.by is None:
            return outcome
        data = {**outcome.data, "stopped_by": self.by}
        if self.by != TIME_LIMIT or minutes is None:
            return replace(outcome, data=data)
        told = f"stopped at its limit of {minutes:g} minutes; what was committed is kept"
        return replace(outcome, data=data, error=told)


def on_sigterm() -> None:
    """Let SIGTERM end what is at work as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)


@contextmanager
def stops(minutes: float | None) -> Iterator[Stop]:
    """End the block by KeyboardInterrupt when a signal comes or so many minutes are over; note which it was.

    Python looks at signals between its own instructions: a call into a library, such as the fit of one model, goes to
    its end first.
    """
    stop = Stop()

    def take(signum: int, frame: FrameType | None) -> NoReturn:
        stop.by = stop.by or signal.Signals(signum).name
        raise KeyboardInterrupt

    with ExitStack() as handlers:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # a shell makes jobs in the background deaf to Ctrl-C
                handlers.enter_context(_handled(number, take))
        with _alarm(minutes, stop):
            yield stop


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let the block go to its end whatever signal comes: what is written there must agree."""
    with _handled(signal.SIGINT, signal.SIG_IGN), _handled(signal.SIGTERM, signal.SIG_IGN):
        yield


@contextmanager
def _alarm(minutes: float | None, stop: Stop) -> Iterator[None]:
    """Interrupt the main thread when the minutes are over."""

    def ring(signum: int, frame: FrameType | None) -> NoReturn:
        stop.by = stop.by or TIME_LIMIT
        raise KeyboardInterrupt

    if minutes is None:
        yield
    elif sys.platform == "win32":
        with _ringing(lambda: signal.raise_signal(signal.SIGBREAK), minutes), _handled(signal.SIGBREAK, ring):
            yield
    else:
        with _handled(signal.SIGALRM, ring):
            signal.setitimer(signal.ITIMER_REAL, minutes * 60)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _handled(number: int, handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextmanager
def _ringing(ring: Callable[[], None], minutes: float) -> Iterator[None]:
    timer = threading.Timer(minutes * 60, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
