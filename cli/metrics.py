"""``icecore metrics``: numbers of a store for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click
from icecore.store import store_metrics
from icecore.store.durable import write_bytes

from .app import command as make_command
from .exits import Exit, Outcome
from .options import OutputFile

__all__ = ["command"]


@make_command(example="icecore metrics features --out /var/lib/node_exporter/icecore.prom", reads_only=True)
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--out", type=OutputFile(), help="File to write, whole; stdout by default.")
def metrics(store: Path, out: Path | None) -> Outcome:
    """Tell how STORE stands, in the text format of Prometheus.

    Rows, failures, the age of the features, the champion's score, and of each command the last success, the last
    outcome, its duration and memory. watch.metrics of a config does the same at the end of each run.
    """
    text = store_metrics(store)
    samples = sum(not line.startswith(b"#") for line in text.splitlines())
    data = {"store": store, "out": out, "samples": samples}
    if out is None:
        return Outcome(Exit.DONE, data, text.decode().removesuffix("\n"))
    write_bytes(out, text)
    return Outcome(Exit.DONE, data, f"{out}: {samples:,} numbers")


command = metrics
