"""Retraining: anything new? train a challenger, hold it against the champion, promote it or keep the champion.

Killed anywhere, the old or the new champion is in use, and the next run goes on: it finds the challenger by its key, or
the promotion, or the decision. Readers and predictors are never blocked; an extraction may run meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icecore.store import FeatureStore
from icecore.store.champions import default_who
from icecore.store.durable import make_folder
from icecore.store.lock import retrain_lock

from .calibration_curves import CurveMethod
from .gate import GateLimits
from .grid_search import Halving
from .labels import LabelSource
from .metrics import Metric
from .models import ClassWeight
from .plan import check_name, make_plan
from .progress import Progress
from .retraining import Retrained, Retraining, Told
from .settings import Grid
from .splits import SplitRule
from .steps import STANDARD, Steps
from .tasks import TaskName

__all__ = ["retrain_model"]


def retrain_model(
    store_path: Path | str,
    set_name: str,
    *,
    name: str = "default",
    layers: Sequence[str | Sequence[str]] | None = None,
    gate: GateLimits | None = None,
    gate_metric: Metric | None = None,
    task: TaskName = "classification",
    models: Sequence[str] | None = None,
    labels: LabelSource | None = None,
    split: SplitRule | None = None,
    version: int | str | None = None,
    grids: Mapping[str, Grid] | None = None,
    steps: Steps | Sequence[Steps] = STANDARD,
    class_weight: ClassWeight = None,
    calibration: CurveMethod | None = None,
    folds: int = 5,
    repeats: int = 1,
    halving: Halving = "auto",
    seed: int = 0,
    metric: Metric | None = None,
    memory: int | None = None,
    report: bool = True,
    images: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    force: bool = False,
    who: str | None = None,
    command: str = "",
    progress: Callable[[Progress], None] | None = None,
    on_event: Told | None = None,
) -> Retrained:
    """Train a challenger where anything is new, and promote it where the gate says so.

    Held-out rows are frozen: what was held out for any champion of the name stays so, and no row that trained the
    champion is compared on. Both models are scored on the same rows, with the labels of now.

    Parameters
    ----------
    store_path, set_name
        Store and feature set.
    name
        Name of the model: its bundles, champion and decisions are under ``models/<name>/``.
    layers
        As ``train_models`` takes them; every column by default.
    gate, gate_metric
        What a challenger must fulfil, and the score that is compared; by default the one that is chosen by.
    task, models, labels, split, version, grids, steps, class_weight, calibration, folds, repeats, halving, seed
        As ``train_models`` takes them.
    metric, memory, report, images, config, progress
        Likewise.
    dry_run
        Do all but the promotion and the record of the decision; the challenger's bundle stays for the next run.
    force
        Promote the challenger whatever the gate says; recorded.
    who
        Kept in the history; user and host by default.
    command
        Told to whom the lock refuses.
    on_event
        Called with ``training``, ``trained``, ``compared`` and the outcome, each with its facts.

    Returns
    -------
    Retrained
        What was decided, and by which numbers.

    Raises
    ------
    icecore.store.LockedError
        When another run retrains this name.
    icecore.store.RefusedError
        When somebody promoted another bundle meanwhile: the next run compares with that one.
    TrainError
        When no challenger can be trained, or no comparison made. The champion stays.
    """
    plan = make_plan(
        task=task,
        models=models,
        grids=grids,
        steps=steps,
        class_weight=class_weight,
        calibration=calibration,
        folds=folds,
        repeats=repeats,
        outer_folds=0,
        halving=halving,
        seed=seed,
        metric=metric,
        memory=memory,
    )
    check_name(name)
    if report:
        from .report import require_extra

        require_extra()  # before any time is spent
    with FeatureStore.open(store_path) as store:
        features, folder = store[set_name], store.models_path / name
        make_folder(folder)
        with retrain_lock(folder, command=command):
            features = features.as_of(features.version if version is None else version)
            chosen = tuple(layers) if layers else tuple(column.name for column in features.columns)
            job = Retraining(
                store=store,
                features=features,
                name=name,
                folder=folder,
                layers=chosen,
                plan=replace(plan, scratch=folder),
                labels=labels,
                split=split,
                limits=gate or GateLimits(),
                metric=gate_metric or plan.metric,
                report=report,
                images=images,
                config=config,
                progress=progress,
                told=on_event or (lambda *_: None),
            )
            return job.run(dry_run=dry_run, force=force, who=who or default_who())
