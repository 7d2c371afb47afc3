"""What a tuning that goes on needs to know: the tensors that learn, the optimizer, the best epoch so far.

Written whole after every epoch; what has been written can be read without running code.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from icecore.store.durable import write_bytes
from torch import Tensor

from .errors import TuningError

__all__ = ["Best", "TuningState", "read_state", "write_state"]

FORMAT = 1
_FILE = "state.pt"


@dataclass
class Best:
    """The epoch with the lowest validation loss in which the backbone learned."""

    epoch: int
    """its number"""
    loss: float
    """its validation loss"""
    tensors: dict[str, Tensor]
    """all that learned, on the CPU"""


@dataclass
class TuningState:
    """A tuning after some epochs."""

    epoch: int = 0
    """epochs that are done"""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """all that learns, by name, on the CPU"""
    average: dict[str, Tensor] = field(default_factory=dict)
    """averages of these over the steps; empty where none are asked for"""
    optimizer: dict[str, Any] = field(default_factory=dict)
    """state of the optimizer"""
    scaler: dict[str, Any] = field(default_factory=dict)
    """state of the scaler of losses"""
    best: Best | None = None
    """the best epoch so far"""
    history: list[dict[str, Any]] = field(default_factory=list)
    """what the record says of each epoch"""
    skipped: dict[str, str] = field(default_factory=dict)
    """images that could not be read, with the reason"""
    unseen: list[str] = field(default_factory=list)
    """those of ``skipped`` that could not be read from the first"""
    seconds: float = 0.0
    """time at work"""
    at_once: int = 0
    """images of a forward pass for which there was memory; 0: not known yet"""


def read_state(folder: Path) -> TuningState | None:
    """Give the state that a run left in a job's folder; None where there is none.

    Raises
    ------
    TuningError
        When there is one that cannot be read.
    """
    path = folder / _FILE
    try:
        values = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        found = values.pop("format")
    except FileNotFoundError:
        return None
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError) as exc:
        raise TuningError(f"{path}: not a readable checkpoint ({exc}); delete {folder} to begin anew") from exc
    if found != FORMAT:
        raise TuningError(f"{path}: checkpoint format {found}, this release reads {FORMAT}; delete {folder}")
    best = values.pop("best")
    return TuningState(**values, best=None if best is None else Best(**best))


def write_state(folder: Path, state: TuningState) -> None:
    """Write the state, whole or not at all."""
    values = {**vars(state), "best": None if state.best is None else vars(state.best), "format": FORMAT}
    out = io.BytesIO()
    torch.save(values, out)
    write_bytes(folder / _FILE, out.getvalue())
