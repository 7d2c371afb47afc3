"""``icecore models``: which bundle of a name is in use, since when and why; promote another one, or go back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from icecore.store import (
    ExportExistsError,
    Promotion,
    champion_of,
    champions,
    discard_bundles,
    promotions,
)
from icecore.store import promote as put_in_use
from icecore.store import rollback as go_back
from icecore.store.bundle_facts import BundleFacts, diff_bundles, export_bundle, list_bundles
from icecore.store.champions import find_bundle
from icecore.store.errors import RefusedError, StoreNotFoundError, suggest

from .app import command as make_command
from .exits import Exit, Outcome
from .table import counted, human_bytes, table

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["command"]

STORE = click.argument("store", type=click.Path(path_type=Path))
NAME = click.argument("name")
WHY = click.option("--why", required=True, help="Reason, kept in the history.")
CHAMPION = "champion"


@click.group(name="models", epilog="\b\nExample:\n  icecore models show features photos")
def command() -> None:
    """Say which bundle is in use, and change it."""


@command.add_command
@make_command(example="icecore models ls features", reads_only=True)
@STORE
def ls(store: Path) -> Outcome:
    """List the models of STORE with the bundle that is in use of each."""
    used = champions(store)
    rows = [
        {
            "name": name,
            "champion": used[name].bundle if name in used else None,
            "since": used[name].created if name in used else None,
            "who": used[name].who if name in used else None,
            "promotion": used[name].number if name in used else 0,
            "bundles": len(list_bundles(store, name)),
        }
        for name in _names(store, used)
    ]
    header = ["name", "champion", "since", "who", "bundles"]
    shown = [["-" if row[key] is None else row[key] for key in header] for row in rows]
    return Outcome(Exit.DONE, {"models": rows}, table(header, shown) if rows else f"{store}: no bundles yet")


@command.add_command
@make_command(example="icecore models show features photos", reads_only=True)
@STORE
@NAME
@click.option("--limit", type=click.IntRange(min=1), default=10, show_default=True, help="Show the newest only.")
def show(store: Path, name: str, limit: int) -> Outcome:
    """Show the bundles of NAME, and when each was put in use, by whom and why."""
    _require_name(store, name)
    history, bundles = promotions(store, name), list_bundles(store, name)
    champion = history[0].bundle if history else None
    data = {
        "name": name,
        "champion": champion,
        "promotions": [_promotion(each) for each in history],
        "bundles": [asdict(each) for each in bundles],
    }
    header = ["bundle", "model", "layers", "metric", "held out", "version", ""]
    newest = [_bundle_row(each, champion) for each in reversed(bundles[-limit:])]
    when = ["promotion", "when", "what", "bundle", "who", "why"]
    told = [_history_row(each) for each in history[:limit]]
    parts = [table(header, newest), table(when, told) if told else f"{name}: nothing was promoted yet"]
    return Outcome(Exit.DONE, data, "\n\n".join(parts))


@command.add_command
@make_command(example="icecore models diff features photos 20300101T000000Z-0123abcd champion", reads_only=True)
@STORE
@NAME
@click.argument("a")
@click.argument("b", default=CHAMPION)
def diff(store: Path, name: str, a: str, b: str) -> Outcome:
    """Compare two bundles of NAME: rows, settings, scores when trained, libraries.

    A and B are each a bundle's id, the first letters of it, or the word champion, which is B by default.
    """
    with _usage():
        paths = [_bundle(store, name, each) for each in (a, b)]
    found = diff_bundles(*paths)
    rows = [[key, *("-" if value is None else str(value) for value in values)] for key, values in found.items()]
    text = table(["", paths[0].name, paths[1].name], rows) if rows else "the same"
    data = {"a": paths[0].name, "b": paths[1].name, "same": not found}
    fields = [{"field": key, "a": values[0], "b": values[1]} for key, values in found.items()]
    return Outcome(Exit.DONE, {**data, "differences": fields}, text)


@command.add_command
@make_command(example='icecore models promote features photos 20300101T000000Z-0123abcd --why "checked by hand"')
@STORE
@NAME
@click.argument("bundle")
@WHY
def promote(store: Path, name: str, bundle: str, why: str) -> Outcome:
    """Put BUNDLE of NAME in use, without asking the gate. BUNDLE is its id, the first letters of it, or its folder."""
    _require_name(store, name)
    done = put_in_use(store, name, bundle, why=why)
    return Outcome(Exit.DONE, _promotion(done), f"{name}: {done.bundle} is in use (promotion {done.number})")


@command.add_command
@make_command(example='icecore models rollback features photos --why "fails on night photos"')
@STORE
@NAME
@WHY
@click.option("--to", metavar="BUNDLE", help="Bundle that was in use once.  [default: the one before]")
def rollback(store: Path, name: str, why: str, to: str | None) -> Outcome:
    """Put the bundle of NAME in use that was so before; again, the one before that."""
    _require_name(store, name)
    done = go_back(store, name, why=why, to=to)
    told = f"{name}: {done.bundle} is in use again, as in promotion {done.restores} (promotion {done.number})"
    return Outcome(Exit.DONE, _promotion(done), told)


@command.add_command
@make_command(example="icecore models gc features --keep-promotions 5 --dry-run")
@STORE
@click.argument("name", required=False)
@click.option(
    "--keep-promotions", type=click.IntRange(min=1), default=3, show_default=True, help="Keep those used last."
)
@click.option(
    "--keep-days", type=click.FloatRange(0, 36_500), default=30, show_default=True, help="Keep those of the last days."
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and change nothing.")
def gc(store: Path, name: str | None, keep_promotions: int, keep_days: float, dry_run: bool) -> Outcome:
    """Delete bundles, of NAME or of all, that are not in use, were not lately, and are not new."""
    if name is not None:
        _require_name(store, name)
    gone = discard_bundles(store, name, keep_promotions=keep_promotions, keep_days=keep_days, dry_run=dry_run)
    would = "would be " if dry_run else ""
    size = sum(each.bytes for each in gone)
    lines = [f"{each.name}/{each.bundle}: {human_bytes(each.bytes)}" for each in gone]
    lines.append(f"{counted(len(gone), 'bundle')} {would}deleted, {size:,} bytes {would}freed")
    data = {"dry_run": dry_run, "deleted": [asdict(each) for each in gone], "bytes": size}
    return Outcome(Exit.DONE, data, "\n".join(lines))


@command.add_command
@make_command(example="icecore models export features photos --to photos.zip", reads_only=True)
@STORE
@NAME
@click.argument("bundle", default=CHAMPION)
@click.option("--to", required=True, type=click.Path(path_type=Path), help="Folder to make, or a .zip file.")
@click.option("--overwrite", is_flag=True, help="Replace what is there.")
def export(store: Path, name: str, bundle: str, to: Path, overwrite: bool) -> Outcome:
    """Copy BUNDLE of NAME, by default the champion, whole and checked, to a folder or a zip file."""
    with _usage():
        path = _bundle(store, name, bundle)
    try:
        export_bundle(path, to, overwrite=overwrite)
    except ExportExistsError as exc:
        raise click.UsageError(f"{to}: exists already; choose another name, or replace it with --overwrite") from exc
    return Outcome(Exit.DONE, {"name": name, "bundle": path.name, "to": str(to)}, f"{name}/{path.name} -> {to}")


def _names(store: Path, used: Mapping[str, Promotion]) -> list[str]:
    homes = (path.parent.parent.name for path in (store / "models").glob("*/*/card.json"))
    return sorted({*used, *homes})


def _require_name(store: Path, name: str) -> None:
    """Refuse a name that the store does not know, as an error of usage."""
    if not (store / "catalog.sqlite").is_file():
        raise StoreNotFoundError(store)
    known = _names(store, champions(store))
    if name not in known:
        there = ", ".join(known) or "none yet; `icecore train` makes one"
        raise click.UsageError(f"{store}: no model {name!r}; there are {there}{suggest(name, known)}")


def _bundle(store: Path, name: str, bundle: str) -> Path:
    _require_name(store, name)
    if bundle != CHAMPION:
        return find_bundle(store, name, bundle)
    found = champion_of(store, name)
    if found is None:
        raise RefusedError(f"{store}: {name!r} has no champion yet; name a bundle")
    return found.path


@contextmanager
def _usage() -> Iterator[None]:
    """What the command line names and is not there is an error of usage."""
    try:
        yield
    except RefusedError as exc:
        raise click.UsageError(str(exc)) from exc


def _promotion(each: Promotion) -> dict[str, Any]:
    return {**asdict(each), "path": str(each.path), "metrics": dict(each.metrics), "config": dict(each.config)}


def _bundle_row(each: BundleFacts, champion: str | None) -> list[object]:
    if each.damaged:
        return [each.bundle, "-", "-", "-", "-", "-", "damaged"]
    score = "-" if each.score is None else f"{each.score:.4f}"
    mark = CHAMPION if each.bundle == champion else ""
    return [each.bundle, each.model, each.layers, each.metric, score, each.version, mark]


def _history_row(each: Promotion) -> list[object]:
    what = f"rollback to {each.restores}" if each.kind == "rollback" else "forced" if each.forced else each.kind
    return [each.number, each.created, what, each.bundle, each.who, each.why]
