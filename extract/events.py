"""What a run tells while it is at work, as values: what happened, how far it is, how fast, how long it will take."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from icecore.store.writer import Commit

__all__ = ["Counts", "Event", "EventKind", "Listener", "Pace", "Teller", "identity", "now"]

EventKind = Literal[
    "started", "planned", "progress", "failure", "committed", "warning", "finished", "failed", "interrupted"
]
"""``progress`` comes after each batch. ``warning``, ``failed`` and ``interrupted`` are told by a ``Watch``."""

WINDOW = 30.0
"""Seconds over which the rate is taken: long enough for slow passes, short enough to show that a disk has slowed."""
_APART = 0.25  # seconds between two samples of the window, so that it stays short


@dataclass(frozen=True)
class Counts:
    """How far a run is, in images."""

    done: int = 0
    """those with an outcome"""
    total: int = 0
    """those to do; 0 before the plan is made"""
    forwarded: int = 0
    """those that went through the network"""
    linked: int = 0
    """those whose content was known"""
    failed: int = 0
    """those that gave no features"""


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run."""

    kind: EventKind
    """what"""
    time: str
    """when, ISO 8601, UTC, to the millisecond"""
    run: str
    """the run's id, 32 hex digits: that of its commits in the store's log"""
    set_name: str
    """feature set"""
    counts: Counts
    """how far the run is"""
    images_per_second: float | None
    """images done a second over the last half minute; None before the second batch"""
    eta_seconds: float | None
    """seconds that the rest takes at this rate; None where there is no rate"""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """what this kind has of its own, plain JSON values: ``failure`` the image's id, kind and reason ..."""

    def to_json(self) -> dict[str, Any]:
        """Give one flat object of plain JSON values; times in seconds, rounded."""
        return {
            "time": self.time,
            "event": self.kind,
            "run": self.run,
            "set": self.set_name,
            **vars(self.counts),
            "images_per_second": None if self.images_per_second is None else round(self.images_per_second, 2),
            "eta_seconds": None if self.eta_seconds is None else round(self.eta_seconds, 1),
            **self.facts,
        }


Listener = Callable[[Event], None]
"""called in the thread of the run, between two batches: it must be quick"""


class _Tally(Protocol):
    done: int
    total: int
    forwarded: int
    linked: int
    failures: list[Any]


class Pace:
    """How fast a count has grown of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, done: int) -> None:
        """Note the count as it is now."""
        now = self._clock()
        if len(self._samples) > 1 and now - self._samples[-2][0] < _APART:
            self._samples.pop()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[1][0] >= WINDOW:
            self._samples.popleft()

    def rate(self) -> float | None:
        """Give the growth a second over the window, from its first sample to the last; None with fewer than two."""
        if len(self._samples) < 2:
            return None
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last - first) / (ended - began) if ended > began else None


class Teller:
    """Makes the events of one run and gives them to whoever listens; costs nothing where nobody does."""

    def __init__(self, listener: Listener | None, set_name: str) -> None:
        self.run = uuid.uuid4().hex
        """names the run"""
        self._listener, self._set_name = listener, set_name
        self._pace = Pace()
        self._tally: _Tally | None = None

    def follow(self, tally: _Tally) -> None:
        """Take counts from here on from ``tally``."""
        self._tally = tally
        self._pace.add(tally.done)

    def tell(self, kind: EventKind, /, **facts: Any) -> None:
        """Tell what happened."""
        if self._listener is None:
            return
        counts = self._counts()
        if kind == "progress":
            self._pace.add(counts.done)
        rate = self._pace.rate()
        eta = max(0, counts.total - counts.done) / rate if rate else None
        self._listener(Event(kind, now(), self.run, self._set_name, counts, rate, eta, facts))

    def committed(self, commit: Commit) -> None:
        """Tell that rows are durable."""
        self.tell("committed", version=commit.version, images=commit.images, segments=commit.segments)

    def _counts(self) -> Counts:
        t = self._tally
        return Counts() if t is None else Counts(t.done, t.total, t.forwarded, t.linked, len(t.failures))


def now() -> str:
    """Give the time, UTC, in ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def identity() -> dict[str, Any]:
    """Say which process this is, and where."""
    return {"pid": os.getpid(), "host": socket.gethostname()}
