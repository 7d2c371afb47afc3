"""Several devices: a process for each, which reads and forwards its images; the run alone writes the store.

Features are small beside the images that they came from, so they are sent to the one writer: rows are committed as
with one device, and there is nothing to put right when a process is killed.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from icecore.store import Column, SourceImage, Writer

from .errors import ProcessLostError
from .line import Features
from .pipeline import Batch
from .work import State, Work
from .worker import Asked, Ended, Failure, Given, Order, run_worker

__all__ = ["Workers"]

AT_A_TIME = 32
"""Images that a worker gets at once."""
_PATIENCE = 10.0
"""Seconds that a process has to end before it is killed."""
_KILL = 9
"""the signal that a system without memory sends; Windows has no name for it"""


class Workers:
    """Processes that read images and forward them. Close it, whatever has happened, after the iterator of ``through``.

    Parameters
    ----------
    work
        What to compute with.
    devices
        One for each process, two or more; the same may come twice.
    columns
        What to compute.
    writer
        Of the store, which the processes look at.
    guard
        Called before they begin; raises where they must not.
    images
        Number of images that wait.
    """

    def __init__(
        self,
        work: Work,
        devices: Sequence[str],
        columns: Sequence[Column],
        writer: Writer,
        *,
        guard: Callable[[], None],
        images: int,
    ) -> None:
        self._work, self._devices, self._columns, self._guard = work, devices, tuple(columns), guard
        self._store = {"folder": writer.folder, "generation": writer.generation, "retries": writer.retries}
        self._images = images
        self._workers: list[_Worker] = []

    @property
    def state(self) -> State:
        """What the devices have done so far: the mean of their seconds, and the smallest of their passes."""
        states = [worker.state for worker in self._workers if worker.state.engine]
        if not states:
            return State()
        decoded: Counter[str] = Counter()
        for state in states:
            decoded.update(dict(state.decoded))
        sizes = [state.pass_size for state in states if state.pass_size is not None]
        return State(
            statistics.fmean(state.seconds for state in states),
            ", ".join(dict.fromkeys(state.engine for state in states)),
            "; ".join(dict.fromkeys(state.why for state in states if state.why)),
            min(sizes, default=None),
            tuple(decoded.items()),
        )

    def through(self, images: Iterable[SourceImage]) -> Generator[tuple[Batch, Features]]:
        """Give the images in batches with their features; those of each process in their order.

        Raises
        ------
        SourceLostError
            As ``read_batches``.
        ProcessLostError
            When a process ends before its time.
        ExtractError, StoreError
            What else a process fails with, DeviceError for an error that is neither.
        """
        lists = _lists(images)
        first = next(lists, None)
        if first is None:
            return
        self._begin()
        self._workers[0].pending = first
        working = {worker.outbox: worker for worker in self._workers}
        while working:
            for outbox in wait(list(working)):
                worker = working[outbox]  # type: ignore[index]
                match worker.receive():
                    case Asked():
                        worker.send(worker.pending or next(lists, None))
                        worker.pending = None
                    case Given(batch, features, state):
                        worker.state = state
                        yield batch, features
                    case Ended(state):
                        worker.state, worker.has_ended = state, True
                        del working[worker.outbox]
                    case Failure(error, trace):
                        error.add_note(f"in the process of {worker.device}:\n{trace}")
                        raise error

    def close(self) -> None:
        """End the processes; those that have done their work leave by themselves, and tidy up what libraries began."""
        for worker in self._workers:
            if not worker.has_ended:
                worker.process.terminate()
        for worker in self._workers:
            worker.close()

    def _begin(self) -> None:
        self._guard()
        torch.cuda.empty_cache()  # what this process has kept of the first device, the process of that device needs
        count = len(self._devices)
        threads, cores = self._work.threads, torch.get_num_threads()
        with _without_interrupts():  # so that each process that was begun is among those that are closed
            for number, device in enumerate(self._devices):
                share = max(1, _share(threads, number, count)) if threads else 0
                order = Order(
                    work=_only_work(self._work, device=device, threads=share),
                    columns=self._columns,
                    images=-(-self._images // count),
                    cores=max(1, _share(cores, number, count)),
                    **self._store,  # type: ignore[arg-type]
                )
                self._workers.append(_Worker.begin(device, pickle.dumps(order)))


@dataclass
class _Worker:
    device: str
    process: SpawnProcess
    inbox: Connection
    """to it"""
    outbox: Connection
    """from it"""
    state: State = field(default_factory=State)
    pending: list[SourceImage] | None = None
    """images that it gets first"""
    has_ended: bool = False
    """it has given back every image"""

    @classmethod
    def begin(cls, device: str, order: bytes) -> _Worker:
        context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
        its_inbox, inbox = context.Pipe(duplex=False)
        outbox, its_outbox = context.Pipe(duplex=False)
        process = context.Process(
            target=run_worker, args=(order, its_inbox, its_outbox), name=f"icecore-{device}", daemon=True
        )
        process.start()
        its_inbox.close()  # so that each side sees when the other is gone
        its_outbox.close()
        return cls(device, process, inbox, outbox)

    def receive(self) -> Any:
        try:
            return self.outbox.recv()
        except (EOFError, OSError) as exc:  # the latter in the middle of a message
            raise self._gone() from exc

    def send(self, images: list[SourceImage] | None) -> None:
        """Hand images over, if it is there; if it is not, its outbox tells why."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.inbox.send(images)

    def close(self) -> None:
        self.process.join(_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.inbox.close()
        self.outbox.close()

    def _gone(self) -> ProcessLostError:
        self.process.join(_PATIENCE)
        how = _words(self.process.exitcode)
        told = f"the process of {self.device} ended before its time ({how})"
        return ProcessLostError(f"{told}; what was finished is kept, so run again")


def _lists(images: Iterable[SourceImage]) -> Iterator[list[SourceImage]]:
    source = iter(images)
    while some := list(islice(source, AT_A_TIME)):
        yield some


def _only_work(work: Work, **changes: Any) -> Work:
    """Give what processes must know of a run, without the rest of it."""
    whole = {each.name: getattr(work, each.name) for each in fields(Work)}
    return replace(Work(**whole), **changes)


def _share(total: int, number: int, count: int) -> int:
    return total // count + (number < total % count)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from this thread, and from the processes that it begins, until they say otherwise."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which a first process would begin, and that lets interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _words(code: int | None) -> str:
    if code is None:
        return "it does not answer"
    if code < 0:
        return f"killed by signal {-code}" + (": was there too little memory?" if code == -_KILL else "")
    script = "a script that asks for several devices needs `if __name__ == '__main__':` around its calls"
    return f"exit code {code}; {script}"
