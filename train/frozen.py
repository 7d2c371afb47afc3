"""Sides that stay: what was held out for a champion is held out for ever, and what trained a model never tests it.

With a split by hash both hold by themselves. Where sides are given they may have been changed since.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import SplitError
from .row_list import RowList, hash_id
from .rows import LabelledRows
from .tasks import Targets

__all__ = ["Frozen", "freeze_sides"]


@dataclass(frozen=True)
class Frozen:
    """Rows on the sides that they stay on."""

    rows: LabelledRows
    """training rows, and those that two models are compared on"""
    kept_out: int
    """rows given for training that stay held out, because they were for an earlier champion"""
    left_out: int
    """rows given as held out that are on neither side, because they trained the champion or a backbone"""

    def notes(self) -> tuple[str, ...]:
        """Say what was moved."""
        told = (
            (self.kept_out, "given for training, were held out for an earlier champion, and stay held out"),
            (self.left_out, "given as held out, trained the champion or a backbone, and are on neither side"),
        )
        return tuple(f"{count:,} rows were {what}" for count, what in told if count)


def freeze_sides(
    rows: LabelledRows, earlier: Iterable[RowList], champion: RowList | None, seen: Iterable[str] = ()
) -> Frozen:
    """Put rows on the sides that they stay on. Rows of a group go together.

    Parameters
    ----------
    rows
        As the split of now divides them.
    earlier
        Rows of every champion there was.
    champion
        Rows of the present one.
    seen
        Ids of images that a fine-tuned backbone of one of the two models has seen.

    Raises
    ------
    SplitError, DatasetError
        When a side, or the training rows of a class, would be empty.
    """
    held_before = {image for listed in earlier for image in listed.held_out}
    hashes = [hash_id(image) for image in rows.ids]
    units = rows.groups or rows.ids
    stays = _whole(units, hashes, held_before)
    learned = {*(champion.training if champion else ()), *map(hash_id, seen)}
    trained = _whole(units, hashes, learned)
    kept_out, held_out = rows.train & stays, ~rows.train | stays
    left_out = held_out & trained
    if not (kept_out.any() or left_out.any()):
        return Frozen(rows, 0, 0)
    train, test = ~held_out, held_out & ~trained
    counts = f"{int(kept_out.sum()):,} stay held out, {int(left_out.sum()):,} trained the champion or a backbone"
    if not train.any() or not test.any():
        side = "training" if not train.any() else "held-out"
        raise SplitError(
            f"split ({rows.split.description}): no {side} row is left where sides stay as they were ({counts}); "
            'hold out new images, or divide by hash (split.by = "hash")'
        )
    divided = rows.within(np.flatnonzero(train), np.flatnonzero(test), f"{rows.split.description}; {counts}")
    divided.task.check(Targets(divided.y, divided.classes), divided.train, divided.label_source)
    return Frozen(divided, int(kept_out.sum()), int(left_out.sum()))


def _whole(units: tuple[str, ...], hashes: list[str], marked: Set[str]) -> NDArray[np.bool_]:
    """Mark every row of a unit of which one is marked."""
    found = {unit for unit, image in zip(units, hashes, strict=True) if image in marked}
    return np.array([unit in found for unit in units], dtype=bool)
