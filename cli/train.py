"""``icecore train``: stored features -> classifiers -> bundle and report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .options import config_argument, set_option
from .running import progressed
from .table import table

if TYPE_CHECKING:
    from icecore.store import FeatureSet
    from icecore.train import Progress, TrainResult
    from icecore.train.tasks import Task

    from .config import Source, TrainConfig

__all__ = [
    "as_of",
    "command",
    "held_out_line",
    "leaderboard",
    "number",
    "say_cell",
    "search_options",
    "train_from_config",
]

_TITLES = {
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "roc_auc": "AUC",
    "micro_f1": "micro F1",
    "subset_accuracy": "all right",
    "mean_average_precision": "mean AP",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R2",
}


@make_command(example="icecore train configs/experiment.toml --set train.folds=3")
@config_argument
@set_option
def train(config: Path, overrides: tuple[str, ...]) -> Outcome:
    """Train the models of CONFIG on stored features; choose by cross-validation, score on held-out rows."""
    from .config import TrainConfig, load_config

    result = train_from_config(load_config(TrainConfig, config, overrides))
    return Outcome(Exit.DONE, result.to_json(), _text(result))


def train_from_config(config: TrainConfig) -> TrainResult:
    """Run the training that a config describes."""
    from icecore.store import FeatureStore
    from icecore.train import train_models

    train = config.train
    layers = train.layers
    with FeatureStore.open(config.store) as store:
        features = store[config.set]
        if train.version is not None:
            features = as_of(features, train.version)
        layers = layers or tuple(column.name for column in features.columns)
    return train_models(
        config.store,
        config.set,
        layers=layers,
        outer_folds=train.outer_folds,
        memory=train.memory,
        save=train.save,
        progress=say_cell,
        **search_options(config),
    )


def search_options(config: TrainConfig) -> dict[str, Any]:
    """Give what ``train_models`` and ``sweep_models`` take alike."""
    from icecore.train import CsvLabels, FolderLabels, GivenSplit, HashSplit, every_combination

    labels, train = config.labels, config.train
    return {
        "task": train.task,
        "models": train.models,
        "labels": FolderLabels(labels.layout)
        if labels.csv is None
        else CsvLabels(labels.csv, unknown=labels.unknown, missing=labels.missing, columns=labels.columns),
        "version": train.version,
        "split": HashSplit(config.split.held_out) if config.split.by == "hash" else GivenSplit(),
        "grids": dict(train.grids.items()),
        "steps": every_combination(**dict(train.steps)),
        "class_weight": None if train.class_weight == "none" else train.class_weight,
        "folds": train.folds,
        "repeats": train.repeats,
        "halving": train.halving,
        "calibration": None if train.calibration == "auto" else train.calibration,
        "seed": train.seed,
        "metric": train.metric,
        "name": train.name,
        "report": train.report,
        "images": _image_folder(config.source),
        "config": config.model_dump(
            mode="json", exclude={"hooks"}
        ),  # a bundle is handed on; a hook may hold a password
    }


def as_of(features: FeatureSet, version: int | str) -> FeatureSet:
    """Give a set as of a version that the config names."""
    from icecore.store import VersionNotFoundError

    from .config import ConfigError

    try:
        return features.as_of(version)
    except VersionNotFoundError as exc:
        raise ConfigError([f"train.version: {exc}"]) from exc


def _image_folder(source: Source | None) -> Path | None:
    """Give the folder that ids are looked for in, for the report's pictures; a manifest's own where it has no other."""
    if source is None or source.manifest is None:
        return source.folder if source else None
    return source.folder or source.manifest.parent


def leaderboard(result: TrainResult) -> str:
    """Give the cells as a table, the best cross-validated one first, the baseline last."""
    shown, rows = result.task.headlines, []
    for cell in result.cells:
        setting = ", ".join(f"{key}={value:g}" for key, value in cell.params.items())
        scores = [number(getattr(cell.evaluation, name)) for name in shown]
        rows.append([cell.inputs, cell.model, setting, number(cell.best.mean), *scores, f"{cell.seconds:.1f}"])
    baseline = [number(getattr(result.baseline, name)) for name in shown]
    rows.append([f"({result.task.baseline_title})", "baseline", "", "", *baseline, ""])
    titles = [_TITLES.get(name, name.replace("_", " ")) for name in shown]
    return table(["layers", "model", "setting", f"cv {result.metric}", *titles, "seconds"], rows)


def held_out_line(task: Task, scores: Any, interval: tuple[float, float] | None, baseline: Any) -> str:
    """Say what the winner reaches on held-out rows, and what is reached without features."""
    name = task.headlines[0]
    sure = f"95 % interval {number(interval[0])} to {number(interval[1])}, " if interval else ""
    score, base = (number(getattr(each, name)) for each in (scores, baseline))
    return f"held-out {_TITLES.get(name, name)} {score} ({sure}{scores.n} images); {task.baseline_title} {base}"


def number(score: float | None) -> str:
    """Give a score, which may be in any unit."""
    if score is None:
        return "-"
    return f"{score:.4f}" if abs(score) < 100 and (abs(score) >= 5e-5 or not score) else f"{score:.4g}"


def _text(result: TrainResult) -> str:
    winner, name = result.winner, result.task.headlines[0]
    interval = getattr(winner.evaluation, f"{name}_interval", result.intervals[0][name])
    lines = [
        leaderboard(result),
        "",
        f"chosen by cross-validation: {winner.model} on {winner.inputs}",
        held_out_line(result.task, winner.evaluation, interval, result.baseline),
        *_nested(result),
        *_runner_up(result),
        *(f"note: {note}" for note in result.notes),
        f"bundle {result.bundles[0]}",
    ]
    return "\n".join([*lines, f"report {result.report}"] if result.report else lines)


def _nested(result: TrainResult) -> list[str]:
    """Say what the whole search gives on rows that no part of it saw."""
    if result.nested is None:
        return []
    chosen = Counter(f"{fold.model} on {' + '.join(fold.columns)}" for fold in result.nested.folds)
    choices = ", ".join(f"{what} ({count})" for what, count in chosen.most_common())
    score = f"{result.nested.mean:.4f} +- {result.nested.std:.4f} over {len(result.nested.folds)} outer folds"
    return [f"nested cross-validation of the whole search: {result.metric} {score}, which chose {choices}"]


def _runner_up(result: TrainResult) -> list[str]:
    """Say how the next best cell compares with the winner on the same rows."""
    if result.runner_up is None:
        return []
    cell, pair, name = result.runner_up.cell, result.runner_up.comparison, result.runner_up.headline
    gap = pair.gaps[name]
    signed = [] if gap is None else [f"{value:+.4f}" for value in (gap.difference, *gap.interval)]
    told = f"{_TITLES.get(name, name)} {signed[0]}, {signed[1]} to {signed[2]}" if signed else "no gap can be told"
    rows = ""
    if pair.p_value is not None:
        alone = f"right alone on {pair.only_first} and {pair.only_second} images"
        rows = f"; {alone}, McNemar p = {pair.p_value:.2g}"
    return [f"against the next best, {cell.model} on {cell.inputs}: {told}{rows}: {result.runner_up.verdict()}"]


def say_cell(progress: Progress) -> None:
    """Tell a finished cell on stderr, in a line."""
    cell: Any = progress.cell
    if cell is not None:
        outer = f"outer fold {progress.outer_fold}, " if progress.outer_fold else ""
        score = f"cv {number(cell.best.mean)}, {cell.seconds:.1f} s"
        echo(f"[{progress.done}/{progress.total}] {outer}{progress.model} on {cell.inputs}: {score}", err=True)
        progressed(progress.done, progress.total)


command = train
