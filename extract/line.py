"""Batches through the network in their order, as many under way as the device takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
from icecore.store import Column

from .errors import SourceLostError
from .pipeline import Batch
from .trunk import Trunk

__all__ = ["Features", "Line"]

Features = Mapping[Column, np.ndarray]
"""float32 (n, D) of each column; empty where a batch has no rows"""


class Line:
    """Batches under way. Close it, whatever has happened.

    Parameters
    ----------
    make
        Gives the network; called for the first batch that has rows.
    """

    def __init__(self, make: Callable[[], Trunk]) -> None:
        self._make = make
        self._trunk: Trunk | None = None
        self._waiting: deque[tuple[Batch, Callable[[], Features]]] = deque()
        self.contents: set[bytes] = set()
        """sha256 digests of the rows that were begun, until the batch after theirs is asked for"""

    @property
    def seconds(self) -> float:
        """Time that the device was at work so far."""
        return self._trunk.seconds if self._trunk else 0.0

    @property
    def pass_size(self) -> int | None:
        """Images of a pass, which a device with too little memory makes fewer; None when there was none."""
        return self._trunk.pass_size if self._trunk else None

    def through(self, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Features]]:
        """Give every batch with its features, in their order.

        Raises
        ------
        SourceLostError
            As ``read_batches``, after the batches before it were given.
        """
        lost: SourceLostError | None = None
        try:
            for batch in batches:
                yield from self._add(batch)
        except SourceLostError as exc:
            lost = exc
        while self._waiting:
            yield from self._oldest()
        if lost is not None:
            raise lost

    def close(self) -> None:
        """Let go of the network, when the passes that were begun have ended."""
        if self._trunk is not None:
            self._trunk.close()

    def _add(self, batch: Batch) -> Iterator[tuple[Batch, Features]]:
        features: Callable[[], Features] = dict
        if batch.rows:
            self._trunk = self._trunk or self._make()
            while len(self._waiting) >= self._trunk.at_once:
                yield from self._oldest()
            features = self._trunk.start(batch.pixels)
            self.contents.update(row.content for row in batch.rows)
        self._waiting.append((batch, features))
        at_once = self._trunk.at_once if self._trunk is not None and self.contents else 0
        while len(self._waiting) > at_once:
            yield from self._oldest()

    def _oldest(self) -> Iterator[tuple[Batch, Features]]:
        batch, features = self._waiting.popleft()
        yield batch, features()
        self.contents.difference_update(row.content for row in batch.rows)
