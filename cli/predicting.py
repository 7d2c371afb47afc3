"""Predict in bulk: a list of images to a table of predictions, scoring only what is new."""

from __future__ import annotations

import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from icecore.store.durable import publish

from .image_lists import ImageList, listed_images, source_image
from .score_book import WRITTEN, Prediction, ScoreBook, open_book
from .score_files import Scorer
from .score_table import Format, Layout, write_table

if TYPE_CHECKING:
    from icecore.train import Bundle

__all__ = ["PredictReport", "predict_to_file", "predict_to_stream"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PredictReport:
    """What a run did. Counts are images."""

    images: int
    """rows of the table"""
    failed: int
    """those with an error"""
    abstained: int
    """those that were not called"""
    scored: Counter[str]
    """of this run, by where the features came from: ``extracted``, ``stored``; ``recalled``: scored before under
    another name or time; ``failed``"""
    unchanged: int
    """kept from the run before, unread"""
    removed: int
    """rows of images that are no longer named"""
    anew: str
    """why all were scored anew; empty where they were not"""
    written: bool
    """whether the file was; not where it says all already"""


def predict_to_stream(
    scorer: Scorer,
    layout: Layout,
    sources: Sequence[str],
    file: BinaryIO,
    form: Format,
    *,
    stdin: IO[bytes] | None = None,
    null: bool = False,
    progress: Progress = lambda done, total: None,
) -> PredictReport:
    """Score all images and write each as soon as it is; nothing is kept.

    Parameters
    ----------
    scorer, layout
        The model, and what is told.
    sources, stdin, null
        The images, as ``listed_images`` takes them.
    file, form
        Where to, and how.
    progress
        Called with images done and in all.

    Raises
    ------
    SourceError, WeightsError, ContractMismatchError, DeviceError, SourceLostError, MissingExtraError
        As ``listed_images`` and ``Scorer``.
    """
    with closing(sqlite3.connect("", check_same_thread=False)) as db:
        images = ImageList(db, listed_images(sources, stdin=stdin or sys.stdin.buffer, null=null))
        layout = replace(layout, has_ids=images.has_ids)

        def predictions() -> Iterator[Prediction]:
            with closing(scorer.score(map(source_image, images), len(images))) as stream:
                for done, (listed, scored) in enumerate(zip(images, stream, strict=True), 1):
                    progress(done, len(images))
                    error = f"{scored.reason} ({scored.kind})" if scored.kind else ""
                    yield Prediction(listed.path, listed.id, scored.outputs, error)

        counts = write_table(predictions(), layout, scorer.bundle, file, form, is_text=images.is_text())
        return PredictReport(
            len(images), counts["failed"], counts["abstained"], scorer.counts, 0, 0, anew="", written=True
        )


def predict_to_file(
    scorer: Scorer,
    layout: Layout,
    sources: Sequence[str],
    out: Path,
    form: Format,
    *,
    stdin: IO[bytes] | None = None,
    null: bool = False,
    anew: bool = False,
    keep: bool = False,
    command: str = "",
    progress: Progress = lambda done, total: None,
) -> PredictReport:
    """Bring a file of predictions up to date: only images are scored that are new, changed or failed by the disk.

    The file is what scoring all images would give. It is replaced in one piece at the end; a killed run loses two
    seconds of work, and the next one goes on.

    Parameters
    ----------
    scorer, layout, sources, form, stdin, null, progress
        As for ``predict_to_stream``.
    out
        The file. ``OUT.state/`` beside it holds what was scored.
    anew
        Score everything again.
    keep
        Keep the rows of images that are not named this time, after the others; else they go.
    command
        Told to who finds the record locked.

    Raises
    ------
    LockedError, RefusedError, DiskError
        As ``open_book``; else as ``predict_to_stream``.
    """
    card = scorer.bundle.card
    key = {"bundle": layout.bundle, "card": str(card["card_sha256"])}
    with open_book(out, key, anew=anew, command=command) as book:
        images = book.list_images(listed_images(sources, stdin=stdin or sys.stdin.buffer, null=null))
        waiting = book.waiting
        _score(scorer, book, progress)
        removed = 0 if keep else book.prune()
        layout = replace(layout, has_ids=images.has_ids)
        changed = bool(waiting or removed or book.anew)
        counts, written = _write(book, layout, scorer.bundle, out, form, changed=changed, gone=keep)
        return PredictReport(
            counts["images"],
            counts["failed"],
            counts["abstained"],
            scorer.counts,
            images.different - waiting,
            removed,
            anew=book.anew,
            written=written,
        )


def _score(scorer: Scorer, book: ScoreBook, progress: Progress) -> None:
    total, done = book.waiting, 0
    if not book.is_empty():
        scorer.recall = book.recall
    if scorer.stored is not None and total:
        for scored in scorer.score_unread(map(source_image, book.todo())):
            book.add(scored)
            done += 1
            progress(done, total)
        book.refresh()
    with closing(scorer.score(map(source_image, book.todo()), book.waiting)) as stream:
        for scored in stream:
            book.add(scored)
            done += 1
            progress(done, total)
    book.flush()


def _write(
    book: ScoreBook, layout: Layout, bundle: Bundle, out: Path, form: Format, *, changed: bool, gone: bool
) -> tuple[Counter[str], bool]:
    """Write the file, unless it says already what it would say; give its counts, and whether it was written."""
    told = {"layout": layout.facts(), "form": form, "order": book.digest(gone=gone)}
    before: dict[str, Any] = book.read(WRITTEN) or {}
    if not changed and before.get("told") == told and before.get("file") == _signature(out):
        return Counter(before["counts"]), False
    temporary = book.folder / "out.tmp"  # one name, so that a kill leaves what the next run replaces
    with temporary.open("wb") as file:
        counts = write_table(book.rows(gone=gone), layout, bundle, file, form, is_text=book.is_text())
    publish(temporary, out)
    book.keep(WRITTEN, {"told": told, "file": _signature(out), "counts": counts})
    return counts, True


def _signature(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns]
