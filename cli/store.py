"""``icecore store``: look into a feature store."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from icecore.store import FeatureSet, FeatureStore, SetNotFoundError, SetStatus, store_status

from .app import command as make_command
from .exits import Exit, Outcome
from .store_care import COMMANDS as CARE_COMMANDS
from .store_data import COMMANDS as DATA_COMMANDS
from .store_history import COMMANDS as HISTORY_COMMANDS
from .table import table

__all__ = ["command"]

STORE = click.argument("store", type=click.Path(path_type=Path))


@click.group(name="store", epilog="\b\nExample:\n  icecore store show features photos")
def command() -> None:
    """Look into a feature store and keep it in order."""


@command.add_command
@make_command(example="icecore store ls features", reads_only=True)
@STORE
def ls(store: Path) -> Outcome:
    """List the feature sets of STORE."""
    with FeatureStore.open(store) as opened:
        rows = [_summary(opened[one.name], one) for one in store_status(store).sets]
    header = ["set", "images", "failed", "layers", "version", "architecture"]
    text = table(header, [[row[key] for key in header] for row in rows]) if rows else f"{store}: no feature sets yet"
    return Outcome(Exit.DONE, {"sets": rows}, text)


@command.add_command
@make_command(example="icecore store show features photos", reads_only=True)
@STORE
@click.argument("set_name", metavar="SET")
def show(store: Path, set_name: str) -> Outcome:
    """Show what SET holds, and the contract that its features keep."""
    with FeatureStore.open(store) as opened:
        if set_name not in opened.sets():
            raise click.UsageError(str(SetNotFoundError(store, set_name, opened.sets())))
        features = opened[set_name]
        coverage = features.coverage()
        contract = features.contract.to_json()
        failures = [failure._asdict() for failure in features.failures()]
        data = {
            **_summary(features, store_status(store, set_name).sets[0]),
            "generation": features.generation,
            "columns": [{"name": c.name, "width": c.width, "dtype": c.dtype, "images": n} for c, n in coverage.items()],
            "contract": contract,
            "contract_hash": features.contract.hash,
            "source": features.source,
            "library_versions": features.library_versions,
            "failures": failures,
        }
    lines = [
        f"{set_name}: {data['images']} images, {len(failures)} failed, version {data['version']}",
        "",
        table(["column", "width", "dtype", "images"], [[c.name, c.width, c.dtype, n] for c, n in coverage.items()]),
        "",
        f"contract {data['contract_hash']}",
        *(f"  {key}: {value}" for key, value in contract.items() if key != "preprocess"),
        "  preprocess:",
        *(f"    {step}" for step in contract["preprocess"]),
    ]
    if failures:
        lines += [
            "",
            table(
                ["failed", "kind", "reason", "attempts"],
                [[f["id"], f["kind"], f["reason"], f["attempts"]] for f in failures],
            ),
        ]
    return Outcome(Exit.DONE, data, "\n".join(lines))


@command.add_command
@make_command(example="icecore store compact features --dry-run")
@STORE
@click.argument("set_name", metavar="[SET]", required=False)
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and write nothing.")
def compact(store: Path, set_name: str | None, dry_run: bool) -> Outcome:
    """Merge the segments of STORE, or of one SET, into as few as can be; old versions stay readable until gc."""
    with FeatureStore.open(store) as opened:
        try:
            done = opened.compact(set_name, dry_run=dry_run, command="icecore store compact")
        except SetNotFoundError as exc:
            raise click.UsageError(str(exc)) from exc
    verb = "would be merged" if dry_run else "merged"
    lines = [
        f"{one.set_name}: {one.segments_before:,} segments {verb} into {one.segments_after:,}, "
        f"{one.rows_before:,} rows into {one.rows_after:,}"
        + (f"; version {one.version}, `icecore store gc` frees the old ones" if one.version is not None else "")
        for one in done
    ]
    text = "\n".join(lines) or f"{store}: nothing to merge"
    return Outcome(
        Exit.DONE, {"dry_run": dry_run, "merged": [asdict(one) for one in done]}, text, nothing_to_do=not done
    )


for made in (*CARE_COMMANDS, *DATA_COMMANDS, *HISTORY_COMMANDS):
    command.add_command(made)


def _summary(features: FeatureSet, status: SetStatus) -> dict[str, object]:
    return {
        "set": features.name,
        "images": status.summary.images,
        "failed": sum(status.summary.failed.values()),
        "layers": len(features.columns),
        "version": status.version,
        "architecture": features.contract.architecture,
    }
