"""Labels, which live outside the features: folder names, or a CSV file.

This reads labels and matches them to image ids; dividing the rows into training and held-out ones is
``splits``. Relabelling costs nothing, because no feature depends on a label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from .errors import LabelError, first_few
from .labels_csv import read_table

__all__ = [
    "CsvLabels",
    "FolderLabels",
    "LabelSource",
    "Labels",
    "Match",
    "labels_from_csv",
    "labels_from_folders",
    "match_labels",
]

FolderLayout = Literal["split/label", "label"]
Policy = Literal["error", "skip"]


@dataclass(frozen=True)
class Labels:
    """What is known of each image, by id."""

    label: Mapping[str, str]
    """class name of each id; of a file with several columns of labels, the first one's text"""
    split: Mapping[str, str]
    """name of the split of each id; empty when none is given"""
    group: Mapping[str, str]
    """group (patient, product, video) of an id, for those that have one"""
    source: str
    """where this was read, for messages and the card"""
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """text of each id by the name of its column; empty where labels come from folders"""
    line: Mapping[str, int] = field(default_factory=dict)
    """line of the file that each id's row begins on"""


@dataclass(frozen=True)
class FolderLabels:
    """Labels are the names of the folders that the images stand in."""

    layout: FolderLayout = "split/label"
    """``split/label``: first folder the split, last one the label; ``label``: last folder the label"""

    def read(self, ids: Sequence[str]) -> Labels:
        """Give the labels of these ids; see ``labels_from_folders``."""
        return labels_from_folders(ids, layout=self.layout)


@dataclass(frozen=True)
class CsvLabels:
    """Labels are rows of a CSV file with the header ``path,label[,split][,group]``, or ``id`` in place of ``path``.

    Several columns, or one of another name, may stand for ``label``.
    """

    path: Path
    """the file; its ``path`` column is relative to the image folder, its ``id`` column holds ids as a manifest does"""
    unknown: Policy = "error"
    """what to do with rows whose image is not in the store"""
    missing: Policy = "error"
    """what to do with images of the store that have no row"""
    columns: tuple[str, ...] = ("label",)
    """columns that hold labels: one of classes, one of numbers, or several that say yes or no"""

    def read(self, ids: Sequence[str]) -> Labels:
        """Give the labels of the file; see ``labels_from_csv``."""
        return labels_from_csv(self.path, columns=self.columns)


LabelSource = FolderLabels | CsvLabels


@dataclass(frozen=True)
class Match:
    """Labels beside the images of a store."""

    ids: tuple[str, ...]
    """labelled images with features, in the store's order"""
    unknown: tuple[str, ...]
    """labelled ids that the store does not have (skipped on request)"""
    missing: tuple[str, ...]
    """images of the store without a label (skipped on request)"""
    failed: tuple[str, ...]
    """labelled images that could not be extracted: no features, so no row"""


def labels_from_folders(ids: Sequence[str], *, layout: FolderLayout = "split/label") -> Labels:
    """Read labels from the folders in image ids.

    Parameters
    ----------
    ids
        Image ids, parts joined by ``/``.
    layout
        ``split/label`` takes ``train/ants/x.jpg`` as split ``train``, label ``ants`` (folders between them
        are passed over); ``label`` takes the folder that holds the image as its label, and gives no split.

    Raises
    ------
    LabelError
        When some id does not have the folders that the layout needs.

    Examples
    --------
    >>> labels_from_folders(["train/ants/x.jpg"]).label
    {'train/ants/x.jpg': 'ants'}
    """
    needed = 3 if layout == "split/label" else 2
    parts = {image: PurePosixPath(image).parts for image in ids}
    shallow = [image for image, split in parts.items() if len(split) < needed]
    if shallow:
        shape = "SPLIT/LABEL/IMAGE" if layout == "split/label" else "LABEL/IMAGE"
        raise LabelError(
            f"labels from folders: {len(shallow):,} of {len(parts):,} images are not placed as {shape}: "
            f"{first_few(shallow)}; move them, choose another layout, or give a CSV of labels"
        )
    return Labels(
        label={image: split[-2] for image, split in parts.items()},
        split={image: split[0] for image, split in parts.items()} if layout == "split/label" else {},
        group={},
        source=f"folders ({layout})",
    )


def labels_from_csv(path: Path | str, *, columns: Sequence[str] = ("label",)) -> Labels:
    """Read labels from a CSV file with the header ``path,label[,split][,group]``.

    A column ``id`` names the images where there is one, and ``path`` is not needed then: a manifest with labels is
    read by extraction and by training alike. The file is UTF-8 (a byte order mark is allowed); other bytes become
    surrogates, as in image ids, so a file name that is not UTF-8 still finds its image. Other columns are ignored.
    An empty group means that the image stands alone. One pass over the file; all of it is held in memory.

    Parameters
    ----------
    path
        The file.
    columns
        Columns that hold labels, in place of ``label``. Every row has a text in each.

    Raises
    ------
    LabelError
        When the file is missing, lacks a column, or has rows that are malformed, empty or given twice: the
        message names the lines.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            table = read_table(path, file, columns)
    except OSError as exc:
        raise LabelError(f"{path}: cannot read the labels ({exc.strerror or exc})") from exc
    found = {name: table.column(name) for name in columns}
    return Labels(
        label=found[columns[0]],
        split=table.column("split"),
        group=table.column("group"),
        source=str(path),
        columns=found,
        line=table.line,
    )


def match_labels(
    labels: Labels,
    ids: Sequence[str],
    *,
    failed: Collection[str] = (),
    unknown: Policy = "error",
    missing: Policy = "error",
) -> Match:
    """Match labels to the images of a store, by id and never by position.

    Parameters
    ----------
    labels
        What is known of the images.
    ids
        Images that have features.
    failed
        Images that the store knows but could not extract.
    unknown, missing
        ``error`` or ``skip``, for labels without an image and images without a label.

    Raises
    ------
    LabelError
        When labels and images differ and that is not to be skipped, or nothing is left.
    """
    stored, failures = set(ids), set(failed)
    odd = [image for image in labels.label if image not in stored and image not in failures]
    bare = [image for image in ids if image not in labels.label]
    if odd and unknown == "error":
        raise LabelError(
            f"{labels.source}: {len(odd):,} labelled images are not in the store: "
            f"{first_few(odd)}; "
            f"paths must be relative to the image folder, and a column 'id' must hold the store's ids; "
            f'extract them, or set labels.unknown = "skip"'
        )
    if bare and missing == "error":
        raise LabelError(
            f"{labels.source}: {len(bare):,} images of the store have no label: "
            f"{first_few(bare)}; "
            f'label them, or set labels.missing = "skip"'
        )
    kept = tuple(image for image in ids if image in labels.label)
    if not kept:
        raise LabelError(f"{labels.source}: none of the {len(ids):,} images of the store has a label")
    lost = tuple(image for image in labels.label if image in failures and image not in stored)
    return Match(ids=kept, unknown=tuple(odd), missing=tuple(bare), failed=lost)
