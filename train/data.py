"""Features of a store beside their labels: the rows that models are trained and scored on.

Features and labels meet by image id, never by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from icecore.store import Column, Contract, FeatureSet, FeatureStore
from numpy.typing import NDArray

from .errors import DatasetError, first_few
from .labels import FolderLabels, LabelSource
from .rows import LabelledRows, label_rows
from .splits import SplitRule
from .tasks import TaskName

__all__ = [
    "Dataset",
    "Provenance",
    "check_finite",
    "covered_by_all",
    "in_order",
    "load_dataset",
    "pin",
    "read_dataset",
    "read_provenance",
    "read_rows",
]


@dataclass(frozen=True)
class Provenance:
    """Where features came from."""

    set_name: str
    """feature set"""
    generation: str
    """uuid of its generation"""
    version: int
    """version read"""
    contract: Contract
    """base contract of the generation"""
    source: dict[str, Any]
    """how they were extracted, as recorded: weights, image folder"""


@dataclass(frozen=True)
class Dataset:
    """Labelled rows with the features of one layer, or of several joined."""

    rows: LabelledRows
    """ids, classes, split"""
    X: NDArray[np.float32]
    """(n, D) float32, row i is image ``rows.ids[i]``"""
    columns: tuple[Column, ...]
    """columns side by side in ``X``"""
    provenance: Provenance
    """where the features came from"""

    def training(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Give features and targets of the training rows, copies."""
        return self.X[self.rows.train], self.rows.y_train

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """Give features and targets of the held-out rows, copies."""
        return self.X[~self.rows.train], self.rows.y_held_out

    def repeated_held_out(self) -> tuple[str, ...]:
        """Give held-out images whose features equal those of a training image: copies that flatter the score.

        Rows are held against each other by 16-byte digests: memory is some hundred bytes a training row.
        """
        seen = {_digest(self.X[i]) for i in np.flatnonzero(self.rows.train)}
        held_out = zip(self.rows.held_out_ids, np.flatnonzero(~self.rows.train), strict=True)
        return tuple(image for image, i in held_out if _digest(self.X[i]) in seen)


def load_dataset(
    store: FeatureStore,
    set_name: str,
    layers: str | Sequence[str],
    *,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    version: int | str | None = None,
    task: TaskName = "classification",
) -> Dataset:
    """Read features and labels, matched by image id.

    Parameters
    ----------
    store
        An open store.
    set_name
        Feature set.
    layers
        A layer (``layer4``, ``layer4:gem``), or several to join side by side in this order.
    labels
        Where the labels are; folders named ``SPLIT/LABEL`` by default.
    split
        How to divide the rows; by default as the labels say, or by hash of the id where they say nothing.
    version
        Version or tag of the set; the latest by default.
    task
        What the labels are: classes, several that say yes or no, or a number.

    Returns
    -------
    Dataset
        Rows in the store's order. ``X`` is in memory once, plus the store's own copy while reading.

    Raises
    ------
    LabelError, SplitError
        When labels do not fit the images, or the rows cannot be divided.
    DatasetError
        When nothing can be learned from the training rows (a class has none, say), or a feature is not finite.
    icecore.store.StoreError
        When the set or a layer is not there.

    Examples
    --------
    >>> with FeatureStore.open("features") as store:  # doctest: +SKIP
    ...     data = load_dataset(store, "photos", ["layer3", "layer4"])
    """
    feature_set = pin(store, set_name, version)
    rows = read_rows(feature_set, _listed(layers), labels=labels, split=split, task=task)
    return read_dataset(feature_set, layers, rows)


def pin(store: FeatureStore, set_name: str, version: int | str | None = None) -> FeatureSet:
    """Give a feature set as of a version or tag, or as it is now, whatever is committed meanwhile."""
    feature_set = store[set_name]
    return feature_set.as_of(feature_set.version if version is None else version)


def read_rows(
    feature_set: FeatureSet,
    layers: Sequence[str],
    *,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    task: TaskName = "classification",
) -> LabelledRows:
    """Label and divide the images that every one of these layers covers.

    Images that are recorded as failed, for one of these layers or at all, are left out; ``match.failed`` names
    them.

    Raises
    ------
    icecore.store.IncompleteColumnError
        When a layer lacks images that have not failed: an extraction is not finished.
    LabelError, SplitError, DatasetError
        See ``load_dataset``.
    """
    covered, failed = covered_by_all(feature_set, layers)
    return label_rows(covered, failed=in_order(failed), labels=labels or FolderLabels(), split=split, task=task)


def covered_by_all(feature_set: FeatureSet, layers: Sequence[str]) -> tuple[list[str], set[str]]:
    """Give the images that every one of these layers covers, in the store's order, and those that failed.

    Raises
    ------
    icecore.store.IncompleteColumnError
        When a layer lacks images that have not failed.
    """
    stored = feature_set.ids()
    covered = _covered(feature_set, layers, stored)
    return covered, {*stored, *(failure.id for failure in feature_set.failures())}.difference(covered)


def in_order(ids: Iterable[str]) -> list[str]:
    """Sort ids as the store does, by their bytes."""
    return sorted(ids, key=lambda image: image.encode("utf-8", "surrogateescape"))


def read_dataset(feature_set: FeatureSet, layers: str | Sequence[str], rows: LabelledRows) -> Dataset:
    """Read the features of rows that ``read_rows`` gave for these layers, or for more, of the same pinned set.

    Raises
    ------
    DatasetError
        When a row has no features, or one of them is not finite.
    """
    selectors = _listed(layers)
    columns = tuple(feature_set.resolve(selector) for selector in selectors)
    ids, X = feature_set.matrix(selectors, missing="drop")  # what may be missing was settled with the rows
    features = _select(ids, X, rows, feature_set.name)
    check_finite(features, rows.ids, columns)
    return Dataset(rows=rows, X=features, columns=columns, provenance=read_provenance(feature_set))


def read_provenance(feature_set: FeatureSet) -> Provenance:
    """Give what is recorded of a feature set; pin it first to learn of one version."""
    return Provenance(
        set_name=feature_set.name,
        generation=feature_set.generation,
        version=feature_set.version,
        contract=feature_set.contract,
        source=dict(feature_set.source),
    )


def _listed(layers: str | Sequence[str]) -> list[str]:
    return [layers] if isinstance(layers, str) else list(layers)


def _covered(feature_set: FeatureSet, layers: Sequence[str], stored: Sequence[str]) -> list[str]:
    """Give the images with a value in every layer; asks only the layers that do not cover all."""
    coverage = feature_set.coverage()
    covered = set(stored)
    for layer in dict.fromkeys(layers):
        if coverage[feature_set.resolve(layer)] < len(stored):
            covered &= set(feature_set.array(layer).ids)
    return [image for image in stored if image in covered]


def _digest(row: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


def _select(ids: Sequence[str], X: NDArray[Any], rows: LabelledRows, set_name: str) -> NDArray[np.float32]:
    """Give the features of the labelled rows, in their order."""
    if tuple(ids) == rows.ids:
        return X
    place = {image: i for i, image in enumerate(ids)}
    absent = [image for image in rows.ids if image not in place]
    if absent:
        raise DatasetError(f"set {set_name!r}: no features of {first_few(absent)}; run `icecore extract` again")
    return X[[place[image] for image in rows.ids]]


def check_finite(X: NDArray[np.float32], ids: Sequence[str], columns: Sequence[Column]) -> None:
    """Refuse NaN and infinity, naming the first image and layer that hold one."""
    if np.isfinite(X.sum(dtype=np.float64)):
        return
    row, position = (int(i) for i in np.argwhere(~np.isfinite(X))[0])
    ends = np.cumsum([column.width for column in columns])
    column = columns[int(np.searchsorted(ends, position, side="right"))]
    raise DatasetError(
        f"image {ids[row]!r}, layer {column.name}: a feature is {X[row, position]}; "
        "run `icecore store verify`, then extract the image again"
    )
