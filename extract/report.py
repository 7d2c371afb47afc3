"""What an extraction found and did, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from icecore.store import Column, Plan

from .preprocess import Decode

__all__ = ["ExtractReport", "FailedImage", "Prune", "counts_of"]

Prune = Literal["tombstone", "keep"]
"""What becomes of images that the source has no more: they leave the current version, or nothing is removed."""


@dataclass(frozen=True)
class FailedImage:
    """An image that gave no features in this run."""

    id: str
    """path below the source folder, or what a manifest calls it"""
    kind: str
    """``read``, ``transient``, ``decode``, ``too-large``, ``unsupported`` or ``value``"""
    reason: str
    """what was found"""


@dataclass(frozen=True)
class ExtractReport:
    """What a run found and did. Counts are images."""

    set_name: str
    """feature set"""
    plan: Plan
    """what the comparison of source and store gave: added, changed, backfill, unchanged, gone ..."""
    columns: tuple[Column, ...]
    """what was asked for"""
    contract_hash: str
    """hash of the base contract"""
    device: str
    """where the network ran, or would have"""
    precision: str
    """``fp32``, ``bf16`` or ``fp16``: what was used, also where ``auto`` was asked for"""
    precision_why: str
    """why ``auto`` did not take the fastest that the device has; else empty"""
    source: Mapping[str, str | None]
    """backbone, weights, preprocessing, folder and manifest, as recorded in the store"""
    prune: Prune
    """what became of images that the source has no more"""
    dry_run: bool
    """True when only the plan was made"""
    forwarded: int = 0
    """images that went through the network"""
    linked: int = 0
    """images whose content had its features already: moved, copied or merely touched"""
    uncovered: int = 0
    """images without features that keep readers at another generation or an earlier version"""
    removed: int = 0
    """images that the source has no more and that left the current version"""
    failures: tuple[FailedImage, ...] = ()
    """images that gave no features, in the order met; earlier failures left alone are in ``plan.failed``"""
    version: int | None = None
    """version of the set that readers see now; None while it has none"""
    seconds: float = 0.0
    """time from the plan to the last commit"""
    batch_size: int | None = None
    """images of a pass; None where only the plan was made"""
    batch_size_why: str = ""
    """how it was found, where this run searched for it; else empty"""
    engine: str = ""
    """``eager``, ``compiled`` or ``graph``: what the last pass ran as; empty when there was none"""
    why: str = ""
    """why it was not compiled, where that was to be decided"""
    decode: Decode = "exact"
    """``exact``; ``fast``: large JPEG files at a fraction of their size; or ``nvjpeg``: JPEG files on the device"""
    decoder: str = ""
    """libraries that decode, with their versions"""
    decoded: Mapping[str, int] = field(default_factory=dict)
    """with ``nvjpeg`` the images that were decoded by ``device`` and by ``pillow``; else empty"""
    busy: Mapping[str, float] = field(default_factory=dict)
    """share of ``seconds`` that ``decode`` (the mean of its threads), ``forward`` and ``write`` were at work"""

    @property
    def bound_by(self) -> str | None:
        """The stage that was at work for longest, which the others waited for; None when nothing was forwarded."""
        return max(self.busy, key=self.busy.__getitem__) if self.busy else None

    @property
    def kept(self) -> int:
        """Images that the source has no more and that stay, because nothing is pruned."""
        return self.plan.vanished if self.prune == "keep" else 0

    @property
    def images_per_second(self) -> float:
        """Images forwarded a second."""
        return self.forwarded / self.seconds if self.seconds else 0.0

    def told(self) -> dict[str, Any]:
        """Give what the last event of the run says of it, plain JSON values."""
        return {
            "version": self.version,
            "removed": self.removed,
            "uncovered": self.uncovered,
            "seconds": round(self.seconds, 3),
            "engine": self.engine,
            "batch_size": self.batch_size,
            "batch_size_why": self.batch_size_why,
            "decoded": dict(self.decoded),
            "busy": {stage: round(share, 3) for stage, share in self.busy.items()},
        }


def counts_of(plan: Plan) -> dict[str, int]:
    """Give a plan's counts by name."""
    names = ("to_read", "added", "changed", "racy", "backfill", "retried", "unchanged", "vanished")
    return {name: int(getattr(plan, name)) for name in names}
