"""What becomes of a batch: rows appended, links and failures recorded, everything counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torchvision
from icecore.store import Column, SourceImage, Writer

from .decoding import decoder_versions
from .events import Teller
from .pipeline import Batch, Failed, Linked
from .report import FailedImage

__all__ = ["Progress", "Tally", "fail_image", "library_versions", "record_batch"]

STAGES = ("decode", "forward", "write")
"""What a run does at the same time: reading and decoding, the network, the store."""

Progress = Callable[[int, int], None]
"""called after each batch with the images done and the images to do"""


@dataclass
class Tally:
    """What was done so far."""

    total: int
    """images to do"""
    progress: Progress | None
    """told after each batch"""
    teller: Teller
    """tells events"""
    guard: Callable[[], None] = lambda: None
    """called before the first pass; raises where it must not begin"""
    forwarded: int = 0
    """images that went through the network"""
    linked: int = 0
    """images whose content was known"""
    done: int = 0
    """images with an outcome"""
    refused: dict[bytes, str] = field(default_factory=dict)
    """contents with a value that a column cannot hold, with the reason"""
    failures: list[FailedImage] = field(default_factory=list)
    """images that gave no features"""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """time spent on each stage; of ``decode``, summed over the threads"""
    decoded: Counter[str] = field(default_factory=Counter)
    """images that were decoded by ``device`` and by ``pillow``, where both may; else empty"""
    engine: str = ""
    """what the passes ran as, once there was one"""
    why: str = ""
    """why they were not compiled"""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of the block for a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began

    def busy(self, seconds: float, threads: int) -> dict[str, float]:
        """Give the share of the run's time that each stage was at work; of ``decode``, the mean of its threads."""
        if not self.forwarded or not seconds:
            return {}
        workers = {"decode": max(1, threads)}
        return {stage: self.seconds[stage] / seconds / workers.get(stage, 1) for stage in STAGES}

    def add(self, images: int) -> None:
        """Count images as done and tell it."""
        self.done += images
        if self.progress is not None:
            self.progress(self.done, self.total)
        if images:
            self.teller.tell("progress")

    def fail(self, failed: FailedImage) -> None:
        """Count an image that gave no features, and tell it."""
        self.failures.append(failed)
        self.teller.tell("failure", id=failed.id, kind=failed.kind, reason=failed.reason)


def record_batch(writer: Writer, batch: Batch, features: Mapping[Column, np.ndarray], tally: Tally) -> None:
    """Append the rows, then tell what lay between them: links may point to these rows."""
    rows = batch.rows
    if rows:
        refusals = writer.append([row.image for row in rows], [row.content for row in rows], features)
        reasons = {refusal.image.id: refusal.reason for refusal in refusals}
        tally.refused |= {row.content: reasons[row.image.id] for row in rows if row.image.id in reasons}
    tally.forwarded += len(rows)
    for outcome in batch.outcomes:
        match outcome:
            case Failed(image, error):
                fail_image(writer, tally, image, error.kind, error.reason)
                continue
            case Linked(image, content):
                writer.link(image, content)
        if outcome.content in tally.refused:
            tally.fail(FailedImage(outcome.image.id, "value", tally.refused[outcome.content]))
        else:
            tally.linked += isinstance(outcome, Linked)


def fail_image(writer: Writer, tally: Tally, image: SourceImage, kind: str, reason: str) -> None:
    """Record a failure in the store and in the tally."""
    writer.fail(image, kind, reason)
    tally.fail(FailedImage(image.id, kind, reason))


def library_versions() -> dict[str, str]:
    """Give the libraries that compute features, with their versions, as they are recorded with these."""
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        **decoder_versions(),
        "numpy": np.__version__,
    }
