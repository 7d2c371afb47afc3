"""Several passes at once on a CPU, each on one processor.

Operations that are spread over all cores wait, each, for the slowest of them: beside decoding threads, or another busy
process, such a pass took up to 20 times as long. Passes side by side wait for nobody, and what a pass computes does
not depend on the number of cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .devices import exact_fp32

__all__ = ["Lanes"]

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
        self._taken: list[float] = []
        self._threads_before = torch.get_num_threads()
        self._executor = ThreadPoolExecutor(
            count, thread_name_prefix="icecore-forward", initializer=torch.set_num_threads, initargs=(threads,)
        )

    @property
    def seconds(self) -> float:
        """Time at work so far, the mean of the lanes."""
        return sum(self._taken) / self.count

    def start(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Begin a pass over 1 to ``size`` images; what is given waits for its end."""
        return self._executor.submit(_inference, partial(self._pass, pixels)).result

    def call(self, do: Callable[[], T]) -> T:
        """Do something else as passes are done, and wait for it."""
        return self._executor.submit(_inference, do).result()

    def close(self) -> None:
        """Wait for what has begun, and give torch back the number of threads that it had."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._threads_before)  # the lanes' own setting holds for threads to come, too

    def _pass(self, pixels: np.ndarray) -> list[np.ndarray]:
        began = time.perf_counter()
        n = len(pixels)
        batch = np.ascontiguousarray(pixels)
        if n < self.size and self._fills:
            batch = np.zeros((self.size, *pixels.shape[1:]), np.uint8)
            batch[:n] = pixels
        rows = [rows[:n].numpy() for rows in self.forward(torch.from_numpy(batch))]
        self._taken.append(time.perf_counter() - began)
        return rows


def _inference(do: Callable[[], T]) -> T:
    with torch.inference_mode(), exact_fp32(torch.device("cpu")):  # the mode holds for one thread
        return do()
