"""How every command ends: one outcome for the exit code, the result file, hooks, the record, metrics and the last line.

The file comes first: it must not be yesterday's whatever happens to the rest.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .exits import Exit, Outcome
from .output import echo, jsonable
from .stopping import stops, undisturbed

if TYPE_CHECKING:
    from .common import Common
    from .running import Running

__all__ = ["finish", "finish_usage"]


def finish(outcome: Outcome, running: Running, common: Common, *, to_stderr: bool) -> NoReturn:
    """Tell an outcome to all who want to know, and exit with its code."""
    name = running.command
    with undisturbed():
        outcome = running.end(common.asked.applied(outcome))
        if common.result_file is not None:
            outcome = _write_result(common.result_file, outcome, name)
        running.close_record(outcome)
    if common.changes:
        _call_hooks(outcome, running)
    with undisturbed():
        if common.changes:
            _write_metrics(running)
        if running.trouble and not outcome.is_failure:  # else what failed has the same reason, and is told
            echo(f"icecore {name}: {running.trouble}", err=True)
        if outcome.error:
            echo(f"icecore {name}: {outcome.error}", err=True)
        if outcome.text and not common.as_json:
            echo(outcome.text, err=to_stderr)
        if common.as_json:
            echo(json.dumps(jsonable(outcome.to_json(name))))
    sys.exit(outcome.exit_code)


def finish_usage(message: str, name: str, args: Sequence[str]) -> None:
    """Give the object of a command line that could not be parsed, where it asks for one."""
    outcome = Outcome(Exit.USAGE, error=message)
    apart = [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--result-file=") else [arg])]
    file = next((after for option, after in pairwise(apart) if option == "--result-file"), None)
    if file is not None and Path(file).parent.is_dir() and not Path(file).is_dir():
        outcome = _write_result(Path(file), outcome, name)
    if "--json" in args:
        echo(json.dumps(outcome.to_json(name)))


def _write_result(path: Path, outcome: Outcome, name: str) -> Outcome:
    """Write the outcome's object; give the outcome, which is a failure when that cannot be done."""
    from icecore.store.durable import write_bytes

    try:
        write_bytes(path, json.dumps(jsonable(outcome.to_json(name)), indent=2).encode() + b"\n")
    except OSError as exc:
        told = f"{path}: the outcome cannot be written there ({exc.strerror}); it was: {outcome.meaning}"
        error = "\n".join(filter(None, [outcome.error, told]))
        return replace(outcome, code=Exit.FAILED, returned=None, error=error)
    return outcome


def _call_hooks(outcome: Outcome, running: Running) -> None:
    """Call the hooks of the config; what goes wrong is told and recorded, and changes nothing."""
    if running.hooks is None:
        return
    from .hooks import call_hooks

    told: Mapping[str, Any] = jsonable(outcome.to_json(running.command))
    facts = {
        "ICECORE_COMMAND": running.command,
        "ICECORE_EXIT_CODE": str(outcome.exit_code),
        "ICECORE_OUTCOME_CODE": str(int(outcome.code)),
        "ICECORE_RUN": running.run_id or "",
        "ICECORE_STORE": "" if running.store is None else str(running.store.absolute()),
    }
    with stops(None):
        found = call_hooks(
            running.hooks,
            outcome,
            {**told, "host": socket.gethostname(), "store": facts["ICECORE_STORE"]},
            folder=running.folder,
            name=running.new_id,
            facts=facts,
        )
    for one in found:
        if one.error:
            echo(f"icecore {running.command}: the hook after {one.event!r} failed: {one.to}: {one.error}", err=True)
    if found:
        with undisturbed():
            running.close_record(outcome, [asdict(one) for one in found])


def _write_metrics(running: Running) -> None:
    """Write the file of metrics that the config names; where that fails, say so."""
    path = None if running.watch is None else running.watch.metrics
    if path is None or running.store is None:
        return
    from icecore.store import StoreError, write_metrics

    try:
        write_metrics(running.store, path)
    except (OSError, StoreError) as exc:
        told = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        echo(f"icecore {running.command}: {path}: the metrics cannot be written ({told})", err=True)
