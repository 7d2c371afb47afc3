"""``icecore store log | tag | revert | diff | drop | gc``: what was, what of it is kept, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from icecore.store import (
    Collected,
    FeatureStore,
    GenerationNotFoundError,
    ImageDiff,
    SetNotFoundError,
    StoreDiff,
    Version,
    VersionNotFoundError,
)

from .app import command as make_command
from .exits import Exit, Outcome
from .table import counted, one_line, table

__all__ = ["COMMANDS"]

STORE = click.argument("store", type=click.Path(path_type=Path))
SET = click.argument("set_name", metavar="SET")
NUMBERS = ("added", "changed", "removed", "failed")


@make_command(example="icecore store log features photos --limit 10", reads_only=True)
@STORE
@click.argument("set_name", metavar="[SET]", required=False)
@click.option("--limit", type=click.IntRange(min=1), help="Show the newest runs only.  [default: all]")
def log(store: Path, set_name: str | None, limit: int | None) -> Outcome:
    """List the versions of each SET, the newest first, a line a run."""
    with _opened(store) as opened:
        names = opened.sets() if set_name is None else [set_name]
        runs = {name: _runs(opened[name].log())[:limit] for name in names}
        current = {name: opened[name].version for name in names}
    data = [
        {"set": name, "versions": [{**asdict(v), "readable": v.readable} for run in runs[name] for v in run]}
        for name in names
    ]
    parts = [f"{name}\n{table(_LOG_HEADER, [_log_line(run, current[name]) for run in runs[name]])}" for name in names]
    return Outcome(Exit.DONE, {"sets": data}, "\n\n".join(parts) or f"{store}: no feature sets yet")


@make_command(example="icecore store tag features photos before-cleaning --version 12")
@STORE
@SET
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--version", metavar="VERSION", help="Version, or another tag.  [default: what readers see]")
@click.option("--move", is_flag=True, help="Move the tag if it stands at another version.")
@click.option("--delete", is_flag=True, help="Take the tag away; the version stays until gc.")
def tag(store: Path, set_name: str, name: str | None, version: str | None, move: bool, delete: bool) -> Outcome:
    """Name a version of SET, so that gc keeps it; or list the tags."""
    if (name is None and (version is not None or move or delete)) or (delete and (version is not None or move)):
        raise click.UsageError("say which tag: NAME; and --delete stands alone")
    with _opened(store) as opened:
        features = opened[set_name]
        number = None
        if name is not None:
            number = (
                features.untag(name, command="icecore store tag --delete")
                if delete
                else features.tag(name, version, move=move, command="icecore store tag")
            )
        tags = features.tags()
    data = {"set": set_name, "tag": name, "version": number, "tags": tags}
    if name is None:
        rows = [[tag, at] for tag, at in tags.items()]
        return Outcome(Exit.DONE, data, table(["tag", "version"], rows) if rows else f"{set_name}: no tags yet")
    told = f"tag {name} taken away from version {number}" if delete else f"version {number} is tagged {name}"
    return Outcome(Exit.DONE, data, f"{set_name}: {told}")


@make_command(example="icecore store revert features photos before-cleaning --dry-run")
@STORE
@SET
@click.argument("version")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
def revert(store: Path, set_name: str, version: str, dry_run: bool) -> Outcome:
    """Show readers of SET an earlier VERSION again.

    VERSION is a number or a tag. It becomes a new version; nothing is deleted. The next extract that runs to its end
    moves readers to what the folder holds.
    """
    with _opened(store) as opened:
        done = opened[set_name].revert(version, dry_run=dry_run, command="icecore store revert")
    data = {"set": set_name, "dry_run": dry_run, "to": done.to, "version": done.version, **done.images.counts}
    if dry_run:
        told = f"{set_name}: readers would see version {done.to} again"
    elif done.version is None:
        return Outcome(Exit.DONE, data, f"{set_name}: readers see version {done.to} already")
    else:
        told = f"{set_name}: version {done.version} is version {done.to} again"
    return Outcome(Exit.DONE, data, f"{told}: {_counts(done.images)}")


@make_command(example="icecore store diff features photos@before-cleaning photos --ids", reads_only=True)
@STORE
@click.argument("a")
@click.argument("b")
@click.option("--ids", is_flag=True, help="List the images that differ.")
def diff(store: Path, a: str, b: str, ids: bool) -> Outcome:
    """Compare two states of STORE: contracts field by field, columns, images.

    A and B are each a set, SET@VERSION, SET@TAG, a generation's uuid (6 digits or more), or a bundle's folder.
    Images are compared where both are versions of one set.
    """
    with _opened(store) as opened:
        found = opened.diff(a, b)
    images = found.images
    data: dict[str, Any] = {
        "a": found.a,
        "b": found.b,
        "same": found.is_empty,
        "contract": [{"field": d.field, "a": d.ours, "b": d.theirs} for d in found.contract],
        "columns_only_a": [column.name for column in found.only_a],
        "columns_only_b": [column.name for column in found.only_b],
        "images": None if images is None else {**images.counts, **({"ids": asdict(images)} if ids else {})},
    }
    return Outcome(Exit.DONE, data, "\n".join(_diff_lines(found, ids=ids)))


@make_command(example="icecore store drop features 1b2f9c --dry-run")
@STORE
@click.argument("generation")
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
def drop(store: Path, generation: str, dry_run: bool) -> Outcome:
    """Delete a GENERATION that was given up: its uuid, or 6 digits of it or more."""
    with _opened(store) as opened:
        done = opened.drop(generation, dry_run=dry_run, command="icecore store drop")
    text = (
        f"{done.set_name}: generation {done.generation} {'would be dropped' if dry_run else 'dropped'}: "
        f"{counted(done.segments, 'segment')}, {counted(done.rows, 'row')}, {done.bytes:,} bytes"
    )
    return Outcome(Exit.DONE, {"dry_run": dry_run, **asdict(done)}, text)


@make_command(example="icecore store gc features --keep-days 30 --dry-run")
@STORE
@click.option(
    "--keep-versions", type=click.IntRange(min=1), default=1, show_default=True, help="Keep the newest of each set."
)
@click.option(
    "--keep-days", type=click.FloatRange(0, 36_500), default=0, help="Keep what readers have seen in the last days."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
def gc(store: Path, keep_versions: int, keep_days: float, dry_run: bool) -> Outcome:
    """Delete what no kept version of STORE needs, to the row.

    Kept are what readers see, versions with a tag or a bundle under STORE/models, those of the options, and a
    generation that is being filled.
    """
    with _opened(store) as opened:
        done = opened.collect(
            keep_versions=keep_versions, keep_days=keep_days, dry_run=dry_run, command="icecore store gc"
        )
    data = {**asdict(done), "bytes": done.bytes}
    lines = [line for one in done.sets for line in _gc_lines(one, dry_run=dry_run)]
    catalog = f", {done.catalog_bytes:,} of them of the catalog" if done.catalog_bytes else ""
    lines.append(f"{store}: {done.bytes:,} bytes {'would be ' if dry_run else ''}freed{catalog}")
    if done.damaged:
        told = "\n".join(f"  {line}" for line in done.damaged)
        return Outcome(
            Exit.STORE_INVALID,
            data,
            "\n".join(lines),
            f"{len(done.damaged)} damaged segments were left as they are; `icecore store verify` tells all\n{told}",
        )
    return Outcome(Exit.DONE, data, "\n".join(lines))


COMMANDS = (log, tag, revert, diff, drop, gc)
"""what this module adds to ``icecore store``"""

_LOG_HEADER = ["version", "when", "what", *NUMBERS, "generation", "readable", "kept by", "command"]


@contextmanager
def _opened(store: Path) -> Iterator[FeatureStore]:
    """Open a store; what the command line names and is not there is an error of usage."""
    with FeatureStore.open(store) as opened:
        try:
            yield opened
        except (SetNotFoundError, VersionNotFoundError, GenerationNotFoundError) as exc:
            raise click.UsageError(str(exc)) from exc


def _runs(versions: Sequence[Version]) -> list[list[Version]]:
    """Group neighbouring commits of one run; those without a run's name, and of another kind, stand alone."""
    return [list(group) for _, group in groupby(versions, key=lambda v: (v.run or v.number, v.kind))]


def _log_line(run: Sequence[Version], current: int) -> list[object]:
    newest, oldest = run[0], run[-1]
    number = str(newest.number) if newest is oldest else f"{oldest.number}-{newest.number}"
    what = f"revert to {newest.as_of}" if newest.kind == "revert" else newest.kind
    names = [f"{name}@{v.number}" if v is not newest else name for v in run for name in (*v.tags, *v.bundles)]
    if newest.number == current:
        readable = "now"
    elif newest.as_of is None:
        readable = "-"
    else:
        readable = "yes" if newest.readable else "collected"
    sums = [sum(getattr(v, what) for v in run) for what in NUMBERS]
    return [number, newest.created, what, *sums, newest.generation[:8], readable, ", ".join(names), newest.command]


def _counts(images: ImageDiff) -> str:
    added, removed, changed = (f"{images.counts[what]:,}" for what in ("added", "removed", "changed"))
    return f"{added} images added, {removed} removed, {changed} changed"


def _diff_lines(found: StoreDiff, *, ids: bool) -> Iterator[str]:
    yield f"a: {found.a}"
    yield f"b: {found.b}"
    if found.is_empty:
        yield "the same"
        return
    if not found.contract:
        yield "the same contract"
    for d in found.contract:
        yield f"  {d.field}: {d.ours!r} in a, {d.theirs!r} in b"
    for where, columns in (("a", found.only_a), ("b", found.only_b)):
        if columns:
            yield f"columns only in {where}: {', '.join(column.name for column in columns)}"
    if found.images is not None:
        yield f"images, from a to b: {_counts(found.images)}"
        if ids:
            for sign, names in (("+", found.images.added), ("-", found.images.removed), ("~", found.images.changed)):
                yield from (f"  {sign} {one_line(name)}" for name in names)


def _gc_lines(one: Collected, *, dry_run: bool) -> Iterator[str]:
    would = "would be " if dry_run else ""
    gone = f"{counted(len(one.collected), 'version')} {would}collected"
    segments = f"{counted(one.segments, 'segment')} {would}deleted"
    yield f"{one.set_name}: {gone}, {segments}, {one.rewritten:,} {would}written anew"
    yield f"  {counted(one.rows, 'row')}, {one.bytes:,} bytes"
    yield from (f"  version {kept.version} stays: {', '.join(kept.because)}" for kept in one.kept)
