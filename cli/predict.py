"""``icecore predict``: label images with a trained bundle, by features made exactly as those it was trained on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from .app import command as make_command
from .app import progress_bar
from .exits import Exit, Outcome
from .options import OutputFile
from .table import csv_line

if TYPE_CHECKING:
    from icecore.extract import Backbone
    from icecore.train import Bundle

__all__ = ["Prediction", "command", "predict_images"]

BATCH = 256
"""Images scored at a time; bounds what is held in memory."""

Prediction = tuple[str, Any, Sequence[float], str]
"""path, what the image is called, probability of each class or label, error: an image has a call or an error"""
CALLED = {"classification": "label", "multilabel": "labels", "regression": "prediction"}
"""What the column of the calls is named, by task."""


@make_command(example="icecore predict features/models/default/BUNDLE photos/ --out scores.csv", rows_on_stdout=True)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=OutputFile(), help="File to write; stdout by default.")
@click.option("--format", "form", type=click.Choice(["csv", "jsonl"]), help="By the ending of --out, else csv.")
@click.option("--weights", help="The backbone's weights, where they are no longer at the recorded place.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-size",
    type=click.IntRange(1, 65_536),
    help="Images a pass; by default the fastest found on this machine, else 64 on CUDA, 4 on a CPU.",
)
@click.option("--threads", type=click.IntRange(0, 1024), help="Decoding threads; the number of cores by default.")
def predict(
    bundle: Path,
    images: tuple[Path, ...],
    out: Path | None,
    form: str | None,
    weights: str | None,
    device: str,
    batch_size: int | None,
    threads: int | None,
) -> Outcome:
    """Label IMAGES, files or folders, with BUNDLE.

    Writes one row an image: path, label, probability of each class; an unreadable image gets its reason instead. A
    bundle of several labels gives those above one half, joined by ";", and a regression its prediction alone.
    """
    from icecore.train import load_bundle

    loaded = load_bundle(bundle)
    paths = [path for image in images for path in _expand(image)]
    form = form or ("jsonl" if out is not None and out.suffix in {".jsonl", ".ndjson"} else "csv")
    failed = 0

    def counted(rows: Iterable[Prediction]) -> Iterator[Prediction]:
        nonlocal failed
        for row in rows:
            failed += bool(row[3])
            yield row

    with progress_bar("predict") as progress:
        rows = predict_images(
            loaded, paths, weights=weights, device=device, batch_size=batch_size, threads=threads, progress=progress
        )
        _write(counted(rows), loaded, form, out)
    data = {"bundle": str(bundle), "images": len(paths), "failed": failed, "out": None if out is None else str(out)}
    told = f"{len(paths):,} images, {failed:,} failed" + (f": {out}" if out else "")
    return Outcome(Exit.SOME_IMAGES_FAILED if failed else Exit.DONE, data, told)


def predict_images(
    bundle: Bundle,
    images: Sequence[Path],
    *,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Prediction]:
    """Score image files by a bundle, in their order.

    Yields
    ------
    Prediction
        Path, what the image is called, probability of each class or label in the order of ``bundle.classes`` (none of
        a regression), and an error that is empty for a labelled image.

    Raises
    ------
    WeightsError, ContractMismatchError
        When the weights cannot be found, or are not those of the contract.
    """
    import numpy as np
    from icecore.extract import ImageError, features_of

    stream = features_of(
        _backbone(bundle, weights),
        bundle.columns,
        images,
        device=device,
        precision=bundle.contract.precision,
        batch_size=batch_size,
        threads=threads,
    )
    done = 0
    while found := list(islice(stream, BATCH)):
        good = [features for _, features in found if not isinstance(features, ImageError)]
        scored: Iterator[tuple[Any, Any]] = iter(())
        if good:
            joined = {column.name: np.stack([features[column] for features in good]) for column in bundle.columns}
            outputs = bundle.outputs(joined)
            scored = zip(bundle.calls(outputs), outputs.tolist(), strict=True)
        for path, features in found:
            if isinstance(features, ImageError):
                yield os.fspath(path), "", (), f"{features.reason} ({features.kind})"
            else:
                called, numbers = next(scored)
                yield os.fspath(path), called, numbers if isinstance(numbers, list) else (), ""
        done += len(found)
        progress(done, len(images))


def _backbone(bundle: Bundle, weights: str | None) -> Backbone:
    from icecore.extract import WeightsError, backbone_for

    try:
        return backbone_for(bundle.contract, weights=weights, source=bundle.card["source"])
    except WeightsError as exc:
        if weights is not None:
            raise
        cure = "this is where the bundle says its backbone's weights are; if they moved, name the place with --weights"
        raise WeightsError(f"{exc}\n{cure}") from exc


def _expand(path: Path) -> list[Path]:
    """Give a file itself, and of a folder the images below it, in the order of their names."""
    if not path.is_dir():
        return [path]
    from icecore.store import scan_folder

    scan = scan_folder(path)
    return [scan.image(*found[:4]).path for found in scan]


def _write(rows: Iterable[Prediction], bundle: Bundle, form: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.flush()
        _write_rows(rows, bundle, form, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    from icecore.store.durable import publish

    temporary = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _write_rows(rows, bundle, form, file)
        publish(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _write_rows(rows: Iterable[Prediction], bundle: Bundle, form: str, file: BinaryIO) -> None:
    from icecore.train import task_of

    called = CALLED[bundle.task]
    names = bundle.classes if task_of(bundle.task).has_probabilities else ()
    header = csv_line(["path", called, *(f"p:{name}" for name in names), "error"]) if form == "csv" else b""
    for number, (path, call, proba, error) in enumerate(rows):
        if not number:
            file.write(header)  # not before there is a row: what fails at once writes nothing
        if form == "csv":
            numbers = [f"{p:.6g}" for p in proba] or [""] * len(names)
            file.write(csv_line([path, _cell(call), *numbers, error]))
        else:
            row: dict[str, Any] = {"path": path, called: call} if not error else {"path": path, "error": error}
            row |= {"probabilities": dict(zip(names, proba, strict=True))} if proba else {}
            file.write(json.dumps(row).encode() + b"\n")


def _cell(call: Any) -> str:
    """Give a class as it is, labels joined, and a number with the digits that single precision has."""
    if isinstance(call, float):
        return f"{call:.9g}"
    return call if isinstance(call, str) else ";".join(call)


command = predict
