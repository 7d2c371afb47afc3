"""How a store stands, in numbers for a monitor: rows, failures, ages, the champion's score, the last runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from .bundles import CARD
from .champions import Promotion, champions
from .durable import write_bytes
from .exposition import Family, exposition
from .runs import Run, list_runs
from .status import SetStatus, StoreStatus, store_status

__all__ = ["store_metrics", "write_metrics"]

log = logging.getLogger(__name__)

Labels = dict[str, str]
Samples = list[tuple[Labels, float]]


def store_metrics(path: Path | str) -> bytes:
    """Give the numbers of a store in the text format of Prometheus.

    Every number has the label ``store``, the folder's absolute path, so that the files of several stores agree.

    Parameters
    ----------
    path
        The store.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog cannot be opened.
    """
    status = store_status(path)
    base = {"store": str(Path(path).absolute())}
    families = [
        *_of_sets(status, base),
        *_of_store(status, base),
        *_of_champions(champions(path), base),
        *_of_runs(list_runs(path), base),
    ]
    return exposition(families)


def write_metrics(path: Path | str, file: Path) -> int:
    """Write the numbers of a store to a file, whole; give its size in bytes.

    Raises
    ------
    StoreNotFoundError, FormatError, StoreDamagedError
        When the catalog cannot be opened.
    OSError
        When the file cannot be written.
    """
    text = store_metrics(path)
    write_bytes(file, text)
    return len(text)


def _of_sets(status: StoreStatus, base: Labels) -> Sequence[Family]:
    def of(value: Callable[[SetStatus], float]) -> Samples:
        return [({**base, "set": one.name}, value(one)) for one in status.sets]

    failures: Samples = [
        ({**base, "set": one.name, "kind": kind}, count)
        for one in status.sets
        for kind, count in {**dict.fromkeys(_KINDS, 0), **one.summary.failed}.items()
    ]
    return [
        Family("icecore_rows", "Images that have features.", of(lambda one: one.summary.images)),
        Family("icecore_failures", "Images that gave no features, by kind.", failures),
        Family(
            "icecore_pending_images",
            "Images that lack features which are not read yet: a generation is being filled.",
            of(lambda one: one.pending.lacking if one.pending else 0),
        ),
        Family(
            "icecore_features_age_seconds", "Age of the last commit when this was written.", of(lambda one: one.age)
        ),
        Family(
            "icecore_last_commit_timestamp_seconds",
            "When anything was last committed.",
            of(lambda one: _seconds(one.last_commit)),
        ),
        Family("icecore_segment_bytes", "Bytes of the segments that are read.", of(lambda one: one.bytes)),
    ]


def _of_store(status: StoreStatus, base: Labels) -> Sequence[Family]:
    return [
        Family("icecore_writers", "Runs that are writing.", [(base, int(status.is_written))]),
        Family("icecore_leftover_segments", "Segments left by a run that was cut off.", [(base, status.leftovers)]),
    ]


def _of_champions(found: Mapping[str, Promotion], base: Labels) -> Sequence[Family]:
    """Tell of the bundle that is in use under each name, and what its card says of held-out images."""
    scores = {name: _scores(one) for name, one in found.items()}
    score: Samples = [
        ({**base, "name": name, "metric": metric}, value)
        for name, values in scores.items()
        for metric, value in values.items()
        if metric != "n"
    ]
    when: Samples = [({**base, "name": name}, _seconds(one.created)) for name, one in found.items()]
    images: Samples = [({**base, "name": name}, values["n"]) for name, values in scores.items() if "n" in values]
    return [
        Family("icecore_champion_score", "Scores of the model in use on its held-out images.", score),
        Family("icecore_champion_held_out_images", "Images behind these scores.", images),
        Family("icecore_champion_promoted_timestamp_seconds", "When the model in use was promoted.", when),
    ]


def _scores(promotion: Promotion) -> dict[str, float]:
    """Give the numbers of a champion's card; none where its folder is gone, which verify and predict tell."""
    try:
        found = json.loads((promotion.path / CARD).read_bytes())["held_out"]
        return {name: value for name, value in found.items() if type(value) in (int, float)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        log.warning("%s: no scores can be read from its card (%s)", promotion.path, exc)
        return {}


def _of_runs(runs: Sequence[Run], base: Labels) -> Sequence[Family]:
    """Tell of the newest run of each command that has ended, and of the newest that was a success."""
    last: dict[str, Run] = {}
    good: dict[str, Run] = {}
    for run in runs:  # the newest first
        if run.ended is None and run.state != "died":
            continue
        last.setdefault(run.command, run)
        if run.state == "finished":
            good.setdefault(run.command, run)

    def of(runs: dict[str, Run], value: Callable[[Run], float | None]) -> Samples:
        found = [({**base, "command": command}, value(run)) for command, run in sorted(runs.items())]
        return [(labels, number) for labels, number in found if number is not None]

    return [
        Family(
            "icecore_last_success_timestamp_seconds",
            "When the command last ended with its work done.",
            of(good, lambda run: _seconds(run.ended) if run.ended else None),
        ),
        Family(
            "icecore_last_run_timestamp_seconds",
            "When the last run of the command that has ended was begun.",
            of(last, lambda run: _seconds(run.started)),
        ),
        Family(
            "icecore_last_run_outcome",
            "Outcome code of that run; 137 where it was killed.",
            of(last, lambda run: _KILLED if run.state == "died" else run.outcome.get("outcome_code")),
        ),
        Family("icecore_last_run_duration_seconds", "How long that run took.", of(last, lambda run: run.seconds)),
        Family(
            "icecore_last_run_peak_memory_bytes",
            "Most bytes of memory that its main process held.",
            of(last, lambda run: run.peak_memory),
        ),
    ]


_KINDS = ("read", "transient", "decode", "too-large", "unsupported", "value")
_KILLED = 137
"""what a shell says of a process that SIGKILL ended"""


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp()
