"""``icecore doctor``: what will break here, what would be faster, and the cure."""

from __future__ import annotations

import importlib
import platform
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import command as make_command
from .exits import Exit, Outcome
from .options import set_option
from .table import counted, table

if TYPE_CHECKING:
    from icecore.store import Check

__all__ = ["check_libraries", "command"]

PYTHONS = ((3, 11), (3, 14))
"""from this version of Python, and below that one"""
SQLITE = (3, 37)
LIBRARIES = {"numpy": "numpy", "h5py": "h5py", "scikit-learn": "sklearn", "xgboost": "xgboost", "skops": "skops.io"}
"""name -> module that proves it"""


@make_command(example="icecore doctor features", reads_only=True)
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.option(
    "--precision",
    type=click.Path(path_type=Path),
    metavar="CONFIG",
    help="Instead compute images of this config's source in every precision of the device, and tell how alike the "
    "features are to those in fp32.",
)
@click.option("--images", type=click.IntRange(1, 100_000), default=64, show_default=True, help="Images drawn for it.")
@set_option
def doctor(store: Path | None, precision: Path | None, images: int, overrides: tuple[str, ...]) -> Outcome:
    """Look at libraries, devices and disk, and at STORE where it is named; says what will break, and the cure.

    Ends with 0 when nothing will break, and with 1 otherwise.
    """
    if precision is not None:
        from .precision import compare

        if store is not None:
            raise click.UsageError("--precision takes the store's place: name one of the two")
        return compare(precision, overrides, images)
    from icecore.extract import check_machine
    from icecore.store import check_disk, check_store

    checks = [*check_libraries(), *check_machine(), *check_disk(store or Path())]
    if store is not None:
        checks += check_store(store)
    return _outcome(checks)


def check_libraries() -> Iterator[Check]:
    """Look at Python, at icecore itself and at what the light install brings."""
    from importlib import metadata

    from icecore.store import Check

    first, beyond = PYTHONS
    told = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if first <= sys.version_info[:2] < beyond:
        yield Check("Python", "ok", told, facts={"version": platform.python_version()})
    else:
        yield Check("Python", "bad", told, f"icecore is made for {first[0]}.{first[1]} to {beyond[0]}.{beyond[1] - 1}")
    yield Check("icecore", "ok", metadata.version("icecore"), facts={"version": metadata.version("icecore")})
    for name, module in LIBRARIES.items():
        yield _library(name, module)
    if sqlite3.sqlite_version_info >= SQLITE:
        yield Check("SQLite", "ok", sqlite3.sqlite_version, facts={"version": sqlite3.sqlite_version})
    else:
        yield Check("SQLite", "bad", sqlite3.sqlite_version, "a store needs 3.37: take a Python that brings it")


def _library(name: str, module: str) -> Check:
    from icecore.store import Check

    try:
        importlib.import_module(module)
        found = importlib.import_module(module.partition(".")[0])
    except Exception as exc:  # noqa: BLE001 - a broken library may raise whatever it likes
        told = f"cannot be imported ({(str(exc).splitlines() or [''])[0] or type(exc).__name__})"
        return Check(name, "bad", told, "pip install --force-reinstall icecore")
    version = str(found.__version__)
    told = f"{version} with HDF5 {found.version.hdf5_version}" if name == "h5py" else version
    return Check(name, "ok", told, facts={"version": version})


def _outcome(checks: Sequence[Check]) -> Outcome:
    bad = [check for check in checks if check.health == "bad"]
    lines = [table(["", "what", "found"], [[check.health, check.name, check.found] for check in checks]), ""]
    lines += [f"{check.health}: {check.name}: {check.cure}" for check in checks if check.cure]
    lines.append(f"{counted(len(bad), 'thing')} will break" if bad else "nothing will break")
    data = {"ok": not bad, "checks": [asdict(check) for check in checks]}
    error = "; ".join(f"{check.name}: {check.found}" for check in bad)
    return Outcome(Exit.FAILED if bad else Exit.DONE, data, "\n".join(lines), error=error)


command = doctor
