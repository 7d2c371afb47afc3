"""Champion and challenger on the same held-out rows, each with features of its own generation: numbers for the gate.

A champion of another generation reads that generation as of its last version; images that are not in it, or whose
file is another one now, are left out for both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from icecore.store import FeatureSet, FeatureStore, SetNotFoundError, StoreError, VersionNotFoundError
from numpy.typing import NDArray

from .bundle import Bundle
from .errors import TrainError
from .gate import GateNumbers
from .job import REPORT
from .paired import (
    align_outputs,
    baseline_outputs,
    calibration_error,
    class_recalls,
    gain_test,
    score_of,
)
from .row_list import ROWS, RowList, hash_id, label_texts, targets_of
from .rows import LabelledRows

__all__ = ["Contest", "hold_contest"]

_TIMED_ROWS, _TIMES = 256, 5


@dataclass(frozen=True)
class Contest:
    """What a comparison gave."""

    numbers: GateNumbers
    """what the gate asks for"""
    notes: tuple[str, ...]
    """what was left out"""


def hold_contest(
    store: FeatureStore,
    features: FeatureSet,
    rows: LabelledRows,
    challenger: Bundle,
    champion: Bundle | None,
    *,
    metric: str,
    listed: RowList | None = None,
    seed: int = 0,
) -> Contest:
    """Score two models on the held-out rows, with the labels of now.

    Parameters
    ----------
    store, features
        The open store, and the pinned set that the challenger was trained on.
    rows
        Labelled rows; the held-out ones count, and trained neither model.
    challenger
        Its classes are those of ``rows``.
    champion
        The bundle in use; None for a first model, which is held against the baseline.
    metric
        Score to compare.
    listed
        The champion's own rows, by which its score of then is found.
    seed
        Of the bootstrap.

    Raises
    ------
    TrainError
        When the features of the champion are gone, no row is left, or both answer different questions.
    """
    ids, notes = list(rows.held_out_ids), []
    X = _features(features, challenger, ids)
    has = np.array([image in X for image in ids])
    if champion is not None:
        theirs, gone = _champion_features(store, features, champion, ids)
        has &= np.array([image in theirs for image in ids])
        notes += gone
    if not has.any():
        raise TrainError(
            f"{features.name}: none of the {len(ids):,} held-out images has the features of both models; extract them "
            "for the generation of now, or promote the new model by hand"
        )
    kept = [image for image, there in zip(ids, has.tolist(), strict=True) if there]
    if len(kept) < len(ids):
        notes.append(f"{len(ids) - len(kept):,} of {len(ids):,} held-out rows left out: not there for both models")
    names = tuple(challenger.classes)
    if champion is not None and rows.task.has_curves:
        names = tuple(sorted({*names, *champion.classes}))
    texts = [text for text, train in zip(label_texts(rows), rows.train.tolist(), strict=True) if not train]
    y = targets_of([text for text, there in zip(texts, has.tolist(), strict=True) if there], rows, names).y
    A = np.stack([X[image] for image in kept])
    ours = align_outputs(challenger.outputs(A), challenger.classes, names, rows.task)
    if champion is None:
        others = baseline_outputs(rows.task, rows.y_train, len(kept), len(names))
    else:
        outputs = champion.outputs(np.stack([theirs[image] for image in kept]))
        others = align_outputs(outputs, champion.classes, names, rows.task)
    groups = None
    if rows.held_out_groups is not None:
        groups = [group for group, there in zip(rows.held_out_groups, has.tolist(), strict=True) if there]
    p_value, told = gain_test(rows.task, metric, y, ours, others, groups=groups, seed=seed)
    numbers = GateNumbers(
        metric=metric,
        rows=len(kept),
        challenger=score_of(rows.task, metric, y, ours, names),
        champion=score_of(rows.task, metric, y, others, names),
        p_value=p_value,
        test=told,
        is_first=champion is None,
        classes={} if champion is None else class_recalls(y, others, ours, names, champion.classes, rows.task),
        calibration_error=calibration_error(rows.task, y, ours),
        latency_ms=_latency(challenger, A),
        megabytes=_megabytes(challenger),
    )
    if champion is not None:
        numbers = _with_past(numbers, champion, listed, rows, kept, y, others, names)
        if listed is None:
            notes.append("the champion does not list its held-out rows: whether their labels changed is not known")
    return Contest(numbers, tuple(notes))


def _features(features: FeatureSet, bundle: Bundle, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Read the features that a bundle takes, of those of the images that have them."""
    with features.array([column.name for column in bundle.columns], dtype="float32", missing="drop") as array:
        there = set(array.ids)
        found = [image for image in ids if image in there]
        return dict(zip(found, array.take(found), strict=True))


def _champion_features(
    store: FeatureStore, features: FeatureSet, champion: Bundle, ids: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Read the champion's features: those of now where it takes them, else those of its own generation."""
    card = champion.card
    own = {column.hash for column in features.columns}
    if champion.contract.hash == features.contract.hash and {column.hash for column in champion.columns} <= own:
        return _features(features, champion, ids), []
    try:
        was = _last_of(store[str(card["set"])], str(card["generation"]), int(card["version"]))
        found = _features(was, champion, ids)
        changed: set[str] = set()
        if was.name == features.name:
            images = store.diff(f"{was.name}@{was.version}", f"{features.name}@{features.version}").images
            changed = set(images.changed) if images is not None else set()
    except (SetNotFoundError, VersionNotFoundError, StoreError) as exc:
        raise TrainError(
            f"{champion.path}: the features that the champion was trained on cannot be read ({exc}); "
            "promote the new model by hand, or roll back to a champion that can be compared"
        ) from exc
    note = f"the champion is of another generation, read as of version {was.version}"
    return {image: row for image, row in found.items() if image not in changed}, [note]


def _last_of(features: FeatureSet, generation: str, version: int) -> FeatureSet:
    """Give a set as of the last readable version of a generation, at least of the one that is named."""
    for each in features.log():  # the newest first
        if each.readable and each.number > version and features.as_of(each.number).generation == generation:
            return features.as_of(each.number)
    return features.as_of(version)


def _with_past(
    numbers: GateNumbers,
    champion: Bundle,
    listed: RowList | None,
    rows: LabelledRows,
    kept: Sequence[str],
    y: NDArray[Any],
    outputs: NDArray[np.float64],
    names: Sequence[str],
) -> GateNumbers:
    """Add how the champion fares, on rows that were held out for it, with the labels of then and of now.

    Where all these rows are still there, its score of then is the recorded one, so that other files under the same
    names show, too; else that of the rows that are left, with the labels of then.
    """
    if listed is None:
        return numbers
    texts = dict(zip(rows.ids, label_texts(rows), strict=True))
    then = {image: text for image in kept if (text := listed.held_out.get(hash_id(image))) is not None}
    # a class that no model of now knows would have no place among the columns
    known = set(names) if rows.task.has_curves else None
    chosen = [i for i, image in enumerate(kept) if image in then and (known is None or then[image] in known)]
    if not chosen:
        return numbers
    old = targets_of([then[kept[i]] for i in chosen], rows, names).y
    recorded = champion.card["held_out"].get(numbers.metric) if len(chosen) == len(listed.held_out) else None
    before = score_of(rows.task, numbers.metric, old, outputs[chosen], names) if recorded is None else float(recorded)
    return replace(
        numbers,
        champion_then=before,
        champion_now=score_of(rows.task, numbers.metric, y[chosen], outputs[chosen], names),
        champion_rows=len(chosen),
        relabelled=sum(then[kept[i]] != texts[kept[i]] for i in chosen),
    )


def _latency(bundle: Bundle, X: NDArray[np.float32]) -> float:
    """Give milliseconds an image, of a batch: the least of some runs."""
    batch = X[:_TIMED_ROWS]
    seconds = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        bundle.outputs(batch)
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds) / len(batch)


def _megabytes(bundle: Bundle) -> float:
    names = [name for name in bundle.card["files"] if name not in (REPORT, ROWS)]
    return float(sum((bundle.path / name).stat().st_size for name in names) / 1e6)
