"""Which bundle a command means: a folder, a bundle of a store by name, or the champion."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click
from icecore.store import RefusedError, champion_of

from .loading import load_config
from .watch_config import StoreConfig

__all__ = ["CHAMPION", "Chosen", "choose_bundle", "store_of"]

CHAMPION = "champion"


class Chosen(NamedTuple):
    """A bundle."""

    path: Path
    """its folder"""
    name: str
    """name of the model that it is kept under"""


def choose_bundle(model: str, *, store: Path | None, name: str) -> Chosen:
    """Find the bundle that a word means.

    Parameters
    ----------
    model
        ``champion``; or ``NAME/BUNDLE``, or ``BUNDLE`` of ``name``, of the store; or a bundle's folder.
    store
        Folder of the store, where one is given.
    name
        Name of the model whose champion is meant.

    Raises
    ------
    UsageError
        When the champion is asked for and no store is given.
    RefusedError
        When nothing was promoted under this name, or the champion's folder is gone.
    """
    if model == CHAMPION:
        if store is None:
            raise click.UsageError("the champion of which store? name it with --store, or a config with --config")
        promotion = champion_of(store, name)
        if promotion is None:
            raise RefusedError(
                f"{store}: no bundle of {name!r} was promoted; `icecore models promote` does so, "
                "or name a bundle by its folder"
            )
        return Chosen(promotion.path, name)
    if store is not None:
        for path in (store / "models" / model, store / "models" / name / model):
            if path.is_dir():
                return Chosen(path, path.parent.name)
    return Chosen(Path(model), Path(model).absolute().parent.name)


def store_of(store: Path | None, config: Path | None) -> Path | None:
    """Give the store of an option, else that of a config file, which names it relative to its own folder.

    Raises
    ------
    ConfigError
        When the file cannot be read or names none.
    """
    if store is not None or config is None:
        return store
    return load_config(StoreConfig, config).store
