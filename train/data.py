"""Features of a store beside their labels: the rows that models are trained and scored on.

Features and labels meet by image id, never by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from icecore.store import Column, Contract, FeatureSet, FeatureStore
from numpy.typing import NDArray

from .errors import DatasetError, first_few
from .labels import FolderLabels, LabelSource, Match, match_labels
from .splits import GivenSplit, HashSplit, Split, SplitRule, split_rows

__all__ = ["Dataset", "LabelledRows", "Provenance", "label_rows", "load_dataset", "read_provenance"]


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
class LabelledRows:
    """The images that train and score, without features: shared by all layers."""

    ids: tuple[str, ...]
    """n image ids, in the store's order"""
    y: NDArray[np.int64]
    """(n,), classes as positions in ``classes``"""
    classes: tuple[str, ...]
    """class names, sorted"""
    train: NDArray[np.bool_]
    """(n,), true for training rows"""
    groups: tuple[str, ...] | None
    """n group names where groups are given (the id itself for an image without one), else None"""
    split: Split
    """how the rows were divided"""
    match: Match
    """what was left out, and why"""
    label_source: str
    """where the labels came from"""

    @property
    def train_groups(self) -> tuple[str, ...] | None:
        """Groups of the training rows, where groups are given."""
        if self.groups is None:
            return None
        return tuple(group for group, train in zip(self.groups, self.train.tolist(), strict=True) if train)

    @property
    def train_digest(self) -> str:
        """sha256, in hex, over the sorted ids of the training rows."""
        ids = sorted(image for image, train in zip(self.ids, self.train.tolist(), strict=True) if train)
        text = "\n".join(ids).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()


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

    def training(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Give features and classes of the training rows, copies."""
        return self.X[self.rows.train], self.rows.y[self.rows.train]

    def held_out(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Give features and classes of the held-out rows, copies."""
        return self.X[~self.rows.train], self.rows.y[~self.rows.train]

    @property
    def held_out_ids(self) -> tuple[str, ...]:
        """Ids of the held-out rows, in their order."""
        return tuple(image for image, train in zip(self.rows.ids, self.rows.train.tolist(), strict=True) if not train)

    def repeated_held_out(self) -> tuple[str, ...]:
        """Give held-out images whose features equal those of a training image: copies that flatter the score."""
        seen = {row.tobytes() for row in self.training()[0]}
        rows = zip(self.held_out_ids, self.held_out()[0], strict=True)
        return tuple(image for image, row in rows if row.tobytes() in seen)


def load_dataset(
    store: FeatureStore,
    set_name: str,
    layers: str | Sequence[str],
    *,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    rows: LabelledRows | None = None,
    provenance: Provenance | None = None,
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
    rows
        Rows labelled and divided before, to use instead of ``labels`` and ``split``.
    provenance
        What to read, from ``read_provenance``, so that several calls read one version; the latest by default.

    Returns
    -------
    Dataset
        Rows in the store's order. ``X`` is in memory once, plus the store's own copy while reading.

    Raises
    ------
    LabelError, SplitError
        When labels do not fit the images, or the rows cannot be divided.
    DatasetError
        When fewer than two classes are left, a class has no training row, or a feature is not finite.
    icecore.store.StoreError
        When the set or a layer is not there.

    Examples
    --------
    >>> with FeatureStore.open("features") as store:  # doctest: +SKIP
    ...     data = load_dataset(store, "photos", ["layer3", "layer4"])
    """
    feature_set = store[set_name]
    provenance = provenance or read_provenance(feature_set)
    selectors = [layers] if isinstance(layers, str) else list(layers)
    columns = tuple(feature_set.resolve(selector, version=provenance.version) for selector in selectors)
    ids, X = feature_set.matrix(selectors, version=provenance.version)
    if rows is None:
        failed = [failure.id for failure in feature_set.failures()]
        rows = label_rows(ids, failed=failed, labels=labels or FolderLabels(), split=split)
    if feature_set.generation != provenance.generation:
        raise DatasetError(f"set {set_name!r}: a new generation became current while it was read; run again")
    features = _select(ids, X, rows, set_name)
    _check_finite(features, rows.ids, columns)
    return Dataset(rows=rows, X=features, columns=columns, provenance=provenance)


def read_provenance(feature_set: FeatureSet) -> Provenance:
    """Give what is recorded of a feature set now: pass it on to read just this version."""
    return Provenance(
        set_name=feature_set.name,
        generation=feature_set.generation,
        version=feature_set.version,
        contract=feature_set.contract,
        source=dict(feature_set.source),
    )


def label_rows(
    ids: Sequence[str],
    *,
    labels: LabelSource,
    failed: Sequence[str] = (),
    split: SplitRule | None = None,
) -> LabelledRows:
    """Label images and divide them into training and held-out rows.

    Parameters
    ----------
    ids
        Images that have features.
    labels
        Where the labels are.
    failed
        Images that could not be extracted: their labels are set aside, not refused.
    split
        How to divide the rows; by default as the labels say, or by hash of the id where they say nothing.

    Raises
    ------
    LabelError, SplitError, DatasetError
        See ``load_dataset``.
    """
    found = labels.read(ids)
    policies = {} if isinstance(labels, FolderLabels) else {"unknown": labels.unknown, "missing": labels.missing}
    match = match_labels(found, ids, failed=failed, **policies)
    if isinstance(labels, FolderLabels):
        match = replace(match, failed=tuple(failed))  # every image in the folders was meant to be there
    rule = split or (GivenSplit() if found.split else HashSplit())
    divided = split_rows(rule, match.ids, names=found.split, groups=found.group)
    classes = tuple(sorted({found.label[image] for image in match.ids}))
    position = {label: i for i, label in enumerate(classes)}
    y = np.array([position[found.label[image]] for image in match.ids], dtype=np.int64)
    _check_classes(y, divided.train, classes, found.source)
    return LabelledRows(
        ids=match.ids,
        y=y,
        classes=classes,
        train=divided.train,
        groups=tuple(found.group.get(image, image) for image in match.ids) if found.group else None,
        split=divided,
        match=match,
        label_source=found.source,
    )


def _select(ids: Sequence[str], X: NDArray[Any], rows: LabelledRows, set_name: str) -> NDArray[np.float32]:
    """Give the features of the labelled rows, in their order."""
    if tuple(ids) == rows.ids:
        return X
    place = {image: i for i, image in enumerate(ids)}
    absent = [image for image in rows.ids if image not in place]
    if absent:
        raise DatasetError(f"set {set_name!r}: no features of {first_few(absent)}; run `icecore extract` again")
    return X[[place[image] for image in rows.ids]]


def _check_finite(X: NDArray[np.float32], ids: Sequence[str], columns: Sequence[Column]) -> None:
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


def _check_classes(y: NDArray[np.int64], train: NDArray[np.bool_], classes: Sequence[str], source: str) -> None:
    if len(classes) < 2:
        raise DatasetError(f"{source}: all images have the label {classes[0]!r}; a classifier needs two or more")
    untrained = [label for i, label in enumerate(classes) if not (train & (y == i)).any()]
    if untrained:
        raise DatasetError(
            f"{source}: class {first_few(untrained)} has held-out rows but no training row; "
            "add some, move some to the training side, or remove the class"
        )
