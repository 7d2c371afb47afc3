"""``icecore runs``: what was run on a store, when, and how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from icecore.store import Run, RunNotFoundError, find_run, list_runs

from .app import command as make_command
from .exits import Exit, Outcome
from .table import human_bytes, one_line, table

__all__ = ["command"]

STORE = click.argument("store", type=click.Path(path_type=Path))
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
BAD = frozenset({"failed", "interrupted", "died"})


@click.group(name="runs", epilog="\b\nExample:\n  icecore runs ls features --failed --since 7d")
def command() -> None:
    """See what was run on a feature store, and how it ended."""


@command.add_command
@make_command(example="icecore runs ls features --failed --since 7d", reads_only=True)
@STORE
@click.option("--failed", is_flag=True, help="Only runs that did not do their work: failed, interrupted, died.")
@click.option("--command", "of", metavar="COMMAND", help="Only runs of this command, such as extract.")
@click.option(
    "--since",
    metavar="WHEN",
    callback=lambda context, option, value: _since(value),
    help="Only runs begun since then: 30m, 12h, 7d, 2w, or a date such as 2026-11-22.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the newest.  [default: all]")
def ls(store: Path, failed: bool, of: str | None, since: datetime | None, limit: int | None) -> Outcome:
    """List what changed STORE, or tried to, the newest first.

    A run that was killed has died: its record says that it runs, and its process is gone. The newest 1,000 are kept.
    """
    found = [
        run
        for run in list_runs(store)
        if not (failed and run.state not in BAD)
        and of in (None, run.command)
        and not (since is not None and datetime.fromisoformat(run.started) < since)
    ][:limit]
    return Outcome(Exit.DONE, {"runs": [run.to_json() for run in found]}, _table(found) or f"{store}: no such runs")


@command.add_command
@make_command(example="icecore runs show features 1a2b3c4d", reads_only=True)
@STORE
@click.argument("run")
def show(store: Path, run: str) -> Outcome:
    """Show RUN of STORE: its name, or the beginning or the end of it."""
    try:
        found = find_run(store, run)
    except RunNotFoundError as exc:
        raise click.UsageError(str(exc)) from exc
    facts: dict[str, Any] = {
        "run": found.id,
        "command": " ".join(["icecore", *found.words]),
        "state": _state(found),
        "started": found.started,
        "ended": found.ended or "-",
        "seconds": "-" if found.seconds is None else f"{found.seconds:.1f}",
        "peak memory": "-" if found.peak_memory is None else human_bytes(found.peak_memory),
        "process": f"pid {found.process.pid} on {found.process.host}" + (f", {found.user}" if found.user else ""),
        "config": "-" if found.config is None else f"{found.config} ({(found.config_digest or '')[:16]})",
        "versions": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
    }
    lines = [f"{name:12} {one_line(str(value))}" for name, value in facts.items()]
    lines += [f"{'told':12} {one_line(_hook(hook))}" for hook in found.hooks]
    if found.outcome:
        lines += ["outcome", json.dumps(found.outcome, indent=2)]
    return Outcome(Exit.DONE, {"run": found.to_json()}, "\n".join(lines))


def _table(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    header = ["run", "command", "state", "code", "started", "seconds", "memory", "told"]
    rows = [
        [
            run.id,
            run.command,
            run.state,
            "-" if run.exit_code is None else run.exit_code,
            run.started[:19],
            "-" if run.seconds is None else f"{run.seconds:.1f}",
            "-" if run.peak_memory is None else human_bytes(run.peak_memory),
            _why(run),
        ]
        for run in runs
    ]
    return table(header, rows)


def _why(run: Run) -> str:
    """Give the first line of what went wrong, or the outcome."""
    told = str(run.outcome.get("error") or run.outcome.get("outcome") or "").splitlines()
    return told[0][:100] if told else ""


def _state(run: Run) -> str:
    if run.state == "died":
        return "died: its process is gone, and it did not say how it ended"
    return run.state if run.exit_code is None else f"{run.state}, exit code {run.exit_code}"


def _hook(hook: Any) -> str:
    return f"{hook['event']}: {hook['to']}" + (f": {hook['error']}" if hook["error"] else "")


def _since(value: str | None) -> datetime | None:
    if value is None:
        return None
    if found := re.fullmatch(r"(\d{1,6})([mhdw])", value):
        return datetime.now(UTC) - timedelta(**{UNITS[found[2]]: int(found[1])})
    try:
        day = datetime.fromisoformat(value)
    except ValueError as exc:
        raise click.BadParameter(f"{value!r}: expected 30m, 12h, 7d, 2w, or a date such as 2026-11-22") from exc
    return day if day.tzinfo else day.replace(tzinfo=UTC)
