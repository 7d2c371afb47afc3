"""Options and types of options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["OutputFile", "config_argument", "set_option"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class OutputFile(click.Path):
    """A file to write, refused before any work is done when its folder is not there."""

    def __init__(self, *, allow_dash: bool = False) -> None:
        super().__init__(path_type=Path, dir_okay=False, allow_dash=allow_dash)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Give the path as a ``Path``."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"{str(path)!r}: there is no folder {str(path.parent)!r}; make it first", param, ctx)
        return path


config_argument: Decorator = click.argument("config", type=click.Path(path_type=Path))
"""the TOML file of a job"""

set_option: Decorator = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config key: --set compute.batch_size=32"
)
"""overrides on top of the file, in TOML"""
