"""The images of a tuning: read once to know them, then again and again as random views.

A view is decided by the seed, its number and its image alone, and a batch by the seed and the epoch: so a run that
was killed goes on with the same batches, whatever the number of processes that read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from icecore.store import SourceImage
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from .augmentation import augmentation, random_view
from .decoding import DECODERS, MAX_PIXELS
from .errors import ImageError, TuningError
from .images import load_image
from .preprocess import Preprocess
from .reading import read_image_file
from .tuning_options import Augment

__all__ = [
    "PLAIN",
    "Batch",
    "Images",
    "TrainingImage",
    "Views",
    "cut_validation",
    "hash_files",
    "read_plain",
    "seed_of",
]

PLAIN = -1
"""In place of a view's number: the image as extraction sees it."""


@dataclass(frozen=True)
class TrainingImage:
    """An image with what it is."""

    id: str
    """its id in the set"""
    path: Path
    """where to read it"""
    label: int
    """its class, from 0"""
    group: str = ""
    """images of one group are never on both sides of a division; empty: it stands alone"""


class Batch(NamedTuple):
    """Some views, in the order asked for; those that could not be read are left out."""

    pixels: torch.Tensor
    """uint8 (B, 3, S, S)"""
    rows: NDArray[np.int64]
    """(B,) positions of their images"""
    failed: tuple[tuple[int, str], ...]
    """positions and reasons of those that could not be read, or whose file has changed"""


class Images(Dataset[Any]):
    """Views of training images, by position and number of the view; goes to other processes."""

    def __init__(
        self,
        images: Sequence[TrainingImage],
        preprocess: Preprocess,
        *,
        augment: Augment,
        seed: int,
        digests: Sequence[bytes] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.images = tuple(images)
        self.preprocess = by_pillow(preprocess)
        self.augment: Augment = augment
        self.seed, self.digests, self.max_pixels = seed, tuple(digests), max_pixels
        self._transform = augmentation(augment, preprocess)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, np.ndarray | str]:
        """Give position and pixels, or the reason why there are none."""
        position, view = key
        try:
            return position, self.view(position, view)
        except ImageError as exc:
            return position, f"{exc.reason} ({exc.kind})"

    def view(self, position: int, view: int) -> np.ndarray:
        """Give one view as uint8 (3, S, S).

        Raises
        ------
        ImageError
            When the file cannot be read, or is not the one that was read first.
        """
        data, digest = self.read(position)
        if self.digests and self.digests[position] != digest:
            raise ImageError("transient", "the file changed while the network was being trained")
        if view == PLAIN or self._transform is None:
            return load_image(data, self.preprocess, max_pixels=self.max_pixels)
        decode = DECODERS[self.preprocess.decode]
        decoded = decode(data, side=self.preprocess.resize, max_pixels=self.max_pixels)
        left, top, right, bottom = decoded.box
        image = decoded.image.crop((int(left), int(top), int(right), int(bottom)))
        return random_view(image, self._transform, seed_of(self.seed, view, self.images[position].id))

    def read(self, position: int) -> tuple[bytes, bytes]:
        """Give the file's contents, and their sha256.

        Raises
        ------
        ImageError
            When it cannot be read.
        """
        image = self.images[position]
        found = read_image_file(SourceImage(image.id, image.path, 0, 0, 0))
        return found.data, found.digest


class Views:
    """Reads batches of views, by other processes where there are any. Close it."""

    def __init__(self, images: Images, *, workers: int) -> None:
        self._images, self._workers = images, workers
        self._sampler = _Sampler()
        self._loader: Any = DataLoader(
            images,
            batch_sampler=self._sampler,
            num_workers=workers,
            collate_fn=_collated,
            persistent_workers=workers > 0,
            prefetch_factor=2 if workers else None,
            multiprocessing_context="spawn" if workers else None,
        )

    def batches(self, keys: Sequence[Sequence[tuple[int, int]]]) -> Iterator[Batch]:
        """Read these batches of positions and views, in their order."""
        self._sampler.batches = keys
        state = torch.get_rng_state()  # a loader draws a number each time; nothing here depends on it
        found = iter(self._loader)
        torch.set_rng_state(state)
        yield from found

    def close(self) -> None:
        """End the processes."""
        self._loader = None


def hash_files(images: Images, *, threads: int) -> list[bytes | str]:
    """Give the sha256 of each file, or the reason why it cannot be read."""

    def one(position: int) -> bytes | str:
        try:
            return images.read(position)[1]
        except ImageError as exc:
            return f"{exc.reason} ({exc.kind})"

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(len(images))))


def read_plain(images: Images, rows: Sequence[int], *, threads: int) -> Iterator[tuple[int, np.ndarray | str]]:
    """Read some images as extraction sees them: position, and pixels or the reason why there are none.

    In their order, by threads; a few images are in memory at a time.
    """
    with ThreadPoolExecutor(threads) as pool:
        at_once = 4 * threads
        for start in range(0, len(rows), at_once):
            yield from pool.map(images.__getitem__, [(row, PLAIN) for row in rows[start : start + at_once]])


def by_pillow(preprocess: Preprocess) -> Preprocess:
    """Give the preprocessing by which training reads: what a device decodes, Pillow decodes here."""
    return preprocess if preprocess.decode in DECODERS else replace(preprocess, decode="exact")


def seed_of(*parts: object) -> int:
    """Give a seed below 2**63 that follows from these parts alone."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def cut_validation(images: Sequence[TrainingImage], share: float, seed: int) -> NDArray[np.bool_]:
    """Choose the validation part of training images: (n,) true for its images.

    Of each class the given share, by a hash of the ids; or that share of the groups, where there are any.

    Raises
    ------
    TuningError
        When one of the two parts would be empty.
    """
    grouped = any(image.group for image in images)
    places = [seed_of("validation", seed, image.group or image.id) for image in images]
    chosen = np.zeros(len(images), dtype=np.bool_)
    if grouped:
        chosen[:] = [place < share * 2**63 for place in places]
    else:
        labels = np.array([image.label for image in images])
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            order = sorted(rows.tolist(), key=lambda row: places[row])
            chosen[order[: round(share * len(rows))]] = True
    if chosen.all() or not chosen.any():
        what = "groups" if grouped else "images"
        raise TuningError(
            f"validation: a share of {share:g} leaves {int(chosen.sum())} of {len(images)} images for validation; "
            f"take another share, or add {what}"
        )
    return chosen


class _Sampler:
    """Gives the batches that are set."""

    def __init__(self) -> None:
        self.batches: Sequence[Sequence[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return map(list, self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _collated(items: Sequence[tuple[int, np.ndarray | str]]) -> Batch:
    good = [(row, pixels) for row, pixels in items if not isinstance(pixels, str)]
    failed = tuple((row, why) for row, why in items if isinstance(why, str))
    shape = good[0][1].shape if good else (3, 1, 1)
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in good])) if good else torch.zeros(0, *shape)
    return Batch(pixels, np.array([row for row, _ in good], dtype=np.int64), failed)
