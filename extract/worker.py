"""A process with a device of its own: it asks for images, reads and forwards them, and gives features back.

It holds nothing that could be lost: the run that began it records what it gives. So it may be killed at any moment,
and ends by itself when that run is gone.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch
from icecore.store import Column, SourceImage, StoreError
from icecore.store.committed import CommittedContents

from .canaries import check_numerics
from .errors import DeviceError, ExtractError, first_line
from .line import Features
from .one_device import OneDevice
from .pipeline import Batch
from .recording import library_versions
from .work import State, Work

__all__ = ["Asked", "Ended", "Failure", "Given", "Order", "run_worker"]

_RECENT = 1 << 16
"""Contents, of those it gave last, that a worker knows again."""


@dataclass(frozen=True)
class Order:
    """What a worker is to do."""

    work: Work
    """with its own device, and its share of the threads"""
    columns: tuple[Column, ...]
    """what to compute"""
    folder: Path
    """the store"""
    generation: str
    """uuid of the generation that is written"""
    retries: bool
    """contents that a column refused are tried again"""
    images: int
    """about as many images as it will get"""
    cores: int
    """processors that are its own"""


class Asked(NamedTuple):
    """The worker has room for more images: a list of them is awaited, or None when there are no more."""


class Given(NamedTuple):
    """A batch with its features."""

    batch: Batch
    """without pixels"""
    features: Features
    """float32 (n, D) of each column"""
    state: State
    """of the device so far"""


class Ended(NamedTuple):
    """Every image that was sent has been given back."""

    state: State
    """of the device"""


class Failure(NamedTuple):
    """The worker cannot go on."""

    error: Exception
    """what the run is to raise"""
    trace: str
    """where it came from"""


def run_worker(order: bytes, inbox: Connection, outbox: Connection) -> None:
    """Do what a pickled ``Order`` says: lists of images come through ``inbox``, messages go to ``outbox``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run that began us decides
    try:
        _work(pickle.loads(order), inbox, outbox)  # noqa: S301 - made by the run that began us
    except BrokenPipeError:
        return  # nobody is left to hear of it
    except Exception as exc:  # noqa: BLE001 - the run raises it
        outbox.send(Failure(_portable(exc), traceback.format_exc()))


def _work(order: Order, inbox: Connection, outbox: Connection) -> None:
    torch.set_num_threads(order.cores)
    recent = _Recent()
    with CommittedContents(order.folder, order.generation, order.columns, retries=order.retries) as committed:
        passes = OneDevice(
            order.work,
            order.columns,
            is_known=lambda content: content in recent or content in committed,
            guard=lambda: check_numerics(order.folder, order.generation, order.work, library_versions()),
            images=order.images,
        )
        stream = passes.through(_images(inbox, outbox))
        with closing(passes), closing(stream):
            for batch, features in stream:
                outbox.send(Given(replace(batch, pixels=batch.pixels[:0]), features, passes.state))
                recent.add(row.content for row in batch.rows)
    outbox.send(Ended(passes.state))


def _images(inbox: Connection, outbox: Connection) -> Iterator[SourceImage]:
    """Ask for images, the next ones while these are read."""
    arrived: SimpleQueue[list[SourceImage] | None] = SimpleQueue()
    threading.Thread(target=_listen, args=(inbox, arrived), name="icecore-inbox", daemon=True).start()
    outbox.send(Asked())
    while (some := arrived.get()) is not None:
        outbox.send(Asked())
        yield from some


def _listen(inbox: Connection, arrived: SimpleQueue[list[SourceImage] | None]) -> None:
    """Take in what comes at once, so that whoever sends it never waits for us while we wait to be heard."""
    try:
        while (some := inbox.recv()) is not None:
            arrived.put(some)
    except (EOFError, OSError):  # the latter in the middle of a message
        os._exit(1)  # the run that began us was killed: what we compute is for nobody
    arrived.put(None)


class _Recent:
    """The contents that were given last."""

    def __init__(self) -> None:
        self._order: deque[bytes] = deque()
        self._contents: set[bytes] = set()

    def __contains__(self, content: bytes) -> bool:
        return content in self._contents

    def add(self, contents: Iterator[bytes]) -> None:
        for content in contents:
            if content not in self._contents:
                self._contents.add(content)
                self._order.append(content)
        while len(self._order) > _RECENT:
            self._contents.discard(self._order.popleft())


def _portable(exc: Exception) -> Exception:
    """Give an error that survives the way to another process, with the same words."""
    if isinstance(exc, (ExtractError, StoreError)):
        try:
            if str(pickle.loads(pickle.dumps(exc))) == str(exc):  # noqa: S301
                return exc
        except Exception:  # noqa: BLE001 - an error that cannot be pickled is told in words
            return DeviceError(str(exc))
    return DeviceError(f"{type(exc).__name__}: {first_line(exc)}")
