"""The images that train and score: labelled, divided, and without features yet."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .labels import FolderLabels, LabelSource, Match, match_labels
from .splits import GivenSplit, HashSplit, Split, SplitRule, split_digest, split_rows
from .tasks import Task, TaskName, task_of

__all__ = ["LabelledRows", "label_rows"]


@dataclass(frozen=True)
class LabelledRows:
    """The images that train and score, without features: shared by all layers."""

    ids: tuple[str, ...]
    """n image ids, in the store's order"""
    y: NDArray[Any]
    """(n,) int64, classes as positions in ``classes``; of other tasks see ``tasks.Targets``"""
    classes: tuple[str, ...]
    """class names, sorted; the labels, or the one number's name, as columns of the file"""
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
    task: Task
    """what is to be learned"""

    @property
    def y_train(self) -> NDArray[Any]:
        """Targets of the training rows, a copy."""
        return self.y[self.train]

    @property
    def y_held_out(self) -> NDArray[Any]:
        """Targets of the held-out rows, a copy."""
        return self.y[~self.train]

    @property
    def train_ids(self) -> tuple[str, ...]:
        """Ids of the training rows, in their order."""
        return tuple(image for image, train in zip(self.ids, self.train.tolist(), strict=True) if train)

    @property
    def held_out_ids(self) -> tuple[str, ...]:
        """Ids of the held-out rows, in their order."""
        return tuple(image for image, train in zip(self.ids, self.train.tolist(), strict=True) if not train)

    @property
    def train_groups(self) -> tuple[str, ...] | None:
        """Groups of the training rows, where groups are given."""
        if self.groups is None:
            return None
        return tuple(group for group, train in zip(self.groups, self.train.tolist(), strict=True) if train)

    @property
    def held_out_groups(self) -> tuple[str, ...] | None:
        """Groups of the held-out rows, where groups are given."""
        if self.groups is None:
            return None
        return tuple(group for group, train in zip(self.groups, self.train.tolist(), strict=True) if not train)

    def within(self, train: NDArray[np.intp], held_out: NDArray[np.intp], description: str) -> LabelledRows:
        """Give some of these rows, by position, divided anew; the classes stay."""
        kept = np.sort(np.concatenate((train, held_out)))
        is_train = np.isin(kept, train)
        ids = tuple(self.ids[i] for i in kept.tolist())
        return replace(
            self,
            ids=ids,
            y=self.y[kept],
            train=is_train,
            groups=None if self.groups is None else tuple(self.groups[i] for i in kept.tolist()),
            split=Split(is_train, description, split_digest(ids, is_train)),
        )

    @property
    def train_digest(self) -> str:
        """sha256, in hex, over the sorted ids of the training rows."""
        ids = sorted(image for image, train in zip(self.ids, self.train.tolist(), strict=True) if train)
        text = "\n".join(ids).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()


def label_rows(
    ids: Sequence[str],
    *,
    labels: LabelSource,
    failed: Sequence[str] = (),
    split: SplitRule | None = None,
    task: TaskName = "classification",
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
    task
        What is to be learned.

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
    learned = task_of(task)
    targets = learned.targets(found, match.ids)
    learned.check(targets, divided.train, found.source)
    return LabelledRows(
        ids=match.ids,
        y=targets.y,
        classes=targets.names,
        train=divided.train,
        groups=tuple(found.group.get(image, image) for image in match.ids) if found.group else None,
        split=divided,
        match=match,
        label_source=found.source,
        task=learned,
    )
