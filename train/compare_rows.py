"""The rows of a comparison: the same images and labels on both sides, none of the held-out ones seen by a fine-tuning.

Images are held against each other by their ids and by the sha256 of their files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .compare_sides import Source
from .data import covered_by_all, in_order
from .errors import HeldOutDiffersError, HeldOutSeenError, first_few
from .labels import FolderLabels, LabelSource
from .rows import LabelledRows, label_rows
from .splits import SplitRule
from .tasks import Targets, TaskName

__all__ = ["compare_rows"]

Contents = Mapping[str, bytes]


def compare_rows(
    a: Source,
    b: Source,
    layers_a: Sequence[str],
    layers_b: Sequence[str],
    *,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    task: TaskName = "classification",
) -> tuple[LabelledRows, tuple[str, ...]]:
    """Label and divide the images of both sides, once.

    Parameters
    ----------
    a, b
        The sides.
    layers_a, layers_b
        Every layer that is compared, of each.
    labels, split, task
        As ``train_models`` takes them.

    Returns
    -------
    (LabelledRows, tuple of str)
        Rows that both sides have with the same file contents; and training images that were left out, because one
        side alone has them, or their files differ.

    Raises
    ------
    HeldOutDiffersError
        When a held-out image is on one side alone, or its file is another one there.
    HeldOutSeenError
        When a fine-tuning behind either side saw a held-out image, under its own name or another.
    LabelError, SplitError, DatasetError
        See ``load_dataset``.
    """
    (covered_a, failed_a), (covered_b, failed_b) = (
        covered_by_all(side.features, layers) for side, layers in ((a, layers_a), (b, layers_b))
    )
    everything = in_order({*covered_a, *covered_b})
    failed = in_order((failed_a | failed_b).difference(everything))
    rows = label_rows(everything, failed=failed, labels=labels or FolderLabels(), split=split, task=task)
    contents_a = _of(covered_a, a.features.contents())
    contents_b = _of(covered_b, b.features.contents())
    _refuse_other_rows(rows, (a.name, contents_a), (b.name, contents_b))
    for side, contents in ((a, contents_a), (b, contents_b)):
        _refuse_seen(rows, side, contents)
    return _shared(rows, contents_a, contents_b)


def _of(covered: Sequence[str], contents: Contents) -> Contents:
    return {image: contents[image] for image in covered}


def _refuse_other_rows(rows: LabelledRows, a: tuple[str, Contents], b: tuple[str, Contents]) -> None:
    """Refuse held-out images that are not on both sides, or not the same."""
    held_out = rows.held_out_ids
    told, ids = [], []
    for (name, has), (_, lacks) in ((a, b), (b, a)):
        alone = [image for image in held_out if image in has and image not in lacks]
        if alone:
            told.append(f"{len(alone):,} in {name} alone ({first_few(alone)})")
            ids += alone
    changed = [image for image in held_out if a[1].get(image) != b[1].get(image) and image in a[1] and image in b[1]]
    if changed:
        told.append(f"{len(changed):,} whose files differ ({first_few(changed)})")
        ids += changed
    if ids:
        raise HeldOutDiffersError(
            f"{a[0]} and {b[0]} do not hold out the same images: {'; '.join(told)}; run `icecore extract` for both "
            "sides on the same images, or name versions that go together",
            ids,
        )


def _refuse_seen(rows: LabelledRows, side: Source, contents: Contents) -> None:
    """Refuse held-out images that a fine-tuning saw, by their names or by their files."""
    for tuning in side.tunings:
        ids = frozenset(tuning.seen_ids)
        files = dict(zip(tuning.seen_contents, tuning.seen_ids, strict=True))
        by_name = [image for image in rows.held_out_ids if image in ids]
        hidden = [
            (image, files[contents[image].hex()])
            for image in rows.held_out_ids
            if image not in ids and contents[image].hex() in files
        ]
        told = [f"{len(by_name):,} by name ({first_few(by_name)})"] if by_name else []
        if hidden:
            pairs = [f"{image} = {other}" for image, other in hidden]
            told.append(f"{len(hidden):,} as a file of another name ({first_few(pairs)})")
        if told:
            raise HeldOutSeenError(
                f"{side.name}: held-out images were seen by the fine-tuning of {tuning.created} (weights "
                f"{tuning.weights[:12]}): {'; '.join(told)}; their scores would flatter it. Compare on the split that "
                f"it was tuned with ({tuning.split}), or tune again",
                [*by_name, *(image for image, _ in hidden)],
            )


def _shared(rows: LabelledRows, contents_a: Contents, contents_b: Contents) -> tuple[LabelledRows, tuple[str, ...]]:
    """Keep the rows that both sides have alike; held-out ones do by now."""
    same = np.array([image in contents_b and contents_a.get(image) == contents_b[image] for image in rows.ids])
    if same.all():
        return rows, ()
    left = tuple(image for image, kept in zip(rows.ids, same.tolist(), strict=True) if not kept)
    description = f"{rows.split.description}, less {len(left):,} training images that are not on both sides"
    kept = rows.within(np.flatnonzero(rows.train & same), np.flatnonzero(~rows.train), description)
    kept.task.check(Targets(kept.y, kept.classes), kept.train, kept.label_source)
    return kept, left
