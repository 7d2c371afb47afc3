"""Stop before a changed library, driver or decoder mixes other numbers into a generation.

Before the first pass of a run the generation's canaries are decoded and forwarded again, uncompiled (what is compiled
is held against that each time it is loaded), and compared with what they gave when they were taken.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import numpy as np
from icecore.store import Column, SourceImage
from icecore.store.canaries import Canaries, read_canaries, write_canaries

from .comparing import cosines
from .errors import ImageError, NumericsMovedError
from .images import MAX_PIXELS
from .loaders import Loader, open_loader
from .reading import read_image_file
from .trunk import Trunk
from .views import crops_for
from .work import Work

__all__ = ["MOST_BYTES", "MOST_IMAGES", "TOLERANCE", "check_numerics", "guard_numerics"]

log = logging.getLogger(__name__)

MOST_IMAGES, MOST_BYTES = 8, 1 << 20
"""Canaries of a generation, and bytes of their files together; a single one may be larger, up to ``LARGEST``."""
LARGEST = 8 << 20
TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.045}
"""Distance of an image's features in a column from what they were, as a share of their length; 0.045 is a cosine of
0.999. Measured with mobilenet_v2 and squeezenet1_1 on a CPU in fp32: other batch sizes and threads 1e-6; a tenth of
all pixels off by one 6e-3 and more in some image; other filters of the resize 5e-2 and more."""
_LOOKED_AT = 64
"""Images among which the smallest are chosen."""
_PASS = 4


def guard_numerics(
    folder: Path, generation: str, task: Work, images: Iterable[SourceImage], versions: Mapping[str, str]
) -> None:
    """Return when the canaries give what they gave, and take some where the generation has none.

    Parameters
    ----------
    folder, generation
        The store, locked for writing, and the generation's uuid.
    task
        What the run is to do.
    images
        Images that the run reads; a few of the first become canaries where there are none.
    versions
        Libraries of this run, recorded with what is taken now.

    Raises
    ------
    NumericsMovedError
        Naming the image and the column that moved most; nothing has been written.
    StoreDamagedError, FormatError, DiskError
        When the canaries cannot be read or written.
    """
    held = read_canaries(folder, generation)
    if held is None:
        taken = _take(task, images, versions)
        if taken is not None:
            write_canaries(folder, generation, taken)
        return
    new = [column for column in task.columns if column not in held.features]
    old = _known(held, task)
    columns = (*old, *new)
    features = _forward(task, columns, _decode(held, task, columns, versions))
    _require_unmoved(held, {column: features[column] for column in old}, versions)
    if new:
        whole = {**held.features, **{column: features[column] for column in new}}
        since = {**held.versions, **{column.name: dict(versions) for column in new}}
        grown = Canaries(held.ids, held.files, whole, since, held.precision, held.created)
        write_canaries(folder, generation, grown)


def check_numerics(folder: Path, generation: str, work: Work, versions: Mapping[str, str]) -> None:
    """Return when the canaries, where there are any, give what they gave; writes nothing. Errors as above."""
    held = read_canaries(folder, generation)
    columns = [] if held is None else _known(held, work)
    if held is not None and columns:
        _require_unmoved(held, _forward(work, columns, _decode(held, work, columns, versions)), versions)


def _known(held: Canaries, work: Work) -> list[Column]:
    return [column for column in work.columns if column in held.features]


def _take(task: Work, images: Iterable[SourceImage], versions: Mapping[str, str]) -> Canaries | None:
    """Give the smallest of the first images, with their features; None where not one is fit."""
    chosen: list[tuple[str, bytes, np.ndarray]] = []
    seen: set[bytes] = set()
    size = 0
    with closing(_loader(task, task.columns, task.max_pixels)) as loader:
        for image in sorted(islice(images, _LOOKED_AT), key=lambda image: image.size):
            if len(chosen) == MOST_IMAGES or image.size > LARGEST or (chosen and size + image.size > MOST_BYTES):
                break
            try:
                _, data, _ = read_image_file(image)
                pixels = loader.load(data)
            except ImageError:
                continue  # the run records what is wrong with it
            if (content := hashlib.sha256(data).digest()) in seen:
                continue
            seen.add(content)
            chosen.append((image.id, data, pixels))
            size += len(data)
    if not chosen:
        log.warning("no image of the run is fit for a canary; changed libraries would not be noticed")
        return None
    features = _forward(task, task.columns, np.stack([pixels for _, _, pixels in chosen]))
    fit = np.all([np.isfinite(X).all(1) for X in features.values()], axis=0)
    if not fit.any():
        log.warning("no image of the run is fit for a canary; changed libraries would not be noticed")
        return None
    kept = [canary for canary, is_fit in zip(chosen, fit, strict=True) if is_fit]
    return Canaries(
        ids=tuple(image_id for image_id, _, _ in kept),
        files=tuple(data for _, data, _ in kept),
        features={column: X[fit] for column, X in features.items()},
        versions={column.name: dict(versions) for column in features},
        precision=task.precision,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _decode(held: Canaries, task: Work, columns: Sequence[Column], versions: Mapping[str, str]) -> np.ndarray:
    pixels = []
    with closing(_loader(task, columns, max(task.max_pixels, MAX_PIXELS))) as loader:
        for image_id, data in zip(held.ids, held.files, strict=True):
            try:
                pixels.append(loader.load(data))
            except ImageError as exc:
                then = next(iter(held.versions.values()))
                raise NumericsMovedError(f"{image_id!r} can no longer be decoded ({exc})", then, versions) from exc
    return np.stack(pixels)


def _loader(task: Work, columns: Sequence[Column], max_pixels: int) -> Loader:
    crops = crops_for(task.backbone.views, columns)
    return open_loader(task.backbone.preprocess, device=task.device, max_pixels=max_pixels, crops=crops)


def _forward(task: Work, columns: Sequence[Column], pixels: np.ndarray) -> dict[Column, np.ndarray]:
    size = min(_PASS, len(pixels))
    trunk = Trunk(task.backbone, columns, device=task.device, precision=task.precision, batch_size=size)
    with closing(trunk):
        passes = [trunk.start(pixels[start : start + size]) for start in range(0, len(pixels), size)]  # side by side
        parts = [wait() for wait in passes]
    return {column: np.concatenate([part[column] for part in parts]) for column in columns}


def _require_unmoved(held: Canaries, features: Mapping[Column, np.ndarray], versions: Mapping[str, str]) -> None:
    limit = TOLERANCE[held.precision]
    worst: tuple[float, Column | None, int] = (limit, None, 0)
    for column, X in features.items():
        moved = _distance(held.features[column], X)
        at = int(moved.argmax())
        if moved[at] > worst[0]:
            worst = float(moved[at]), column, at
    distance, found, at = worst
    if found is None:
        return
    cosine = cosines(held.features[found], features[found])[at]
    told = (
        f"{held.ids[at]!r} gives other features in {found.name}: moved by {distance:.2%} of their length (cosine "
        f"{cosine:.6f}), allowed in {held.precision} are {limit:.2%}"
    )
    raise NumericsMovedError(told, held.versions[found.name], versions)


def _distance(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Give how far each row moved, as a share of its length; infinity where a value is not finite."""
    length = np.linalg.norm(before.astype(np.float64), axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        moved = np.linalg.norm(now.astype(np.float64) - before, axis=1)
        share = np.where(moved == 0, 0.0, moved / length)
    return np.nan_to_num(share, nan=np.inf)
