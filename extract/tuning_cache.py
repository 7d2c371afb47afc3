"""What the frozen part gives for each view, kept in files beside the job, so that it is computed once.

A view's files count once its mark is written, so a run that was killed in between computes that view again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from icecore.store.durable import make_folder, write_bytes
from torch import Tensor

__all__ = ["KeptView", "room_for"]

SHARE = 0.5
"""Part of the free disk space that kept views may take."""


class KeptView:
    """The crossing tensors of one view of all images.

    Parameters
    ----------
    folder
        Where its files are.
    name
        Names the view.
    rows
        Number of images, n.
    """

    def __init__(self, folder: Path, name: str, rows: int) -> None:
        self._folder, self._name, self._rows = folder, name, rows
        self._arrays: list[np.ndarray] = []
        self._mark = folder / f"{name}.kept.json"
        self.skipped: dict[int, str] = {}
        """positions of images that could not be read, with the reason: their values mean nothing"""

    def open(self) -> bool:
        """Open what an earlier run kept; False where that is not whole."""
        if not self._mark.is_file():
            return False
        mark = json.loads(self._mark.read_text("ascii"))
        self.skipped = {int(row): why for row, why in mark["skipped"].items()}
        paths = [self._path(number) for number in range(mark["arrays"])]
        self._arrays = [np.load(path, mmap_mode="r") for path in paths]
        return all(len(array) == self._rows for array in self._arrays)

    def write(self, rows: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Keep the tensors of some images; the first call makes the files."""
        values = [tensor.cpu().numpy() for tensor in tensors]
        if not self._arrays:
            make_folder(self._folder)
            self._arrays = [
                np.lib.format.open_memmap(
                    self._path(number), mode="w+", dtype=value.dtype, shape=(self._rows, *value.shape[1:])
                )
                for number, value in enumerate(values)
            ]
        for array, value in zip(self._arrays, values, strict=True):
            array[np.asarray(rows)] = value

    def finish(self, skipped: Mapping[int, str]) -> None:
        """Say that all images are there but those that could not be read, by position with the reason."""
        for array in self._arrays:
            array.flush()  # type: ignore[attr-defined]  # a memory map's
        self.skipped = dict(skipped)
        write_bytes(self._mark, json.dumps({"arrays": len(self._arrays), "skipped": self.skipped}).encode())

    def read(self, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """Give the tensors of some images, in this order."""
        return tuple(torch.from_numpy(np.ascontiguousarray(array[np.asarray(rows)])) for array in self._arrays)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number}.npy"


def room_for(folder: Path, wanted: int) -> bool:
    """Say whether there is room for so many bytes: at most half of what is free, and of what is kept there already."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    kept = sum(file.stat().st_size for file in folder.iterdir()) if folder.exists() else 0
    return wanted <= SHARE * (shutil.disk_usage(there).free + kept)
