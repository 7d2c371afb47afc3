"""Images whose features are stored already: read and recognised by their sha256, without torch and without decoding."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np
from icecore.store import SourceImage

from .pipeline import Failed, Linked, Row, in_order, load_row

__all__ = ["Stretch", "read_known"]

AHEAD = 64
"""Files that are read ahead; those behind the first unknown one are read again."""


class Stretch(NamedTuple):
    """Some images in their order, with the features of those that went through the network."""

    outcomes: tuple[Row | Linked | Failed, ...]
    """one an image; a ``Linked`` has its features elsewhere, or is a copy of a ``Row`` of this stretch"""
    X: np.ndarray
    """float32 (rows, D), a row for each ``Row``, in order"""


def read_known(
    images: Iterator[SourceImage], is_known: Callable[[bytes], bool], *, threads: int
) -> Generator[Stretch, None, list[SourceImage]]:
    """Read images as long as each is known by its content, or cannot be read.

    Parameters
    ----------
    images
        Consumed as it goes.
    is_known
        Says whether a sha256 digest has its features already; called from all threads.
    threads
        Reading threads; 0 reads in the caller's.

    Yields
    ------
    Stretch
        Of ``Linked`` and ``Failed`` alone.

    Returns
    -------
    list of SourceImage
        The first unknown image and those read ahead of it, to be read before what ``images`` still has; empty where
        all were known.
    """
    taken: deque[SourceImage] = deque()

    def feed() -> Iterator[SourceImage]:
        for image in images:
            taken.append(image)
            yield image

    with in_order(
        lambda image: load_row(image, is_known, lambda _: np.empty(0, np.uint8)), feed(), threads=threads, ahead=AHEAD
    ) as loaded:
        for outcome, pixels, _ in loaded:
            if pixels is not None:
                break
            taken.popleft()
            yield Stretch((outcome if isinstance(outcome, Failed) else Linked(*outcome),), np.empty((0, 0), np.float32))
        else:
            return []
    return list(taken)
