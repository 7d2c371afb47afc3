"""What lower precisions do to features, and how fast they are: each against fp32 on the same images."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from icecore.store import Column, Scan, SourceImage

from .backbone import Backbone
from .devices import choose_device, choose_devices, default_batch_size
from .errors import DeviceError, ImageError
from .images import MAX_PIXELS
from .loaders import Loader, open_loader
from .reading import read_image_file
from .trunk import Compilation, Trunk
from .views import crops_for

__all__ = ["Agreement", "Comparison", "Computed", "compare_precisions", "cosines"]

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Agreement:
    """How much alike a column's features are to those of fp32."""

    worst: float
    """lowest cosine of an image; 0 where a value is not finite"""
    median: float
    """median cosine of the images"""
    worst_image: str
    """id of the image with the lowest one"""


@dataclass(frozen=True)
class Computed:
    """What one precision gave."""

    precision: str
    """``fp32``, ``bf16`` or ``fp16``"""
    engine: str
    """``eager``, ``compiled`` or ``graph``"""
    images_per_second: float
    """images forwarded a second, full batches after one that does not count; no decoding"""
    features: Mapping[Column, np.ndarray]
    """float32 (n, D) of each column, not rounded to what is stored, rows in the order of the images"""
    agreement: Mapping[Column, Agreement]
    """against fp32; of fp32 itself all ones"""

    @property
    def worst(self) -> float:
        """The lowest cosine of all columns."""
        return min(found.worst for found in self.agreement.values())


@dataclass(frozen=True)
class Comparison:
    """The precisions that a device has, on the same images."""

    ids: tuple[str, ...]
    """the images, in the order of the source"""
    unreadable: int
    """images that were drawn and cannot be used"""
    device: str
    """where"""
    batch_size: int
    """images of a pass"""
    computed: tuple[Computed, ...]
    """``fp32`` first"""


def compare_precisions(
    backbone: Backbone,
    columns: Sequence[Column],
    scan: Scan,
    *,
    images: int = 64,
    seed: int = 0,
    device: str | Sequence[str] = "auto",
    batch_size: int | None = None,
    compilation: Compilation = "auto",
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compute every column in fp32 and in each lower precision that the device has.

    Parameters
    ----------
    backbone, columns
        What to compute.
    scan
        Source to draw from; it is walked once.
    images
        Number drawn, 1 or more; all where the source has fewer. Their pixels are held in memory: 147 KiB each at 224.
    seed
        Of the draw.
    device, batch_size, compilation, max_pixels
        As ``extract_images`` takes them.
    progress
        Called after each precision with the passes done and the passes to do.

    Raises
    ------
    DeviceError
        When the device is not there, or cannot decode as asked.
    ImageError
        When none of the images drawn can be used.
    """
    where = choose_devices(device)[0]
    crops = crops_for(backbone.views, columns)
    with closing(open_loader(backbone.preprocess, device=where, max_pixels=max_pixels, crops=crops)) as loader:
        drawn = _draw(scan, images, seed)
        ids, pixels = _load(drawn, loader)
    size = min(default_batch_size(where) if batch_size is None else batch_size, len(ids))
    able = [precision for precision in PRECISIONS if _has(where, precision)]
    passes = -(-len(ids) // size)
    computed: list[Computed] = []
    for precision in able:
        trunk = Trunk(
            backbone,
            columns,
            device=str(where),
            precision=precision,
            batch_size=size,
            compilation=compilation,
            images=len(ids),
        )
        with closing(trunk):
            features, rate = _forward(trunk, pixels)
        exact = computed[0].features if computed else features
        agreement = {column: _agreement(exact[column], rows, ids) for column, rows in features.items()}
        computed.append(Computed(precision, trunk.engine, rate, features, agreement))
        progress(len(computed) * passes, len(able) * passes)
    return Comparison(tuple(ids), len(drawn) - len(ids), str(where), size, tuple(computed))


def cosines(exact: np.ndarray, rough: np.ndarray) -> np.ndarray:
    """Give the cosine of each row to that of the other array; 1 for equal rows, 0 where a value is not finite.

    Parameters
    ----------
    exact, rough
        (n, D), any float dtype.

    Returns
    -------
    numpy.ndarray
        float64 (n,).
    """
    a, b = exact.astype(np.float64), rough.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.where((a == b).all(1), 1.0, np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))


def _draw(scan: Scan, images: int, seed: int) -> list[SourceImage]:
    """Draw images without holding all of the source, in its order: every one with the same chance."""
    if images < 1:
        raise ValueError(f"expected 1 or more images, found {images}")
    chance = random.Random(seed)  # noqa: S311 - a sample, no secret
    kept: list[tuple[int, SourceImage]] = []
    for number, image in enumerate(scan.images()):
        if len(kept) < images:
            kept.append((number, image))
        elif (place := chance.randrange(number + 1)) < images:
            kept[place] = number, image
    return [image for _, image in sorted(kept, key=lambda drawn: drawn[0])]


def _load(drawn: Sequence[SourceImage], loader: Loader) -> tuple[list[str], np.ndarray]:
    ids, pixels = [], []
    trouble: ImageError | None = None
    for image in drawn:
        try:
            _, data, _ = read_image_file(image)
            pixels.append(loader.load(data))
        except ImageError as exc:
            trouble = exc  # the run records what is wrong with each
            continue
        ids.append(image.id)
    if not ids:
        reason = (
            f"none of {len(drawn)} images can be used, the last one: {trouble}" if trouble else "there are no images"
        )
        raise ImageError("decode", reason)
    return ids, np.stack(pixels)


def _has(device: torch.device, precision: str) -> bool:
    try:
        choose_device(str(device), precision=precision)
    except DeviceError:
        return False
    return True


def _forward(trunk: Trunk, pixels: np.ndarray) -> tuple[dict[Column, np.ndarray], float]:
    trunk.forward(pixels[: trunk.batch_size])
    began = time.perf_counter()
    parts: list[dict[Column, np.ndarray]] = []
    waiting: deque[Callable[[], dict[Column, np.ndarray]]] = deque()
    for start in range(0, len(pixels), trunk.batch_size):
        if len(waiting) >= trunk.at_once:
            parts.append(waiting.popleft()())
        waiting.append(trunk.start(pixels[start : start + trunk.batch_size]))
    parts += [wait() for wait in waiting]
    rate = len(parts) * trunk.batch_size / (time.perf_counter() - began)  # a batch that is padded costs a full one
    return {column: np.concatenate([part[column] for part in parts]) for column in trunk.columns}, rate


def _agreement(exact: np.ndarray, rough: np.ndarray, ids: Sequence[str]) -> Agreement:
    found = cosines(exact, rough)
    at = int(found.argmin())
    return Agreement(float(found[at]), float(np.median(found)), ids[at])
