"""What a run is to do, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from icecore.store import Plan, Scan

from .batch_sizes import settle_batch_size
from .report import Prune
from .work import Work

__all__ = ["Task", "with_batch_size"]


@dataclass(frozen=True, kw_only=True)
class Task(Work):
    """What a run is to do, checked before the store is touched."""

    scan: Scan
    """the images"""
    devices: tuple[str, ...]
    """where the network runs: each beyond the first in a process of its own, and then the first as well"""
    precision_why: str
    """why ``auto`` did not take the fastest"""
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
        return {"device": ", ".join(self.devices), "precision": self.precision, "batch_size": self.batch_size}


def with_batch_size(task: Task, plan: Plan) -> Task:
    """Choose the batch size by the images that will be forwarded; most of those that are read to be sure will not."""
    if not task.finds_batch_size or not plan.to_read:
        return task
    waiting = plan.added + plan.changed + plan.backfill + plan.retried
    device, compilation = torch.device(task.device), task.compilation
    found = settle_batch_size(task.backbone, task.columns, device, task.precision, waiting, compilation=compilation)
    return replace(task, batch_size=found.size, batch_size_why=found.why)
