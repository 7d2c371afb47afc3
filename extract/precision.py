"""``precision = "auto"``: the fastest arithmetic that gives the features of fp32, looked at on images of the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from icecore.store import Column, Scan

from .backbone import Backbone
from .comparing import cosines
from .devices import choose_precision
from .errors import ImageError
from .loaders import Loader, open_loader
from .reading import read_image_file
from .trunk import Trunk
from .views import crops_for

__all__ = ["LEAST_COSINE", "Precision", "settle_precision"]

LEAST_COSINE = 0.999
"""How much alike the features of every sampled image must be to those of fp32, in every column."""
SAMPLE = 8
"""Images that are looked at."""
_TRIED = 64
"""Files that are tried to find them."""


class Precision(NamedTuple):
    """What was chosen."""

    name: str
    """``fp32``, ``bf16`` or ``fp16``"""
    why: str
    """why it is not the fastest that the device has; empty where it is, or where the set has it already"""


def settle_precision(
    backbone: Backbone, columns: Sequence[Column], scan: Scan, device: torch.device, *, stored: str | None
) -> Precision:
    """Choose for a set that has precision ``stored``, or has none yet (None).

    A lower precision than fp32 is taken for a new set only where, on the first images that can be read, every column
    has a cosine of 0.999 or more to that of fp32. Reads at most 64 files, and forwards 8 images twice.
    """
    best = choose_precision(device, "auto", stored=stored)
    if best in ("fp32", stored):
        return Precision(best, "")
    crops = crops_for(backbone.views, columns)
    with closing(open_loader(backbone.preprocess, device=device, crops=crops)) as loader:
        sample = list(islice(_pixels(scan, loader), SAMPLE))
    if not sample:
        return Precision("fp32", "no image of the source could be read to look at")
    pixels = np.stack(sample)
    found = []
    for precision in ("fp32", best):
        trunk = Trunk(backbone, columns, device=str(device), precision=precision, batch_size=len(pixels))
        with closing(trunk):
            found.append(trunk.forward(pixels))
    exact, rough = found
    worst = _worst_cosine(exact, rough)
    if worst >= LEAST_COSINE:
        return Precision(best, "")
    told = f"cosine {worst:.4f} to fp32 on {len(pixels)} images, expected {LEAST_COSINE} or more"
    return Precision("fp32", f"{best} would change features too much: {told}")


def _pixels(scan: Scan, loader: Loader) -> Iterator[np.ndarray]:
    for image in islice(scan.images(), _TRIED):
        try:
            _, data, _ = read_image_file(image)
            yield loader.load(data)
        except ImageError:
            continue  # the run records what is wrong with it


def _worst_cosine(exact: Mapping[Column, np.ndarray], rough: Mapping[Column, np.ndarray]) -> float:
    """Give the lowest cosine of an image in a column; 0 where a value is not finite."""
    return min(float(cosines(rows, rough[column]).min()) for column, rows in exact.items())
