"""Images through the network, a batch at a time, into the store; and what a run is to do, as one value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from icecore.store import Column, Plan, Scan, SourceImage, Writer

from .backbone import Backbone
from .batch_sizes import settle_batch_size
from .line import Line
from .pipeline import Batch, Failed, Row, read_batches
from .recording import Tally, record_batch
from .report import Prune
from .trunk import Compilation, Trunk
from .views import crops_for

__all__ = ["Task", "forward_images", "with_batch_size"]


@dataclass(frozen=True)
class Task:
    """What a run is to do, checked before the store is touched."""

    backbone: Backbone
    """the network"""
    columns: tuple[Column, ...]
    """what is asked for"""
    scan: Scan
    """the images"""
    device: str
    """where the network runs"""
    precision: str
    """``fp32``, ``bf16`` or ``fp16``"""
    precision_why: str
    """why ``auto`` did not take the fastest"""
    batch_size: int
    """images of a pass"""
    compilation: Compilation
    """whether the pass is compiled"""
    threads: int
    """decoding threads"""
    max_pixels: int
    """larger images fail"""
    source: Mapping[str, str | None]
    """recorded with the features"""
    prune: Prune
    """what becomes of images that the source has no more"""
    finds_batch_size: bool = False
    """whether another batch size may be chosen, because none was asked for"""
    batch_size_why: str = ""
    """how the batch size was found, where this run searched"""

    def told(self) -> dict[str, str | int]:
        """Give what is said of it once its plan is made."""
        return {"device": self.device, "precision": self.precision, "batch_size": self.batch_size}


def with_batch_size(task: Task, plan: Plan) -> Task:
    """Choose the batch size by the images that will be forwarded; most of those that are read to be sure will not."""
    if not task.finds_batch_size or not plan.to_read:
        return task
    waiting = plan.added + plan.changed + plan.backfill + plan.retried
    device, compilation = torch.device(task.device), task.compilation
    found = settle_batch_size(task.backbone, task.columns, device, task.precision, waiting, compilation=compilation)
    return replace(task, batch_size=found.size, batch_size_why=found.why)


def forward_images(
    writer: Writer, images: Iterable[SourceImage], columns: Sequence[Column], task: Task, tally: Tally
) -> list[SourceImage]:
    """Read images and forward those whose content lacks the columns.

    Gives the images that must be read for all columns instead: their files have changed since the plan was made,
    and their new content lacks others, too. Nothing is recorded of these.
    """
    others = [column for column in task.columns if column not in columns]
    strays: list[SourceImage] = []
    line = Line(lambda: _trunk(task, columns, tally))
    batches = read_batches(
        images,
        preprocess=task.backbone.preprocess,
        batch_size=task.batch_size,
        threads=task.threads,
        is_known=lambda content: content in line.contents or writer.is_known(content, columns),
        max_pixels=task.max_pixels,
        crops=crops_for(task.backbone.views, columns),
    )

    def ours() -> Iterator[Batch]:
        for batch in batches:
            tally.seconds["decode"] += batch.seconds
            yield _without_strays(batch, strays, writer, others) if others else batch

    with closing(line), closing(batches):  # before the writer, which the threads of the latter ask
        for batch, features in line.through(ours()):
            with tally.timed("write"):
                record_batch(writer, batch, features, tally)
            tally.add(len(batch.outcomes))
    tally.seconds["forward"] += line.seconds
    if line.pass_size is not None and line.pass_size < task.batch_size:
        told = f"the device's memory has room for passes of {line.pass_size} images, not of {task.batch_size}"
        tally.why = f"{tally.why}; {told}" if tally.why else told
    return strays


def _without_strays(batch: Batch, strays: list[SourceImage], writer: Writer, others: Sequence[Column]) -> Batch:
    """Move the images of a batch whose content lacks the other columns to ``strays``."""
    ours = [isinstance(o, Failed) or writer.is_known(o.content, others) for o in batch.outcomes]
    strays += [o.image for o, stays in zip(batch.outcomes, ours, strict=True) if not stays]
    kept = [stays for o, stays in zip(batch.outcomes, ours, strict=True) if isinstance(o, Row)]
    outcomes = tuple(o for o, stays in zip(batch.outcomes, ours, strict=True) if stays)
    return batch if all(ours) else Batch(outcomes, batch.pixels[kept])


def _trunk(task: Task, columns: Sequence[Column], tally: Tally) -> Trunk:
    tally.guard()
    trunk = Trunk(
        task.backbone,
        columns,
        device=task.device,
        precision=task.precision,
        batch_size=task.batch_size,
        compilation=task.compilation,
        images=tally.total - tally.done,
    )
    tally.engine, tally.why = trunk.engine, trunk.why
    return trunk
