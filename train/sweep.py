"""The sweep: layers x preprocessing x models, cross-validated on training rows, to one leaderboard and one bundle.

Each cell is kept, so that a sweep that was killed, or grew, computes only what is missing. No cell holds a held-out
score: the winner alone is fitted on all training rows and scored once on the held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from icecore.store import FeatureStore

from .bundle_write import sweep_strays
from .calibration_curves import CurveMethod
from .data import Dataset, pin, read_dataset
from .errors import BundleError, TrainError
from .grid_search import Halving
from .job import REPORT, conclude
from .labels import LabelSource
from .metrics import Metric
from .models import ClassWeight
from .plan import check_name, make_plan
from .settings import Grid
from .shared import share_rows
from .splits import SplitRule
from .steps import STANDARD, Steps
from .sweep_board import write_board
from .sweep_kept import Kept
from .sweep_layers import expand_layers
from .sweep_result import SweepCell, SweepResult
from .sweep_search import SweepProgress, SweepSearch
from .sweep_winner import SweepWinner, card_entry, read_winner, train_winner, winner_key
from .tasks import TaskName

__all__ = ["sweep_models"]


def sweep_models(
    store_path: Path | str,
    set_name: str,
    *,
    layers: Sequence[str | Sequence[str]] | None = None,
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
    name: str = "default",
    keep: int = 0,
    out: Path | str | None = None,
    report: bool = True,
    images: Path | str | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[SweepProgress], None] | None = None,
) -> SweepResult:
    """Cross-validate every model, with every preprocessing, on every selection of layers; train and save the winner.

    A quick pass over all layers comes first: two cheap models (ridge and the nearest mean; of numbers ridge and, of
    few rows, nearest neighbours) and LogME. Its models rank the layers, LogME where they tie. Every cell is kept in
    ``<store>/sweeps/<name>/cells`` and read again by the next sweep that needs it; cells are known by the values of
    their training features, so that new layers or held-out images cost no old one. Where nothing has changed since
    the newest bundle under the name was made by the same sweep, that is the winner's, and nothing is fitted.

    Parameters
    ----------
    store_path, set_name, task, models, labels, split, version, grids, steps, class_weight, calibration, folds
        As ``train_models`` takes them.
    repeats, halving, seed, metric, images
        Likewise.
    layers
        Each entry makes cells of its own: a column, a glob over column names such as ``layer*:gem`` (each column
        that it matches), or a list of them to join. None: every column, which is layers x poolings.
    name
        The winner's bundle and the cells are kept under this name.
    keep
        How many selections of layers, the first of the quick pass, go on to the other models; 0: all.
    out
        Folder of the leaderboard; ``<store>/sweeps/<name>`` by default. Made where there is none.
    report
        Whether to write ``leaderboard.html``, and ``report.html`` beside the winner.
    config
        The resolved configuration, kept in the card.
    progress
        Called before and after each cell, and when the quick pass is done.

    Returns
    -------
    SweepResult
        The leaderboard, the winner with its held-out scores, and what was saved. Memory: the training rows of one
        selection of layers at a time, with the copies of the search.

    Raises
    ------
    TrainError
        A subclass says what does not fit: labels, split, folds, names, a missing extra.
    ReportError
        When the winner's report cannot be made: after its bundle was written without it.
    icecore.store.StoreError
        When the store, the set or a layer is not there.

    Examples
    --------
    >>> result = sweep_models("features", "photos", layers=["layer*:avg"], keep=2)  # doctest: +SKIP
    >>> print(result.winner.model, result.winner.layers, result.files)  # doctest: +SKIP
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
    )
    _check(name, keep, layers)
    if report:
        from .report import require_extra

        require_extra()  # before any time is spent
    with FeatureStore.open(store_path) as store:
        feature_set = pin(store, set_name, version)
        selections = expand_layers(feature_set, layers)
        rows = share_rows(feature_set, selections, labels=labels, split=split, task=task)
        home, bundles = store.path / "sweeps" / name, store.models_path / name
        kept = Kept(home / "cells")
        search = SweepSearch(feature_set, rows, plan, kept, selections=selections, keep=keep, progress=progress)
        quick, cells = search.run()
        sweep_strays(bundles)
        data = read_dataset(feature_set, cells[0].columns, rows)
        key = winner_key(data, cells[0], search.inputs_of(cells[0]), chosen_among=len(cells))
        winner, damaged = _earlier(bundles, key, data, cells[0], report=report, with_images=images is not None)
        del data
        if winner is None:
            run = train_winner(feature_set, rows, plan, cells[0], with_plots=report)
            trained = conclude(
                run,
                plan,
                run.kept,
                folder=bundles,
                store_path=store_path,
                report=report,
                images=images,
                config=config,
                chosen_among=len(cells),
                entries=card_entry(key, run, with_images=images is not None),
            )
            winner = SweepWinner.of(trained)
    folder = home if out is None else Path(out)
    notes = (*_notes(kept), *damaged)
    result = SweepResult(cells, quick, plan, winner, search.reused, search.computed, notes, folder, ())
    return replace(result, files=write_board(result, folder, page=report))


def _check(name: str, keep: int, layers: Sequence[str | Sequence[str]] | None) -> None:
    check_name(name)
    if keep < 0:
        raise TrainError(f"keep: 0 for all layers, or how many go on to the costly models, found {keep}")
    if layers is not None and (isinstance(layers, str) or not layers or not all(layers)):
        raise TrainError(f"layers: a list of layers, or of lists of layers to join, found {layers!r}")


def _earlier(
    folder: Path, key: str, data: Dataset, cell: SweepCell, *, report: bool, with_images: bool
) -> tuple[SweepWinner | None, tuple[str, ...]]:
    """Give the winner where the newest bundle is that of this sweep, and what is wrong with that bundle."""
    try:
        return read_winner(folder, key, data, cell, report=REPORT if report else None, with_images=with_images), ()
    except BundleError as exc:
        return None, (f"the newest bundle cannot be read, and the winner was fitted anew: {exc}",)


def _notes(kept: Kept) -> Iterator[str]:
    if kept.damaged:
        files = ", ".join(kept.damaged[:3]) + (" ..." if len(kept.damaged) > 3 else "")
        yield f"kept cells that were damaged and have been computed again: {len(kept.damaged)} ({files})"
    if kept.other_versions:
        yield (
            "kept cells that other versions of the libraries have computed, and that were computed again: "
            f"{kept.other_versions}"
        )
