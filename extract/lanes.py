"""Several passes at once on a CPU, each on one processor.

Operations that are spread over all cores wait, each, for the slowest of them: beside decoding threads, or another busy
process, such a pass took ten times as long and more. Passes side by side wait for nobody,
and what a pass on one core computes does not depend on how many there are.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .devices import exact_fp32
from .pipeline import default_threads

__all__ = ["Lanes", "as_a_lane", "default_lanes"]

T = TypeVar("T")


class Lanes:
    """Threads that each run one pass at a time.

    Parameters
    ----------
    forward
        From a uint8 batch to the pooled columns, float32 of (B, D) each; may be exchanged.
    size
        Images of a pass.
    count
        How many lanes, 1 or more.
    threads
        Threads of a pass: one where there are several lanes.
    fills
        Fill each batch up to ``size`` with black images.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], tuple[Tensor, ...]],
        size: int,
        count: int,
        *,
        threads: int = 1,
        fills: bool = True,
    ) -> None:
        self.forward, self.size, self._fills = forward, size, fills
        self.count = count
        """passes that run side by side"""
        self.at_once = 2 * count
        """passes that may be begun: each lane has its next one waiting"""
        self._seconds, self._lock = 0.0, threading.Lock()
        _threads.hold()
        self._executor = ThreadPoolExecutor(
            count, thread_name_prefix="icecore-forward", initializer=torch.set_num_threads, initargs=(threads,)
        )
        self._let_go = weakref.finalize(self, _threads.let_go)

    @property
    def seconds(self) -> float:
        """Time at work so far, the mean of the lanes."""
        return self._seconds / self.count

    def start(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Begin a pass over 1 to ``size`` images; what is given waits for its end."""
        return self._executor.submit(_inference, partial(self._pass, pixels)).result

    def close(self) -> None:
        """Wait for what has begun, and give torch back the number of threads that it had."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._let_go()

    def _pass(self, pixels: np.ndarray) -> list[np.ndarray]:
        began = time.perf_counter()
        n = len(pixels)
        batch = np.ascontiguousarray(pixels)
        if n < self.size and self._fills:
            batch = np.zeros((self.size, *pixels.shape[1:]), np.uint8)
            batch[:n] = pixels
        found = self.forward(torch.from_numpy(batch))
        rows = [np.ascontiguousarray(rows[:n].numpy()) for rows in found]  # a view would hold a whole layer
        with self._lock:
            self._seconds += time.perf_counter() - began
        return rows


def _inference(do: Callable[[], T]) -> T:
    with torch.inference_mode(), exact_fp32(torch.device("cpu")):  # the mode holds for one thread
        return do()


def default_lanes() -> int:
    """Give one lane for each processor that the process may use and torch is to use, at most 32."""
    return min(default_threads(), torch.get_num_threads())


@contextmanager
def as_a_lane() -> Iterator[None]:
    """Let the thread that calls this do as passes are done, for the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), exact_fp32(torch.device("cpu")):
            yield
    finally:
        torch.set_num_threads(before)


class _Threads:
    """The number of threads that torch gives to new threads, which lanes change: as it was once the last has gone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._before = 0

    def hold(self) -> None:
        with self._lock:
            if not self._holders:
                self._before = torch.get_num_threads()
            self._holders += 1

    def let_go(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                torch.set_num_threads(self._before)


_threads = _Threads()
