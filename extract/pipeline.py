"""From image files to batches of pixels, in order, by threads, in bounded memory.

A batch is closed by its last row of pixels and carries what lay between the rows: images that need no forward
pass, and images that failed. An image that fails is told as such; it never moves another one's row.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from icecore.store import SourceImage
from icecore.store.contract import FULL

from .errors import ImageError, SourceLostError
from .images import MAX_PIXELS, load_image
from .preprocess import Decode, Preprocess
from .reading import read_image_file

__all__ = ["Batch", "Failed", "Linked", "Row", "default_threads", "in_order", "load_row", "read_batches"]

MOST_OUTCOMES = 4096
"""Images told at once: a run that meets a million known files must neither hold nor commit them in one piece."""


MOST_TRANSIENT = 50
"""Files in a row that could not be read for a passing reason, after which the source is taken for lost."""
_MOST_THREADS = 32
_WAITING_THREADS = (32, 4, 128)
"""threads that wait for a device: at least, for each processor, at most; each brings it one image at a time"""


class Row(NamedTuple):
    """An image that is to be forwarded."""

    image: SourceImage
    """as it was when read"""
    content: bytes
    """sha256 of its bytes"""


class Linked(NamedTuple):
    """An image whose content has its features already, or is a row of this batch."""

    image: SourceImage
    """as it was when read"""
    content: bytes
    """sha256 of its bytes"""


class Failed(NamedTuple):
    """An image that cannot be used."""

    image: SourceImage
    """as it was planned"""
    error: ImageError
    """kind and reason"""


@dataclass(frozen=True)
class Batch:
    """A stretch of the images, in their order."""

    outcomes: tuple[Row | Linked | Failed, ...]
    """one an image"""
    pixels: np.ndarray
    """uint8 (n, 3, crop, crop), or (n, crops, 3, crop, crop): one row for each ``Row``, in order; n may be 0"""
    seconds: float = 0.0
    """spent on reading and decoding since the batch before, summed over the threads"""

    @property
    def rows(self) -> list[Row]:
        """The images of ``pixels``, in its order."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Row)]


class _Loaded(NamedTuple):
    """What a thread made of one image."""

    outcome: Row | Failed
    pixels: np.ndarray | None
    seconds: float = 0.0


def default_threads(decode: Decode = "exact") -> int:
    """Give one decoding thread for each processor that this process may use, at most 32; of ``nvjpeg`` 4, 32 to 128."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if decode == "nvjpeg":
        least, each, most = _WAITING_THREADS
        return min(max(least, each * allowed), most)
    return min(allowed, _MOST_THREADS)


def read_batches(
    images: Iterable[SourceImage],
    *,
    preprocess: Preprocess,
    batch_size: int,
    threads: int,
    is_known: Callable[[bytes], bool] | None = None,
    max_pixels: int = MAX_PIXELS,
    crops: Sequence[str] = (FULL,),
    load_pixels: Callable[[bytes], np.ndarray] | None = None,
) -> Generator[Batch]:
    """Read, hash and decode images.

    Every file is read once and hashed from the bytes read; what is known by its hash is not decoded. Append the
    rows of a batch to the store before asking for the next one: that is how a duplicate of a row is recognised.

    Parameters
    ----------
    images
        What to read, in this order; consumed as it goes.
    preprocess
        Resize and crop.
    batch_size
        Rows of a full batch, 1 or more.
    threads
        Decoding threads; 0 decodes in the caller's thread.
    is_known
        Says whether a sha256 digest has its features already; called from all threads. None: every image becomes
        a row, duplicates too.
    max_pixels
        Limit of width x height.
    crops
        What is cut out of each image, as ``load_image`` takes it.
    load_pixels
        Gives the pixels of a file's bytes, called from all threads: ``load`` of a loader with the same ``preprocess``,
        ``max_pixels`` and ``crops``. Default: ``load_image``.

    Yields
    ------
    Batch
        With ``batch_size`` rows, the last one with fewer; after some thousand images that need no pass, also one
        without rows, so that images are told in their order but for rows that wait to fill a batch. At most
        ``batch_size + 2 * threads`` decoded images wait at any moment, beside the batch being filled. To stop
        early close the generator (``contextlib.closing``), which waits for its threads.

    Raises
    ------
    SourceLostError
        When 50 files in a row fail with kind ``transient``; images that wait in the batch being filled are not told.
    """
    if batch_size < 1 or threads < 0:
        raise ValueError(f"batch_size must be 1 or more and threads 0 or more, found {batch_size}, {threads}")

    pixels_of = load_pixels or (lambda data: load_image(data, preprocess, max_pixels=max_pixels, crops=crops))

    def load(image: SourceImage) -> _Loaded:
        began = time.perf_counter()
        return load_row(image, is_known, pixels_of)._replace(seconds=time.perf_counter() - began)

    filling = _Filling(preprocess.crop, batch_size, crops)
    with in_order(load, images, threads=threads, ahead=batch_size + 2 * threads) as stream:
        for loaded in _while_there(stream):
            filling.add(loaded, is_known)
            if filling.full:
                yield filling.take()
            elif filling.finished >= MOST_OUTCOMES:
                yield filling.take_finished()
    if filling.outcomes:
        yield filling.take()


def _while_there(stream: Iterator[_Loaded]) -> Iterator[_Loaded]:
    in_a_row = 0
    for loaded in stream:
        match loaded.outcome:
            case Failed(image, ImageError(kind="transient", reason=reason)):
                in_a_row += 1
                if in_a_row == MOST_TRANSIENT:
                    raise SourceLostError(image.id, reason, failures=in_a_row)
            case _:
                in_a_row = 0
        yield loaded


class _Filling:
    """The batch being filled."""

    def __init__(self, side: int, size: int, crops: Sequence[str]) -> None:
        self._shape = (size, *(() if tuple(crops) == (FULL,) else (len(crops),)), 3, side, side)
        self._clear()

    def _clear(self) -> None:
        self.outcomes: list[Row | Linked | Failed] = []
        self._pixels = np.empty(self._shape, np.uint8)  # (B, 3, S, S) or (B, crops, 3, S, S)
        self._n = 0
        self._contents: set[bytes] = set()
        self.finished = 0
        self.seconds = 0.0

    @property
    def full(self) -> bool:
        return self._n == len(self._pixels)

    def add(self, loaded: _Loaded, is_known: Callable[[bytes], bool] | None) -> None:
        outcome, pixels, seconds = loaded
        self.seconds += seconds
        if isinstance(outcome, Failed):
            self.outcomes.append(outcome)
            self.finished += 1
        elif is_known and outcome.content in self._contents:
            self.outcomes.append(Linked(*outcome))  # waits for its row
        elif pixels is None or (is_known and is_known(outcome.content)):
            self.outcomes.append(Linked(*outcome))
            self.finished += 1
        else:
            self._pixels[self._n] = pixels
            self._n += 1
            self._contents.add(outcome.content)
            self.outcomes.append(outcome)

    def take(self) -> Batch:
        batch = Batch(tuple(self.outcomes), self._pixels[: self._n], self.seconds)
        self._clear()
        return batch

    def take_finished(self) -> Batch:
        """Give what waits for no forward pass; rows, and links to them, stay, so batches are filled as ever."""
        waits = [isinstance(o, Row) or (isinstance(o, Linked) and o.content in self._contents) for o in self.outcomes]
        finished = tuple(o for o, waiting in zip(self.outcomes, waits, strict=True) if not waiting)
        self.outcomes = [o for o, waiting in zip(self.outcomes, waits, strict=True) if waiting]
        self.finished = 0
        seconds, self.seconds = self.seconds, 0.0
        return Batch(finished, self._pixels[:0], seconds)


def load_row(
    image: SourceImage, is_known: Callable[[bytes], bool] | None, pixels_of: Callable[[bytes], np.ndarray]
) -> _Loaded:
    """Read, hash and, unless it is known, decode one image; its pixels are None where it is known or cannot be used."""
    try:
        fresh, data, digest = read_image_file(image)
    except ImageError as exc:
        return _Loaded(Failed(image, exc), None)
    if is_known is not None and is_known(digest):
        return _Loaded(Row(fresh, digest), None)
    try:
        return _Loaded(Row(fresh, digest), pixels_of(data))
    except ImageError as exc:
        return _Loaded(Failed(fresh, exc), None)


@contextmanager
def in_order(
    load: Callable[[SourceImage], _Loaded], images: Iterable[SourceImage], *, threads: int, ahead: int
) -> Iterator[Iterator[_Loaded]]:
    """Give the results in the order of ``images``; on leaving, what has not begun is dropped."""
    if threads == 0:
        yield map(load, images)
        return
    executor = ThreadPoolExecutor(threads, thread_name_prefix="icecore-decode")
    try:
        yield _results(executor, load, iter(images), ahead)
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _results(
    executor: ThreadPoolExecutor, load: Callable[[SourceImage], _Loaded], images: Iterator[SourceImage], ahead: int
) -> Iterator[_Loaded]:
    waiting: deque[Future[_Loaded]] = deque(executor.submit(load, image) for image in islice(images, ahead))
    while waiting:
        loaded = waiting.popleft().result()
        waiting.extend(executor.submit(load, image) for image in islice(images, 1))
        yield loaded
