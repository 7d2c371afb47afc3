"""Hold new images against those that a bundle was trained on, and put the verdict into words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from icecore.store import FeatureSet, FeatureStore
    from icecore.train import Bundle
    from icecore.train.drift import Drift

    from .config import ExtractConfig

__all__ = ["Compared", "DriftWatch", "drift_facts", "drift_of_run", "drift_text", "version_of"]

log = logging.getLogger(__name__)

BLOCK = 1024


@dataclass
class DriftWatch:
    """Watches the images that a bundle predicts."""

    bundle: Bundle
    """the model"""
    name: str
    """name that it is kept under"""
    store: FeatureStore
    """where it was trained"""
    max_drift: float | None = None
    """distance from which drift is told; by default 0.3"""

    def __post_init__(self) -> None:
        from icecore.train.drift import NewRows
        from icecore.train.drift_kept import reference_of

        reference = reference_of(self.store, self.bundle, self.name)
        self._rows = NewRows(reference, [column.width for column in self.bundle.columns])

    def add(self, X: np.ndarray, outputs: np.ndarray) -> None:
        """Take in features (n, D) of new images, and the bundle's numbers."""
        calls = self.bundle.calls(outputs) if self.bundle.task == "classification" else ()
        self._rows.add(X, calls)

    def conclude(self, **facts: Any) -> Drift | None:
        """Judge what was seen, and record it; None where there were too few images to say anything.

        Where the record cannot be written, a warning says so, and the verdict stands.
        """
        from icecore.train.drift import MAX_DRIFT
        from icecore.train.drift_kept import record_drift

        verdict = self._rows.judge(max_drift=MAX_DRIFT if self.max_drift is None else self.max_drift)
        if verdict is not None:
            try:
                record_drift(self.store.path, self.name, verdict, {"bundle": self.bundle.path.name, **facts})
            except OSError as exc:  # a store on a read-only medium can be predicted with, too
                log.warning("%s: drift cannot be noted in its history (%s)", self.store.path, exc.strerror or exc)
        return verdict


@dataclass(frozen=True)
class Compared:
    """What became of the comparison of an extraction."""

    verdict: Drift | None = None
    """None where nothing was compared"""
    why_not: str = ""
    """the reason"""
    fails: bool = False
    """whether the run is to end with the code of drift"""


def version_of(config: ExtractConfig) -> int | None:
    """Give the version of a config's set that readers see; None where there is none yet."""
    from icecore.store import FeatureStore, StoreNotFoundError

    try:
        with FeatureStore.open(config.store) as store:
            return store[config.set].version if config.set in store.sets() else None
    except StoreNotFoundError:
        return None


def drift_of_run(config: ExtractConfig, before: int | None) -> Compared:
    """Hold what a run has added to a set against what the champion of ``[drift]`` was trained on.

    Parameters
    ----------
    config
        Of the run.
    before
        Version that readers saw before it.

    Raises
    ------
    BundleError, RefusedError
        When the champion cannot be read.
    """
    from icecore.store import FeatureStore, champion_of
    from icecore.train import DriftError, load_bundle

    assert config.drift is not None
    promotion = champion_of(config.store, config.drift.name)
    if promotion is None:
        return Compared(why_not=f"no bundle of {config.drift.name!r} was promoted yet")
    bundle = load_bundle(promotion.path)
    with FeatureStore.open(config.store) as store:
        if config.set not in store.sets() or store[config.set].version == before:
            return Compared(why_not="the run has added no images")
        features = store[config.set]
        if features.contract.hash != bundle.contract.hash or not set(bundle.columns) <= set(features.columns):
            return Compared(why_not=f"the champion {bundle.path.name} takes features of another contract or column")
        try:
            watch = DriftWatch(bundle, config.drift.name, store, config.drift.max_drift)
        except DriftError as exc:
            return Compared(why_not=str(exc))
        verdict = _drift_of_version(watch, features, before, command="extract", set=config.set)
        if verdict is None:
            return Compared(why_not="too few new images to say anything")
        return Compared(verdict, fails=config.drift.fail and verdict.has_drifted)


def drift_facts(verdict: Drift | None) -> Mapping[str, Any] | None:
    """Give a verdict as plain JSON values; None where there is none."""
    return None if verdict is None else verdict.to_json()


def drift_text(verdict: Drift | None) -> str:
    """Put a verdict into a line."""
    from icecore.train.drift import FEWEST

    if verdict is None:
        return f"  drift: fewer than {FEWEST} new images say nothing"
    parts = [
        f"{each.layer} {each.distance:.2f} ({each.beyond:.0%} beyond the training range)" for each in verdict.layers
    ]
    parts += [f"classes {verdict.classes.distance:.2f}"] if verdict.classes is not None else []
    word = f"DRIFTED in {', '.join(verdict.where)}" if verdict.has_drifted else "none"
    return f"  drift of {verdict.rows:,} new images: {word}; {', '.join(parts)}; limit {verdict.max_drift:g}"


def _drift_of_version(watch: DriftWatch, features: FeatureSet, before: int | None, **facts: Any) -> Drift | None:
    """Judge the images that are in a set now and were not, or were others, as of a version; None: all of them."""
    now = features.version
    names = [column.name for column in watch.bundle.columns]
    with features.array(names, missing="drop", version=now, dtype="float32") as array:
        new = set(array.ids)
        if before is not None:
            images = watch.store.diff(f"{features.name}@{before}", f"{features.name}@{now}").images
            new &= {*images.added, *images.changed} if images is not None else set()
        rows = array.rows_of(sorted(new))
        for top in range(0, len(rows), BLOCK):
            X = array[np.sort(rows[top : top + BLOCK])]
            watch.add(X, watch.bundle.outputs(X))
    return watch.conclude(**facts)
