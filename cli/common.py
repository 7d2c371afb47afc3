"""The options that every command has, and their values."""

from __future__ import annotations

import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import OutputFile

if TYPE_CHECKING:
    from .exits import Asked

__all__ = ["Common", "common_options"]

_OF_ALL = (
    click.option("--json", "as_json", is_flag=True, help="Print the outcome as one JSON line, last."),
    click.option("--result-file", type=OutputFile(), help="Also write the outcome there, as JSON."),
    click.option(
        "--success-on",
        metavar="CODES",
        envvar="ICECORE_SUCCESS_ON",
        show_envvar=True,
        callback=lambda context, option, value: _success_on(value),
        help="End with 0 instead of these codes, such as 5,6,7.",
    ),
    click.option(
        "--skip-code",
        type=click.IntRange(0, 255),
        envvar="ICECORE_SKIP_CODE",
        show_envvar=True,
        callback=lambda context, option, value: _skip_code(value),
        help="End with this code, such as 99, when there was nothing to do.",
    ),
    click.option(
        "--log-json",
        type=OutputFile(allow_dash=True),
        help="Append one JSON line an event to this file; - for stderr. By default watch.log of the config.",
    ),
)
_OF_CHANGES = (
    click.option(
        "--heartbeat",
        type=OutputFile(),
        help="File rewritten while the run is at work, so that a monitor may alarm on its age. "
        "By default watch.heartbeat of the config.",
    ),
    click.option(
        "--max-minutes",
        type=click.FloatRange(0, 100_000, min_open=True),
        help="Stop after this time as SIGTERM does: what was committed is kept, and the code is 130.",
    ),
)


@dataclass(frozen=True)
class Common:
    """What the options that every command has say."""

    as_json: bool
    """print the outcome as JSON"""
    result_file: Path | None
    """file for the outcome"""
    asked: Asked
    """exit codes that are wanted"""
    log: Path | None
    """file for events"""
    heartbeat: Path | None
    """file kept fresh"""
    max_minutes: float | None
    """time limit"""
    changes: bool
    """whether the command changes something, this time"""

    @classmethod
    def taken_from(cls, options: MutableMapping[str, Any], *, changes: bool) -> Common:
        """Take these options out of all that a command was given; a dry run changes nothing."""
        from .exits import Asked

        asked = Asked(options.pop("success_on"), options.pop("skip_code"))
        log, heartbeat = options.pop("log_json"), options.pop("heartbeat", None)
        is_dry = bool(options.get("dry_run"))
        return cls(
            as_json=options.pop("as_json"),
            result_file=options.pop("result_file"),
            asked=asked,
            log=None if is_dry else log,
            heartbeat=None if is_dry else heartbeat,
            max_minutes=options.pop("max_minutes", None),
            changes=changes and not is_dry,
        )


def common_options(command: Callable[..., Any], *, changes: bool) -> Callable[..., Any]:
    """Add the options that every command has, and those of commands that change something."""
    for option in reversed([*_OF_ALL, *(_OF_CHANGES if changes else ())]):
        command = option(command)
    return command


def _success_on(value: str | None) -> frozenset[int]:
    from .exits import MAY_BE_SUCCESS

    if not value:
        return frozenset()
    known = sorted(map(int, MAY_BE_SUCCESS))
    if not re.fullmatch(r"\d+(\s*,\s*\d+)*", value.strip()) or not {*map(int, value.split(","))} <= {*known}:
        told = f"{value!r}: expected some of {', '.join(map(str, known))}, with commas; a failure stays one"
        raise click.BadParameter(told)
    return frozenset(map(int, value.split(",")))


def _skip_code(value: int | None) -> int | None:
    from .exits import Exit

    if value and value in {*map(int, Exit)}:
        raise click.BadParameter(
            f"{value} means {Exit(value).name.lower().replace('_', ' ')}; take another, such as 99"
        )
    return value
