"""What is computed, and how: all that a process with a device of its own must know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from icecore.store import Column

from .backbone import Backbone
from .trunk import Compilation

__all__ = ["State", "Work"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """Columns of a network, on a device."""

    backbone: Backbone
    """the network"""
    columns: tuple[Column, ...]
    """what is asked for"""
    device: str
    """where the network runs; with several devices, the first"""
    precision: str
    """``fp32``, ``bf16`` or ``fp16``"""
    batch_size: int
    """images of a pass"""
    compilation: Compilation
    """whether the pass is compiled"""
    threads: int
    """decoding threads"""
    max_pixels: int
    """larger images fail"""


class State(NamedTuple):
    """What is known of passes so far."""

    seconds: float = 0.0
    """time that the device was at work"""
    engine: str = ""
    """``eager``, ``compiled``, ``graph``; empty before the first pass"""
    why: str = ""
    """why they are not compiled, where that was to be decided"""
    pass_size: int | None = None
    """images of a pass, which a device with too little memory makes fewer"""
    decoded: tuple[tuple[str, int], ...] = ()
    """images that were decoded by ``device`` and by ``pillow``, where both may"""
