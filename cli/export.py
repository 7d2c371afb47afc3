"""``icecore export``: a bundle in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from .app import command as make_command
from .exits import Exit, Outcome
from .options import OutputFile
from .table import human_bytes

if TYPE_CHECKING:
    from icecore.train import Bundle
    from numpy.typing import NDArray

__all__ = ["command"]

ROWS = 1024
"""Stored rows that the file is held against."""


@make_command(example="icecore export champion model.onnx --store features", reads_only=True)
@click.argument("model", metavar="BUNDLE")
@click.argument("out", type=OutputFile())
@click.option("--to", "form", type=click.Choice(["onnx"]), default="onnx", show_default=True, help="Format.")
@click.option("--store", type=click.Path(path_type=Path), help="Store of the champion, and of features to check with.")
@click.option("--config", type=click.Path(path_type=Path), help="Config file that names the store.")
@click.option("--name", default="default", show_default=True, help="Name of the model whose champion is meant.")
def export(model: str, out: Path, form: str, store: Path | None, config: Path | None, name: str) -> Outcome:
    """Write BUNDLE, a folder, NAME/BUNDLE of a store or `champion`, to OUT.

    The file takes features and gives classes and probabilities. It is held against the bundle on random rows, and on
    those of the store that it was trained on, before it is written.
    """
    from icecore.train import load_bundle
    from icecore.train.onnx_export import export_onnx

    from .model_choice import choose_bundle, store_of

    store = store_of(store, config)
    bundle = load_bundle(choose_bundle(model, store=store, name=name).path)
    done = export_onnx(bundle, out, features=None if store is None else _features(store, bundle))
    facts = {"bundle": str(bundle.path), "format": form, "out": str(out), "bytes": done.size}
    checked = f"as the bundle on {done.rows:,} rows, numbers within {done.difference:.1g}"
    return Outcome(
        Exit.DONE,
        {**facts, "rows_checked": done.rows, "difference": done.difference},
        f"{bundle.path.name} -> {out}: {human_bytes(done.size)}; {checked}",
    )


def _features(store: Path, bundle: Bundle) -> NDArray[np.float32]:
    """Read some of the rows that a bundle was trained on."""
    from icecore.store import FeatureStore

    with FeatureStore.open(store) as opened:
        features = opened[bundle.card["set"]].as_of(bundle.card["version"])
        with features.array([column.name for column in bundle.columns], missing="drop", dtype="float32") as array:
            X: NDArray[np.float32] = array[np.linspace(0, len(array) - 1, min(ROWS, len(array))).astype(int)]
            return X


command = export
