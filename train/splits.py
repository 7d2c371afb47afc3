"""Which rows train and which are held out.

A split is given by name, or follows from a hash of the id (or group), so that no image ever changes sides as
the data grows. Nothing here looks at labels or features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import SplitError, first_few

__all__ = [
    "HELD_OUT_NAMES",
    "TRAIN_NAMES",
    "GivenSplit",
    "HashSplit",
    "Split",
    "SplitRule",
    "hash_share",
    "split_digest",
    "split_rows",
]

TRAIN_NAMES = ("train", "training")
"""Split names of training rows, compared in lower case."""
HELD_OUT_NAMES = ("val", "valid", "validation", "test")
"""Split names of held-out rows, compared in lower case; a data set with several has all of them held out."""


@dataclass(frozen=True)
class GivenSplit:
    """The labels say which side each image is on."""


@dataclass(frozen=True)
class HashSplit:
    """A hash of the id, or of the group where there is one, says which side an image is on."""

    share: float = 0.2
    """part of the ids (or groups) to hold out, above 0 and below 1"""


SplitRule = GivenSplit | HashSplit


@dataclass(frozen=True)
class Split:
    """Rows divided into training and held-out ones."""

    train: NDArray[np.bool_]
    """true for a training row; in the order of the ids"""
    description: str
    """the rule, in words"""
    digest: str
    """sha256, in hex, over the sorted ids, each with its side"""


def split_rows(
    rule: SplitRule,
    ids: Sequence[str],
    *,
    names: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
) -> Split:
    """Divide rows into training and held-out ones.

    Parameters
    ----------
    rule
        ``GivenSplit()`` or ``HashSplit(share)``.
    ids
        Image ids of the rows.
    names
        Split name of each id; needed by ``GivenSplit``.
    groups
        Group of an id, for those that have one. A group is never on both sides.

    Raises
    ------
    SplitError
        When a side is empty, a name is unknown or missing, the share is out of range, or a given split puts a
        group on both sides.
    """
    groups = groups or {}
    if isinstance(rule, HashSplit):
        train = _by_hash(rule, ids, groups)
        what = "group, else id" if groups else "id"
        description = f"hash of the {what}, {rule.share:g} held out"
    else:
        train, description = _by_name(ids, names or {})
    _check_sides(train, description)
    _check_groups(train, ids, groups, description)
    return Split(train=train, description=description, digest=split_digest(ids, train))


def hash_share(key: str) -> float:
    """Place a key in [0, 1), evenly and for ever: the first 53 bits of its sha256."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return float(int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def _by_hash(rule: HashSplit, ids: Sequence[str], groups: Mapping[str, str]) -> NDArray[np.bool_]:
    if not 0 < rule.share < 1:
        raise SplitError(f"split: the held-out share must lie between 0 and 1, found {rule.share}")
    return np.array([hash_share(groups.get(image, image)) >= rule.share for image in ids], dtype=bool)


def _by_name(ids: Sequence[str], names: Mapping[str, str]) -> tuple[NDArray[np.bool_], str]:
    if not names:
        raise SplitError(
            "split: the labels name no split; add a split column or a folder level, or split by hash "
            '(split.by = "hash")'
        )
    unnamed = [image for image in ids if image not in names]
    if unnamed:
        raise SplitError(f"split: no split is given for {first_few(unnamed)}")
    found = sorted({names[image] for image in ids})
    odd = [name for name in found if name.lower() not in (*TRAIN_NAMES, *HELD_OUT_NAMES)]
    if odd:
        raise SplitError(
            f"split: unknown names {first_few(odd)}; training rows are "
            f"{' or '.join(TRAIN_NAMES)}, held-out rows {', '.join(HELD_OUT_NAMES)}"
        )
    train = np.array([names[image].lower() in TRAIN_NAMES for image in ids], dtype=bool)
    held = [name for name in found if name.lower() in HELD_OUT_NAMES]
    return train, f"given, {' and '.join(held) or 'nothing'} held out"


def _check_sides(train: NDArray[np.bool_], description: str) -> None:
    for side, count in (("training", int(train.sum())), ("held-out", int((~train).sum()))):
        if not count:
            raise SplitError(f"split ({description}): none of the {len(train):,} rows is a {side} row")


def _check_groups(train: NDArray[np.bool_], ids: Sequence[str], groups: Mapping[str, str], description: str) -> None:
    sides: dict[str, set[bool]] = {}
    for image, side in zip(ids, train.tolist(), strict=True):
        if image in groups:
            sides.setdefault(groups[image], set()).add(side)
    torn = sorted(group for group, both in sides.items() if len(both) > 1)
    if torn:
        raise SplitError(
            f"split ({description}): {len(torn):,} groups have rows on both sides, so the score would leak: "
            f"{first_few(torn)}; put each group on one side, or split by hash"
        )


def split_digest(ids: Sequence[str], train: NDArray[np.bool_]) -> str:
    """Give sha256, in hex, over the sorted ids, each with its side."""
    digest = hashlib.sha256()
    for image, side in sorted(zip(ids, train.tolist(), strict=True)):
        digest.update(image.encode("utf-8", "surrogateescape") + (b"\0train\n" if side else b"\0held-out\n"))
    return digest.hexdigest()
