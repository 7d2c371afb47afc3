"""``icecore predict``: label images with a trained bundle, by features made exactly as those it was trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command as make_command
from .app import progress_bar
from .exits import Exit, Outcome
from .options import OutputFile
from .table import counted, one_line

if TYPE_CHECKING:
    from icecore.store import FeatureStore
    from icecore.store.by_content import StoredFeatures
    from icecore.train import Bundle

    from .drifting import DriftWatch
    from .predicting import PredictReport
    from .score_table import Layout

__all__ = ["command"]


@make_command(
    example="icecore predict champion --store features --images photos/ --out scores.csv", rows_on_stdout=True
)
@click.argument("model", metavar="BUNDLE")
@click.argument("images", nargs=-1, type=click.Path())
@click.option(
    "--images",
    "sources",
    multiple=True,
    type=click.Path(allow_dash=True),
    help="More images: a folder, a manifest (.csv, .parquet), a file, or - for paths on stdin, one a line.",
)
@click.option("--null", "-0", is_flag=True, help="Paths on stdin end with a NUL byte, as `find -print0` writes them.")
@click.option("--out", type=OutputFile(), help="File to write and to keep up to date; stdout by default.")
@click.option(
    "--format", "form", type=click.Choice(["csv", "jsonl", "parquet"]), help="By the ending of --out, else csv."
)
@click.option("--store", type=click.Path(path_type=Path), help="Store of the champion, and of features to reuse.")
@click.option("--config", type=click.Path(path_type=Path), help="Config file that names the store.")
@click.option("--name", default="default", show_default=True, help="Name of the model whose champion is meant.")
@click.option("--no-reuse", is_flag=True, help="Extract every image, also those whose features the store has.")
@click.option("--all", "anew", is_flag=True, help="Score every image again, not only what is new since the last run.")
@click.option("--keep", is_flag=True, help="Keep rows of --out for images that are not named this time.")
@click.option("--top", type=click.IntRange(1), default=1, show_default=True, help="Tell so many classes by rank.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="Leave an image uncalled whose top probability is below this."
)
@click.option(
    "--probabilities/--no-probabilities", default=True, show_default=True, help="A column for each class or label."
)
@click.option(
    "--max-drift",
    type=click.FloatRange(0),
    help="Tell drift from this distance on, in standard deviations of the training rows; 0.3 by default.",
)
@click.option("--fail-on-drift", is_flag=True, help="End with code 8 where new images have drifted.")
@click.option("--no-drift", is_flag=True, help="Do not compare new images with those that the model was trained on.")
@click.option("--weights", help="The backbone's weights, where they are no longer at the recorded place.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65_536),
    help="Images a pass; by default the fastest found on this machine, else 64 on CUDA, 4 on a CPU.",
)
@click.option("--threads", type=click.IntRange(0, 1024), help="Decoding threads; the number of cores by default.")
def predict(
    model: str,
    images: tuple[str, ...],
    sources: tuple[str, ...],
    null: bool,
    out: Path | None,
    form: str | None,
    store: Path | None,
    config: Path | None,
    name: str,
    no_reuse: bool,
    anew: bool,
    keep: bool,
    top: int,
    threshold: float | None,
    probabilities: bool,
    max_drift: float | None,
    fail_on_drift: bool,
    no_drift: bool,
    weights: str | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
) -> Outcome:
    """Label IMAGES, files or folders, with BUNDLE: its folder, NAME/BUNDLE of a store, or `champion`.

    Writes one row an image: path, label, its probability and that of each class; an unreadable image gets its reason
    instead. A bundle of several labels gives those above one half, joined by ";", and a regression its prediction
    alone. With --out only new and changed images are scored; a killed run goes on where it was. With a store, features
    that it has are not computed again, and new images are compared with those that BUNDLE was trained on.
    """
    from icecore.train import load_bundle

    from .drifting import drift_facts, drift_text
    from .model_choice import choose_bundle, store_of
    from .predicting import predict_to_file, predict_to_stream
    from .score_files import Scorer
    from .score_table import format_of

    _check(images + sources, out, anew=anew, keep=keep)
    store = store_of(store, config)
    chosen = choose_bundle(model, store=store, name=name)
    bundle = load_bundle(chosen.path)
    layout = _layout(bundle, top=top, threshold=threshold, probabilities=probabilities)
    table = format_of(out, form)
    with progress_bar("predict") as progress, _opened(store) as opened, _stored(opened, bundle, no_reuse) as stored:
        scorer = Scorer(bundle, stored, weights, device, batch_size, threads)
        watch, why_not = _watch(opened, bundle, chosen.name, max_drift, wanted=not no_drift, needed=fail_on_drift)
        scorer.observe = None if watch is None else watch.add
        if out is not None:
            told = " ".join(["icecore predict", model])
            report = predict_to_file(
                *(scorer, layout, images + sources, out, table),
                null=null,
                anew=anew,
                keep=keep,
                command=told,
                progress=progress,
            )
        else:
            sys.stdout.flush()
            report = predict_to_stream(
                scorer, layout, images + sources, sys.stdout.buffer, table, null=null, progress=progress
            )
            sys.stdout.buffer.flush()
        verdict = None if watch is None else watch.conclude(command="predict", images=report.images)
    code = Exit.SOME_IMAGES_FAILED if report.failed else Exit.DONE
    if fail_on_drift and verdict is not None and verdict.has_drifted:
        code = Exit.DRIFTED
    facts = {**_facts(report, chosen.path, out), "drift": drift_facts(verdict), "drift_not_compared": why_not}
    told = why_not and f"  drift: not compared: {one_line(why_not)}"
    if watch is not None and report.scored.total():
        told = drift_text(verdict)
    return Outcome(code, facts, "\n".join(filter(None, [_text(report, bundle, out), told])))


def _check(sources: tuple[str, ...], out: Path | None, *, anew: bool, keep: bool) -> None:
    if not sources:
        raise click.UsageError("no images: name files or folders, or --images with a manifest, or - for stdin")
    for option, given in (("--all", anew), ("--keep", keep)):
        if given and out is None:
            raise click.UsageError(f"{option}: it speaks of the rows of a file, and there is no --out")


def _layout(bundle: Bundle, *, top: int, threshold: float | None, probabilities: bool) -> Layout:
    from icecore.train import task_of

    from .score_table import Layout

    if bundle.task != "classification":
        for option, given in (("--top", top > 1), ("--threshold", threshold is not None)):
            if given:
                raise click.UsageError(f"{option}: {bundle.path} is a {bundle.task}, and only classes have ranks")
    has = task_of(bundle.task).has_probabilities
    return Layout(
        task=bundle.task,
        classes=bundle.classes if has else (),
        bundle=str(bundle.card.get("id", bundle.path.name)),
        probabilities=probabilities and has,
        top=min(top, len(bundle.classes)),
        threshold=threshold,
    )


@contextmanager
def _opened(store: Path | None) -> Iterator[FeatureStore | None]:
    if store is None:
        yield None
        return
    from icecore.store import FeatureStore

    with FeatureStore.open(store) as opened:
        yield opened


@contextmanager
def _stored(store: FeatureStore | None, bundle: Bundle, no_reuse: bool) -> Iterator[StoredFeatures | None]:
    """Open what a store has of the bundle's features."""
    if store is None or no_reuse:
        yield None
        return
    from icecore.store.by_content import StoredFeatures

    with StoredFeatures(store, bundle.contract, bundle.columns) as stored:
        yield stored


def _watch(
    store: FeatureStore | None, bundle: Bundle, name: str, max_drift: float | None, *, wanted: bool, needed: bool
) -> tuple[DriftWatch | None, str]:
    """Give what compares new images with the training rows; or why there is nothing to compare with."""
    from icecore.train import DriftError

    from .drifting import DriftWatch

    if store is None and needed:
        raise click.UsageError("--fail-on-drift: drift is told from the images of a store; name it with --store")
    if store is None or not wanted:
        return None, ""
    try:
        return DriftWatch(bundle, name, store, max_drift), ""
    except DriftError as exc:
        if needed:
            raise
        return None, str(exc)


def _facts(report: PredictReport, bundle: Path, out: Path | None) -> dict[str, Any]:
    return {
        "bundle": str(bundle),
        "images": report.images,
        "failed": report.failed,
        "abstained": report.abstained,
        **{how: report.scored[how] for how in ("extracted", "stored", "recalled")},
        "unchanged": report.unchanged,
        "removed": report.removed,
        "anew": report.anew,
        "written": report.written,
        "out": None if out is None else str(out),
    }


def _text(report: PredictReport, bundle: Bundle, out: Path | None) -> str:
    told = f"{counted(report.images, 'image')}, {report.failed:,} failed" + (f": {out}" if out else "")
    lines = [f"all scored anew: {report.anew}"] if report.anew else []
    scored = {
        "extracted": "extracted",
        "stored": "by features of the store",
        "recalled": "known by content",
    }
    parts = [f"{report.scored[how]:,} {words}" for how, words in scored.items() if report.scored[how]]
    parts += [f"{report.unchanged:,} unchanged"] if report.unchanged else []
    parts += [f"{report.removed:,} no longer named"] if report.removed else []
    parts += [f"{report.abstained:,} not called, below the threshold"] if report.abstained else []
    parts += [] if report.written else ["the file says it all already"]
    return "\n".join([*lines, told, *([f"  {', '.join(parts)}; {one_line(bundle.path.name)}"] if parts else [])])


command = predict
