"""``icecore sweep``: stored features -> every layer, pooling and model -> leaderboard, and a bundle of the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .options import config_argument, set_option
from .running import progressed
from .table import counted, table
from .train import as_of, held_out_line, number, search_options

if TYPE_CHECKING:
    from icecore.train import LayerScore, SweepProgress, SweepResult

    from .config import TrainConfig

__all__ = ["command", "sweep_from_config"]

MOST_SHOWN = 20
"""Cells shown on a terminal; the files have all."""


@make_command(example="icecore sweep configs/sweep.toml --set sweep.keep=3")
@config_argument
@set_option
def sweep(config: Path, overrides: tuple[str, ...]) -> Outcome:
    """Compare the layers and models of CONFIG by cross-validation; score the best alone on held-out rows.

    Killed and started again, it computes only the cells that are missing.
    """
    from .config import TrainConfig, load_config

    result = sweep_from_config(load_config(TrainConfig, config, overrides))
    return Outcome(Exit.DONE, result.to_json(), _text(result), nothing_to_do=bool(result.trained.reused))


def sweep_from_config(config: TrainConfig) -> SweepResult:
    """Run the sweep that a config describes."""
    from icecore.store import FeatureStore
    from icecore.train import sweep_models

    from .config import ConfigError

    train = config.train
    if train.save != "best":
        raise ConfigError([f"train.save: a sweep saves its winner alone, found {train.save!r}; or use icecore train"])
    if train.outer_folds:
        raise ConfigError(
            [f"train.outer_folds: a sweep is not nested, found {train.outer_folds}; or use icecore train"]
        )
    if train.memory is not None:
        raise ConfigError(["train.memory: a sweep trains in memory; leave the limit out, or use icecore train"])
    if train.version is not None:
        with FeatureStore.open(config.store) as store:
            as_of(store[config.set], train.version)
    return sweep_models(
        config.store,
        config.set,
        layers=train.layers or None,
        keep=config.sweep.keep,
        out=config.sweep.out,
        progress=_say,
        **search_options(config),
    )


def _text(result: SweepResult) -> str:
    trained = result.trained
    winner, interval = result.winner, trained.interval(result.task.headlines[0])
    page = max(result.files, key=lambda path: path.suffix == ".html")
    lines = [
        _leaderboard(result),
        *([f"... and {len(result.cells) - MOST_SHOWN} more: {page}"] if len(result.cells) > MOST_SHOWN else []),
        "",
        f"{counted(result.computed, 'cell')} computed, {result.reused} read from an earlier sweep",
        f"chosen by cross-validation: {winner.model} on {winner.inputs}",
        held_out_line(result.task, trained.winner.evaluation, interval, trained.baseline),
        *(f"note: {note}" for note in (*result.notes, *trained.notes)),
        *(
            ["nothing has changed since an earlier sweep made this bundle: no model was fitted"]
            if trained.reused
            else []
        ),
        f"bundle {trained.bundles[0]}",
        *([f"report {trained.report}"] if trained.report else []),
        f"leaderboard {page}",
    ]
    return "\n".join(lines)


def _leaderboard(result: SweepResult) -> str:
    header = ["layers", "model", "setting", f"cv {result.plan.metric}", "+-", "seconds"]
    rows = [
        [cell.inputs, cell.model, cell.chosen, number(cell.best.mean), number(cell.best.std), f"{cell.seconds:.1f}"]
        for cell in result.cells[:MOST_SHOWN]
    ]
    return table(header, rows)


def _quick_table(quick: tuple[LayerScore, ...]) -> str:
    models = list(quick[0].cells)
    rows = [
        [
            layer.layers,
            str(layer.n_features),
            *(number(layer.cells[model].best.mean) for model in models),
            f"{layer.logme:.3f}",
            "goes on" if layer.kept else "left",
        ]
        for layer in quick
    ]
    return table(["quick pass", "features", *models, "LogME", ""], rows)


def _say(progress: SweepProgress) -> None:
    cell = progress.cell
    if cell is not None:
        how = "read" if progress.reused else f"{cell.seconds:.1f} s"
        score = f"cv {number(cell.best.mean)}, {how}"
        echo(f"[{progress.done}/{progress.total}] {progress.model} on {cell.inputs}: {score}", err=True)
        progressed(progress.done, progress.total)
    elif progress.quick and not progress.model:
        echo(_quick_table(progress.quick), err=True)


command = sweep
