"""``icecore retrain``: anything new? -> challenger -> gate -> promoted, or the champion stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .options import config_argument, set_option
from .table import table
from .train import as_of, say_cell, search_options

if TYPE_CHECKING:
    from icecore.train import Retrained

    from .config import TrainConfig

__all__ = ["command", "retrain_from_config"]


@make_command(example="icecore retrain configs/retrain.toml --dry-run")
@config_argument
@set_option
@click.option("--dry-run", is_flag=True, help="Train and compare, but promote and record nothing.")
@click.option("--force", is_flag=True, help="Promote the challenger whatever the gate says; the history tells it.")
def retrain(config: Path, overrides: tuple[str, ...], dry_run: bool, force: bool) -> Outcome:
    """Train a challenger where anything is new in CONFIG's set or labels, and promote it where the gate says so.

    Ends with 0 when it was promoted or nothing is new, with 6 when the champion stays. The same inputs get the same
    answer again, at once. Killed, it goes on where it was.
    """
    from .config import TrainConfig, load_config

    done = retrain_from_config(load_config(TrainConfig, config, overrides), dry_run=dry_run, force=force)
    code = Exit.DONE if done.decided in ("promoted", "nothing new") else Exit.CHALLENGER_KEPT_BACK
    nothing = done.decided == "nothing new" or (done.recorded and code is Exit.DONE)
    promoted = done.decided == "promoted" and not done.recorded  # hooks are told of it once
    return Outcome(code, done.to_json(), _text(done), nothing_to_do=nothing, promoted=promoted)


def retrain_from_config(config: TrainConfig, *, dry_run: bool = False, force: bool = False) -> Retrained:
    """Run the retraining that a config describes."""
    from icecore.store import FeatureStore
    from icecore.train import retrain_model

    from .config import ConfigError

    train = config.train
    if train.save != "best":
        raise ConfigError([f"train.save: a retraining saves its challenger alone, found {train.save!r}"])
    if train.outer_folds:
        raise ConfigError([f"train.outer_folds: a retraining is not nested, found {train.outer_folds}; or use train"])
    if train.version is not None:
        with FeatureStore.open(config.store) as store:
            as_of(store[config.set], train.version)
    return retrain_model(
        config.store,
        config.set,
        layers=train.layers or None,
        memory=train.memory,
        gate=config.retrain.limits(),
        gate_metric=config.retrain.metric,
        dry_run=dry_run,
        force=force,
        progress=say_cell,
        on_event=_say,
        **{**search_options(config), "name": config.retrain.name or train.name},
    )


def _text(done: Retrained) -> str:
    lines = []
    if done.rules:
        rows = [[rule["name"], "yes" if rule["passed"] else "NO", rule["told"]] for rule in done.rules]
        lines = [table(["rule", "kept", "numbers"], rows), ""]
    lines += [f"note: {note}" for note in done.notes]
    if done.recorded:
        lines.append(f"nothing is new: what was decided of the same inputs holds ({done.decided})")
    would = "would be " if done.dry_run and not done.recorded else ""
    told = {
        "promoted": f"{would}promoted: {done.why}",
        "kept": f"{would}kept back: {done.why}",
        "undecided": f"not decided, and {would}kept back: {done.why}",
        "nothing new": f"nothing is new: {done.why}",
    }
    lines.append(told[done.decided])
    if done.challenger is not None:
        lines.append(f"challenger {done.challenger}")
    lines.append(f"champion {done.champion} (promotion {done.number})" if done.champion else "no champion yet")
    return "\n".join(lines)


def _say(what: str, facts: Mapping[str, Any]) -> None:
    """Tell an event on stderr, in a line."""
    if what == "training":
        echo(f"something is new: training a challenger on {facts['rows']:,} rows", err=True)
    elif what == "trained":
        echo(f"challenger {facts['bundle']}{', trained by an earlier run' if facts['reused'] else ''}", err=True)


command = retrain
