"""Fine-tune a backbone: unfreeze a part of it, train that with a new head, and keep the weights in the store.

Nothing here knows labels' files or splits: whoever calls says which images learn, and no other file is opened.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from icecore.store import Contract, Tuning, list_tunings, read_tuning, tuned_weights_path
from icecore.store.contract import canonical_json
from icecore.store.durable import make_folder, publish
from icecore.store.lock import writer_lock
from icecore.store.tunings import write_tuning

from .backbone import Backbone, load_backbone
from .decoding import MAX_PIXELS
from .devices import choose_device
from .errors import TuningError
from .pipeline import default_threads
from .recording import library_versions
from .tuning_data import Images, TrainingImage, hash_files
from .tuning_loop import Epoch, Loop
from .tuning_opening import StartHead, open_loop
from .tuning_options import TuningOptions
from .tuning_rates import first_epochs
from .tuning_state import TuningState, read_state

__all__ = ["StartHead", "TuningReport", "finetune_backbone"]


@dataclass(frozen=True)
class TuningReport:
    """What came of it."""

    tuning: Tuning
    """the record, as it stands in the store"""
    weights: Path
    """file of the weights, for ``backbone.weights``"""
    is_new: bool
    """False where the same tuning had been done before, and nothing was computed"""
    resumed_after: int
    """epochs that an earlier run had done"""
    why_whole: str
    """why no frozen part was divided off; empty where it was"""
    keeps_prefix: bool
    """whether what the frozen part gives was kept for the views that train"""


def finetune_backbone(
    store: Path | str,
    set_name: str,
    backbone: Backbone,
    images: Sequence[TrainingImage],
    *,
    classes: Sequence[str],
    options: TuningOptions | None = None,
    start_head: StartHead | None = None,
    split_digest: str = "",
    split: str = "",
    version: int | None = None,
    generation: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    finish: bool = False,
    again: bool = False,
    command: str = "",
    progress: Callable[[Epoch], None] = lambda epoch: None,
) -> TuningReport:
    """Train a part of a backbone on labelled images; the store keeps its weights and a record.

    Killed at any moment and called again with the same arguments, it goes on after the last whole epoch and ends with
    the same weights (bit-equal on one CPU and number of threads).

    Parameters
    ----------
    store
        Folder of the store.
    set_name
        Feature set that the images belong to.
    backbone
        As ``load_backbone`` gives it; changed in place.
    images
        Images that may be seen, each with its class: training rows of the split, and no held-out ones.
    classes
        Names of the classes.
    options
        How; see ``TuningOptions``.
    start_head
        Fits the linear classifier that the head starts from; needed by ``start = "logistic_regression"``.
        ``icecore.train.fit_head`` is one.
    split_digest, split, version, generation
        Recorded: which split, in its digest and in words, and which version and generation of the set this follows.
    device
        As ``choose_device`` takes it.
    workers
        Processes that make random views; default: one for four cores, on CUDA as many as cores, at most 8. They are
        spawned, so a script needs ``if __name__ == "__main__":``; 0 makes views between the steps.
    threads
        Threads that read plain views.
    max_pixels
        Larger images are left out.
    finish
        Train no further: take the best epoch of the run that was interrupted.
    again
        Train although the same tuning was done before.
    command
        Names the run for others that find it at work.
    progress
        Called after each epoch.

    Returns
    -------
    TuningReport
        With the record and the file of the weights.

    Raises
    ------
    TuningError
        When options, images or network do not allow it.
    TuningDivergedError
        When the loss became NaN; the best epoch so far is kept.
    icecore.store.LockedError
        When another run trains in this store.
    DeviceError
        When the device is absent, or has no memory for a single image.
    """
    options = options or TuningOptions()
    where = choose_device(device, precision=options.precision)
    if options.start == "logistic_regression" and start_head is None:
        raise TuningError("start: logistic_regression needs start_head, such as icecore.train.fit_head")
    parent = backbone.contract()
    images = sorted(images, key=lambda image: image.id.encode("utf-8", "surrogateescape"))
    rows = Images(images, backbone.preprocess, augment=options.augment, seed=options.seed, max_pixels=max_pixels)
    threads = default_threads("exact") if threads is None else max(1, threads)
    _check_images(images, classes)
    digests, lost = _hashed(rows, threads)
    key = _key(parent, options, images, digests, classes, max_pixels)
    folder = Path(store) / "tunings"
    make_folder(folder)
    with writer_lock(folder, command=command):
        job = folder / key
        if not again and (done := _done(store, key)):
            shutil.rmtree(job, ignore_errors=True)  # a run killed after its record was written leaves it
            return TuningReport(done, tuned_weights_path(store, done.weights), False, 0, "", False)
        state = read_state(job)
        if finish and (state is None or state.best is None):
            raise TuningError("finish: no epoch in which the backbone learned is whole yet; run it without --finish")
        _sweep(folder, job)
        make_folder(job)
        rows.digests = digests
        resumed_after = 0 if state is None else state.epoch
        opened = open_loop(
            backbone,
            rows,
            classes=classes,
            options=options,
            start_head=start_head,
            device=where,
            workers=workers,
            threads=threads,
            folder=job,
            lost=lost,
            state=state,
        )
        with opened as loop:
            if not finish:
                state = loop.run(state or TuningState(), progress)
        assert state is not None  # it ran, or there was one to finish
        tuning = _keep(
            store,
            loop,
            state,
            backbone=backbone,
            images=rows,
            classes=tuple(classes),
            options=options,
            parent=parent,
            device=str(where),
            record={
                "set_name": set_name,
                "parent_generation": generation,
                "version": version,
                "split_digest": split_digest,
                "split": split,
                "key": key,
            },
        )
        shutil.rmtree(job)
    return TuningReport(
        tuning,
        tuned_weights_path(store, tuning.weights),
        True,
        resumed_after,
        loop.divided.why_whole,
        loop.source.keeps_views,
    )


def _keep(
    store: Path | str,
    loop: Loop,
    state: TuningState,
    *,
    backbone: Backbone,
    images: Images,
    classes: tuple[str, ...],
    options: TuningOptions,
    parent: Contract,
    device: str,
    record: Mapping[str, Any],
) -> Tuning:
    """Write the weights of the best epoch, then their record."""
    from safetensors.torch import save_file

    assert state.best is not None  # checked when training ended
    values = {**backbone.module.state_dict(), **state.best.tensors}
    names = [name for name in backbone.loading.loaded if not name.startswith(f"{loop.head.name}.")]
    tensors = {name: values[name].detach().cpu().contiguous().clone() for name in names}
    folder = Path(store) / "weights"
    make_folder(folder)
    temporary = folder / f"{record['key']}.safetensors.tmp"
    try:
        save_file(tensors, temporary)
        weights = _hash_as_loaded(backbone, temporary)
        if weights == parent.weights:
            raise TuningError(
                "unfreeze: nothing of the backbone changed, and the head is not kept: these are the weights that it "
                "started from; unfreeze one layer or more"
            )
        publish(temporary, tuned_weights_path(store, weights))
    finally:
        temporary.unlink(missing_ok=True)
    begins = first_epochs(loop.groups, options)
    trained = tuple(name for group in loop.groups if begins[group.name] <= state.best.epoch for name in group.tensors)
    skipped = {int(row): why for row, why in state.skipped.items()}
    seen = sorted(
        (image.id, digest.hex())
        for position, (image, digest) in enumerate(zip(images.images, images.digests, strict=True))
        if digest and str(position) not in state.unseen
    )
    tuning = Tuning(
        weights=weights,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        parent=parent,
        classes=classes,
        seen_ids=tuple(image for image, _ in seen),
        seen_contents=tuple(digest for _, digest in seen),
        skipped={images.images[row].id: why for row, why in sorted(skipped.items())},
        unfrozen=trained,
        trained_parameters=sum(values[name].numel() for name in trained),
        epochs=tuple(state.history),
        best_epoch=state.best.epoch,
        seconds=state.seconds,
        device=device,
        config=options.to_json(),
        versions=library_versions(),
        **record,
    )
    write_tuning(store, tuning)
    return tuning


def _hash_as_loaded(backbone: Backbone, path: Path) -> str:
    """Load the file as extraction will, and give the hash that its contract will have."""
    from .preprocess import Preprocess

    loaded = load_backbone(
        backbone.name,
        path,
        preprocess=Preprocess.from_steps(backbone.contract().preprocess),
        arguments=backbone.arguments,
    )
    return loaded.weights_sha256


def _check_images(images: Sequence[TrainingImage], classes: Sequence[str]) -> None:
    if len(classes) < 2:
        raise TuningError(f"classes: two or more, found {len(classes)}")
    if len({image.id for image in images}) != len(images):
        raise TuningError("images: an id is given twice")
    if any(not 0 <= image.label < len(classes) for image in images):
        raise TuningError(f"images: labels are numbers from 0 to {len(classes) - 1}")


def _hashed(images: Images, threads: int) -> tuple[tuple[bytes, ...], dict[int, str]]:
    """Give the sha256 of all files, empty where one cannot be read, and those with the reason."""
    found = hash_files(images, threads=threads)
    lost = {position: why for position, why in enumerate(found) if isinstance(why, str)}
    if len(lost) == len(found):
        first = next(iter(lost.values()), "there are none")
        raise TuningError(f"images: none of {len(found)} can be read: {first}")
    return tuple(b"" if isinstance(digest, str) else digest for digest in found), lost


def _key(
    parent: Contract,
    options: TuningOptions,
    images: Sequence[TrainingImage],
    digests: Sequence[bytes],
    classes: Sequence[str],
    max_pixels: int,
) -> str:
    """Give the sha256, in hex, over all that decides the weights; the default limit of pixels adds nothing to it."""
    rows = sorted(
        [image.id, image.label, image.group, digest.hex()] for image, digest in zip(images, digests, strict=True)
    )
    ignored = {"keep_prefix", "recompute"}  # these change no value but in its last bits
    chosen = {name: value for name, value in options.to_json().items() if name not in ignored}
    limit = {} if max_pixels == MAX_PIXELS else {"max_pixels": max_pixels}
    found = {"parent": parent.to_json(), "options": chosen, "rows": rows, "classes": list(classes), **limit}
    return hashlib.sha256(canonical_json(found)).hexdigest()


def _done(store: Path | str, key: str) -> Tuning | None:
    """Give the record of the same tuning, where there is one and its weights are there."""
    found = [tuning for tuning in list_tunings(store) if tuning.key == key]
    whole = [tuning for tuning in found if tuned_weights_path(store, tuning.weights).is_file()]
    return read_tuning(store, whole[-1].weights) if whole else None


def _sweep(folder: Path, job: Path) -> None:
    """Remove what other jobs kept of frozen activations: it is large, and can be computed again."""
    for other in folder.iterdir():
        if other.is_dir() and other != job:
            shutil.rmtree(other / "kept", ignore_errors=True)
