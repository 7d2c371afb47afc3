"""Images through the network, a batch at a time, into the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
from icecore.store import Column, SourceImage, Writer

from .line import Features
from .one_device import OneDevice
from .pipeline import Batch, Failed, Row
from .recording import Tally, record_batch
from .task import Task
from .work import State
from .workers import Workers

__all__ = ["forward_images"]


def forward_images(
    writer: Writer, images: Iterable[SourceImage], columns: Sequence[Column], task: Task, tally: Tally
) -> list[SourceImage]:
    """Read images and forward those whose content lacks the columns.

    Gives the images that must be read for all columns instead: their files have changed since the plan was made,
    and their new content lacks others, too. Nothing is recorded of these.
    """
    others = [column for column in task.columns if column not in columns]
    strays: list[SourceImage] = []
    passes = _passes(writer, columns, task, tally)
    stream = passes.through(images)
    with closing(passes), closing(stream):  # before the writer, which the threads of the latter ask
        for read, found in stream:
            tally.seconds["decode"] += read.seconds
            batch, features = _without_strays(read, found, strays, writer, others) if others else (read, found)
            with tally.timed("write"):
                record_batch(writer, batch, features, tally)
            tally.add(len(batch.outcomes))
    _tell(passes.state, task, tally)
    return strays


def _tell(state: State, task: Task, tally: Tally) -> None:
    tally.seconds["forward"] += state.seconds
    tally.decoded.update(dict(state.decoded))
    if state.engine:
        tally.engine, tally.why = state.engine, state.why
    if state.pass_size is not None and state.pass_size < task.batch_size:
        told = f"the device's memory has room for passes of {state.pass_size} images, not of {task.batch_size}"
        tally.why = f"{tally.why}; {told}" if tally.why else told


def _passes(writer: Writer, columns: Sequence[Column], task: Task, tally: Tally) -> OneDevice | Workers:
    waiting = tally.total - tally.done
    devices = task.devices[: -(-waiting // task.batch_size)]  # one without a batch would begin for nothing
    if len(devices) > 1:
        return Workers(task, devices, columns, writer, guard=tally.guard, images=waiting)
    return OneDevice(
        task, columns, is_known=lambda content: writer.is_known(content, columns), guard=tally.guard, images=waiting
    )


def _without_strays(
    batch: Batch, features: Features, strays: list[SourceImage], writer: Writer, others: Sequence[Column]
) -> tuple[Batch, Features]:
    """Move the images of a batch whose content lacks the other columns to ``strays``."""
    ours = [isinstance(o, Failed) or writer.is_known(o.content, others) for o in batch.outcomes]
    if all(ours):
        return batch, features
    strays += [o.image for o, stays in zip(batch.outcomes, ours, strict=True) if not stays]
    kept = np.array([stays for o, stays in zip(batch.outcomes, ours, strict=True) if isinstance(o, Row)], dtype=bool)
    outcomes = tuple(o for o, stays in zip(batch.outcomes, ours, strict=True) if stays)
    left = {column: X[kept] for column, X in features.items()} if kept.any() else {}
    return Batch(outcomes, batch.pixels[:0], batch.seconds), left
