"""``rows.csv.gz`` of a bundle: which images trained it, which were held out, and the label that each had then.

Ids are hashed: 32 hex digits of their sha256. A later comparison asks it so that no training row of the champion is
ever a test row, and which held-out labels have changed since.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .rows import LabelledRows
from .tasks import Targets

__all__ = ["ROWS", "RowList", "hash_id", "label_texts", "pack_rows", "read_row_list", "targets_of"]

ROWS = "rows.csv.gz"
"""Name of the file; bundles of earlier releases lack it."""
_HEADER = ["id_sha256", "side", "label"]
_SIDES = {True: "train", False: "held-out"}
_BYTES = {"encoding": "utf-8", "errors": "surrogateescape"}


@dataclass(frozen=True)
class RowList:
    """The rows of a bundle, by hashed id."""

    training: frozenset[str]
    """those that trained it"""
    held_out: Mapping[str, str]
    """those that were held out, with their labels then, as ``label_texts`` writes them"""


def hash_id(image: str) -> str:
    """Give what stands for an image id: 32 hex digits of its sha256."""
    return hashlib.sha256(image.encode(**_BYTES)).hexdigest()[:32]


def label_texts(rows: LabelledRows) -> list[str]:
    """Give the label of each row as text: the class, 0 or 1 for each of several labels, or the number."""
    if rows.y.ndim == 2:
        return ["".join(map(str, row)) for row in rows.y.tolist()]
    if rows.task.has_probabilities:
        return [rows.classes[i] for i in rows.y.tolist()]
    return [repr(value) for value in rows.y.tolist()]


def targets_of(texts: Sequence[str], rows: LabelledRows, names: Sequence[str]) -> Targets:
    """Turn labels that ``label_texts`` wrote for rows of this task back into targets; ``names`` has every class."""
    if rows.y.ndim == 2:
        y: Any = np.array([[int(digit) for digit in text] for text in texts], dtype=np.int64)
    elif rows.task.has_probabilities:
        place = {name: i for i, name in enumerate(names)}
        y = np.array([place[text] for text in texts], dtype=np.int64)
    else:
        y = np.array([float(text) for text in texts])
    return Targets(y, tuple(names))


def pack_rows(rows: LabelledRows) -> bytes:
    """Give the file of these rows, in their order; equal rows give equal bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    sides = (_SIDES[side] for side in rows.train.tolist())
    writer.writerows(zip(map(hash_id, rows.ids), sides, label_texts(rows), strict=True))
    return gzip.compress(text.getvalue().encode(**_BYTES), mtime=0)


def read_row_list(bundle: Path) -> RowList | None:
    """Read the rows of a bundle whose files were checked; None for one of an earlier release.

    Raises
    ------
    BundleError
        When the file is not what this writes.
    """
    path = bundle / ROWS
    if not path.exists():
        return None
    training, held_out = set(), {}
    try:
        with gzip.open(path, "rt", newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file)
            if next(reader) != _HEADER:
                raise BundleError(f"{path}: its columns are not {', '.join(_HEADER)}")
            for image, side, label in reader:
                if side == _SIDES[True]:
                    training.add(image)
                else:
                    held_out[image] = label
    except (OSError, EOFError, ValueError, StopIteration, csv.Error) as exc:
        if isinstance(exc, BundleError):
            raise
        raise BundleError(f"{path}: cannot be read ({exc or type(exc).__name__}); copy the bundle again") from exc
    return RowList(frozenset(training), held_out)
