"""``icecore report``: what a store has recorded over time."""

from __future__ import annotations

from pathlib import Path

import click

from .app import command as make_command
from .exits import Exit, Outcome
from .options import OutputFile
from .table import table

__all__ = ["command"]


@click.group(name="report", epilog="\b\nExample:\n  icecore report drift features --out drift.html")
def command() -> None:
    """Tell what a store has recorded over time."""


@command.add_command
@make_command(example="icecore report drift features --out drift.html", reads_only=True)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--name", default="default", show_default=True, help="Name of the model.")
@click.option("--out", type=OutputFile(), help="Also write a page with plots over time.")
def drift(store: Path, name: str, out: Path | None) -> Outcome:
    """List how far new images were from those that the model of STORE was trained on, run by run."""
    from icecore.store import FeatureStore
    from icecore.store.durable import write_bytes
    from icecore.train.drift_kept import read_history
    from icecore.train.drift_page import HEADER, drift_page, drift_table

    with FeatureStore.open(store):  # says so where there is no store
        records = read_history(store, name)
    if out is not None:
        write_bytes(out, drift_page(records, name))
    text = table(HEADER, drift_table(records)) + (f"\n\n{out}" if out is not None else "")
    data = {"name": name, "records": records, "out": None if out is None else str(out)}
    return Outcome(Exit.DONE, data, text)
