"""``icecore store status | errors | du | export``: how a store stands, what failed, where its bytes are; and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import click
from icecore.store import (
    AmbiguousLayerError,
    FeatureStore,
    LayerNotFoundError,
    SetNotFoundError,
    SetStatus,
    StoreStatus,
    StoreUsage,
    VersionNotFoundError,
    store_status,
    store_usage,
)
from icecore.store import export as export_features
from icecore.store.contract import Dtype
from icecore.store.durable import write_bytes
from icecore.store.exporting import ExportFormat

from .app import command as make_command
from .app import progress_bar
from .exits import Exit, Outcome
from .options import OutputFile
from .table import counted, csv_line, human_bytes, table

__all__ = ["COMMANDS"]

STORE = click.argument("store", type=click.Path(path_type=Path))
ONE_SET = click.argument("set_name", metavar="[SET]", required=False)

KINDS = ("read", "transient", "decode", "too-large", "unsupported", "value")
FAILURE = ("set", "id", "kind", "reason", "attempts", "first_at", "last_at")


@make_command(example="icecore store status features photos", reads_only=True)
@STORE
@ONE_SET
def status(store: Path, set_name: str | None) -> Outcome:
    """Tell how STORE, or one SET, stands: images, failures, what is pending, who writes, and a digest of it all.

    The digest changes when what readers see changes, and not otherwise.
    """
    try:
        found = store_status(store, set_name)
    except SetNotFoundError as exc:
        raise click.UsageError(str(exc)) from exc
    return Outcome(Exit.DONE, _status_data(found), _status_text(found))


def _status_data(found: StoreStatus) -> dict[str, Any]:
    return {
        "store": found.path,
        "digest": found.digest,
        "catalog_format": found.catalog_format,
        "locked": found.is_written,
        "writer": asdict(found.writer) if found.writer else None,
        "leftovers": found.leftovers,
        "sets": [
            {
                "set": one.name,
                **asdict(one.summary),
                "version": one.version,
                "since": one.since,
                "last_commit": one.last_commit,
                "age_seconds": round(one.age, 1),
                "generation": one.generation,
                "contract_hash": one.contract_hash,
                "segments": one.segments,
                "bytes": one.bytes,
                "tags": one.tags,
                "pending": asdict(one.pending) if one.pending else None,
            }
            for one in found.sets
        ],
    }


def _status_text(found: StoreStatus) -> str:
    lines = [f"{found.path}: digest {found.digest[:16]}, catalog format {found.catalog_format}"]
    if found.writer is not None:
        w = found.writer
        lines.append(f"being written by pid {w.pid} on {w.host} ({w.command}) since {w.since}")
    elif found.is_written:
        lines.append("being written")
    if found.leftovers:
        lines.append(f"{found.leftovers} segments left by a run that was cut off; the next run sweeps them")
    header = ["set", "images", "failed", "version", "since", "last commit", "segments", "size"]
    if found.sets:
        lines += ["", table(header, [_status_row(one) for one in found.sets])]
    else:
        lines += ["no feature sets yet"]
    notes = [note for one in found.sets for note in _notes(one)]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _status_row(one: SetStatus) -> list[object]:
    summary = one.summary
    return [
        one.name,
        f"{summary.images:,}",
        f"{sum(summary.failed.values()):,}",
        one.version,
        one.since,
        f"{_duration(one.age)} ago",
        one.segments,
        human_bytes(one.bytes),
    ]


def _notes(one: SetStatus) -> list[str]:
    notes = []
    if one.summary.failed:
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in one.summary.failed.items())
        notes.append(f"{one.name}: failed {kinds}; `icecore store errors` lists them")
    for name, n in one.summary.lacking.items():
        notes.append(f"{one.name}: {n:,} images lack {name}; `icecore extract` completes it")
    if (pending := one.pending) is not None:
        what = "is being filled" if pending.generation != one.generation else "has commits that are not read yet"
        lacks = f"{pending.lacking:,} of {pending.images:,} images lack features"
        notes.append(f"{one.name}: generation {pending.generation[:12]} {what}: {lacks}")
    if one.tags:
        notes.append(f"{one.name}: tags " + ", ".join(f"{name} ({version})" for name, version in one.tags.items()))
    return notes


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return counted(int(seconds), "second")


@make_command(example="icecore store errors features photos --kind decode --csv broken.csv", reads_only=True)
@STORE
@ONE_SET
@click.option("--kind", type=click.Choice(KINDS), help="Only failures of this kind.")
@click.option("--csv", "csv_file", type=OutputFile(), help="Also write them there, as CSV.")
def errors(store: Path, set_name: str | None, kind: str | None, csv_file: Path | None) -> Outcome:
    """List the images of STORE, or of one SET, that gave no features, with the reason."""
    with FeatureStore.open(store) as opened:
        if set_name is not None and set_name not in opened.sets():
            raise click.UsageError(str(SetNotFoundError(store, set_name, opened.sets())))
        rows = [
            {"set": name, **failure._asdict()}
            for name in ([set_name] if set_name else opened.sets())
            for failure in opened[name].failures()
            if kind in (None, failure.kind)
        ]
    counts = dict(sorted(Counter(str(row["kind"]) for row in rows).items()))
    if csv_file is not None:
        write_bytes(csv_file, b"".join([csv_line(FAILURE), *(csv_line([row[key] for key in FAILURE]) for row in rows)]))
    data = {"counts": counts, "failures": rows, **({"csv": csv_file} if csv_file else {})}
    return Outcome(Exit.DONE, data, _errors_text(store, counts, rows))


def _errors_text(store: Path, counts: Mapping[str, int], rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"{store}: no failures"
    header = ["set", "image", "kind", "reason", "attempts", "first", "last"]
    return "\n".join(
        [
            f"{counted(len(rows), 'image')} failed: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()),
            "",
            table(header, [[row[key] for key in FAILURE] for row in rows]),
        ]
    )


@make_command(example="icecore store du features", reads_only=True)
@STORE
def du(store: Path) -> Outcome:
    """Tell where the bytes of STORE are, and how many only earlier versions need."""
    found = store_usage(store)
    return Outcome(Exit.DONE, _usage_data(found), _usage_text(store, found))


def _usage_data(found: StoreUsage) -> dict[str, Any]:
    return {
        "total": found.total,
        "old": found.old,
        "gc_frees": found.gc_frees,
        **({"gc_refuses": found.gc_refuses} if found.gc_refuses else {}),
        "generations": [
            {"set": one.set_name, **{key: value for key, value in asdict(one).items() if key != "set_name"}}
            for one in found.generations
        ],
        **found.rest,
        "missing_segments": found.missing,
    }


def _usage_text(store: Path, found: StoreUsage) -> str:
    rows: list[list[object]] = []
    for one in found.generations:
        rows.append([one.set_name, one.generation[:12], one.state, f"{one.segments} segments", human_bytes(one.bytes)])
        rows += [["", "", "", name, human_bytes(size)] for name, size in one.columns.items()]
        rows.append(["", "", "", "(ids, hashes, headers)", human_bytes(one.overhead)])
        if one.old:
            rows.append(["", "", "", "(only earlier versions need)", human_bytes(one.old)])
    rows += [["", "", "", what, human_bytes(size)] for what, size in found.rest.items() if size]
    rows.append(["", "", "", "total", human_bytes(found.total)])
    lines = [table(["set", "generation", "state", "what", "size"], rows)]
    if found.gc_frees is None:
        lines += ["", found.gc_refuses]
    elif found.gc_frees:
        lines += ["", f"{store}: `icecore store gc` would free {human_bytes(found.gc_frees)} of segments"]
    if found.missing:
        lines += ["", f"{store}: {found.missing} segments are missing; `icecore store verify` names them"]
    return "\n".join(lines)


@make_command(example="icecore store export features photos --layer layer4 --to layer4.npy", reads_only=True)
@STORE
@click.argument("set_name", metavar="SET")
@click.option("--layer", "layers", multiple=True, help="Column to write; may be given several times.  [default: all]")
@click.option("--to", "path", type=OutputFile(), required=True, help="File to write.")
@click.option(
    "--format",
    "form",
    type=click.Choice(get_args(ExportFormat)),
    help="What to write.  [default: by the file's ending]",
)
@click.option("--version", metavar="VERSION", help="Version, or a tag.  [default: what readers see]")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Type of the values.  [default: as stored]")
@click.option(
    "--missing",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="Where an image lacks a column: refuse, or drop the image.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(
    store: Path,
    set_name: str,
    layers: tuple[str, ...],
    path: Path,
    form: ExportFormat | None,
    version: str | None,
    dtype: Dtype | None,
    missing: Literal["refuse", "drop"],
    force: bool,
) -> Outcome:
    """Write features of SET and the ids of their rows to one file for other tools.

    .npy (with NAME.ids.json beside it), .parquet and .h5 hold the values; --format vds writes a small HDF5 file that
    shows those of the store, to be kept in or beside it.
    """
    with FeatureStore.open(store) as opened, progress_bar("export", unit="rows") as progress:
        try:
            features = opened[set_name]
            done = export_features(
                features,
                layers or None,
                path,
                format=form,
                version=version,
                dtype=dtype,
                missing=missing,
                overwrite=force,
                progress=progress,
            )
        except (SetNotFoundError, LayerNotFoundError, AmbiguousLayerError, VersionNotFoundError) as exc:
            raise click.UsageError(str(exc)) from exc
    data = {
        "files": [str(file) for file in done.files],
        "format": done.format,
        "set": set_name,
        "version": done.version,
        "rows": done.rows,
        "columns": [{"name": column.name, "width": column.width} for column in done.columns],
        "bytes": done.bytes,
    }
    names = ", ".join(column.name for column in done.columns)
    text = f"{path}: {done.rows:,} rows of {names}, version {done.version}, {human_bytes(done.bytes)}"
    return Outcome(Exit.DONE, data, text)


COMMANDS = (status, errors, du, export)
"""what this module adds to ``icecore store``"""
