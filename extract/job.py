"""The whole extraction: source, plan, backbone, batches, store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from icecore.store import (
    FeatureStore,
    Plan,
    Scan,
    SourceImage,
    StoreNotFoundError,
    plan_sync,
)

from .backbone import load_backbone
from .canaries import guard_numerics
from .decoding import MAX_PIXELS
from .devices import choose_devices, default_batch_size
from .errors import ProcessLostError, SourceLostError
from .events import Listener, Teller
from .layers import columns_for, resolve_layers
from .loaders import decoder_words, require_decoder
from .passes import forward_images
from .pipeline import default_threads
from .precision import Precision, settle_precision
from .preprocess import Decode, Preprocess
from .recording import Progress, Tally, fail_image, library_versions
from .report import ExtractReport, Prune, counts_of
from .sourcing import place_of, refuse_removal, scan_of
from .task import Task, with_batch_size
from .trunk import Compilation
from .views import StoreViews, columns_by_view, require_room, view_names

__all__ = ["extract_images"]


def extract_images(
    store_path: Path | str,
    set_name: str,
    source: Path | str | Scan,
    *,
    backbone_name: str,
    weights: str | Path | None,
    layers: Sequence[str],
    poolings: Sequence[str] = ("avg",),
    dtype: str = "float16",
    preprocess: str | Preprocess | None = None,
    preprocess_changes: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
    arguments: Mapping[str, Any] | None = None,
    views: Sequence[str] = (),
    store_views: StoreViews = "averaged",
    device: str | Sequence[str] = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    compilation: Compilation = "auto",
    threads: int | None = None,
    extensions: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    rehash: bool = False,
    retry_failed: bool = False,
    prune: Prune = "tombstone",
    max_removed: float = 0.5,
    command: str = "",
    progress: Progress | None = None,
    events: Listener | None = None,
    dry_run: bool = False,
) -> ExtractReport:
    """Bring a feature set up to date with an image folder, or with a manifest.

    Only content never seen under this contract and column goes through the network, once, for all its layers.
    Images that fail are recorded and the job goes on. Killed at any moment it can be started again and ends with
    the same rows.

    Parameters
    ----------
    store_path
        Folder of the feature store; made where there is none.
    set_name
        Feature set within it.
    source
        Folder of images, searched with its sub-folders; or a CSV or Parquet file that lists them, by its ending
        ``.csv`` or ``.parquet``; or what ``scan_folder`` or ``scan_manifest`` gives.
    backbone_name, weights, preprocess, preprocess_changes, arguments
        As ``load_backbone`` takes them.
    decode
        ``exact``: every pixel, by Pillow. ``fast``: a JPEG at 1/2, 1/4 or 1/8 of its size where its shorter side stays
        twice ``preprocess.resize`` or longer. ``nvjpeg``: JPEG files are decoded, and all images resized, on the CUDA
        device; what it cannot decode, Pillow does. Part of the contract. Default: as ``preprocess`` says, else exact.
    layers
        Layer names and globs, as ``resolve_layers`` takes them.
    poolings
        ``avg``, ``max``, ``gem``, ``gem(P)``, of token maps ``cls`` and ``mean``; every layer is stored under each.
    dtype
        ``float16`` or ``float32``: what is stored.
    views
        ``flip``: the image and its mirror image; ``five-crop``: its four corners and its centre; both: all ten.
        Default: the plain image.
    store_views
        ``averaged``: a column holds the mean over the views; ``separate``: each view has its own, ``layer4:avg@flip``.
    device, precision
        As ``choose_devices`` takes them; precision may also be ``auto``, see ``settle_precision``. With several devices
        each has a process of its own, which reads and forwards, and this one alone writes.
    compilation
        ``auto``: on a CPU the forward pass is compiled where it was before, or where so many images wait that it pays;
        ``always``, or ``never``. On a GPU all but ``never`` record it as a CUDA graph. What was compiled is kept in
        ``ICECORE_CACHE`` or the user's cache folder.
    batch_size
        Images of a forward pass; shorter batches are padded to it. Default: what is remembered as the fastest on this
        machine, or found now where so many wait that this costs 2 % of them; else 64 on CUDA, 4 on a CPU.
    threads
        Decoding threads; 0 decodes between the passes. Default: one for each processor that the process may
        use, at most 32; with ``nvjpeg``, where they wait for the device, four, at least 32 and at most 128.
    extensions
        File name endings taken for images; by default those of images in a folder, and all in a manifest.
    max_pixels
        Larger images fail as ``too-large``.
    rehash
        Read every file, whatever its size and times say.
    retry_failed
        Try recorded failures again although their files did not change.
    prune
        What becomes of images that the source has no more. ``tombstone``: they leave the current version, older ones
        keep them. ``keep``: nothing is removed; the report counts them.
    max_removed
        Share of the set's images, 0 to 1, that one run may remove.
    command
        Recorded with the commits.
    progress
        Called after each batch with the images done and the images to do.
    events
        Called with an ``Event`` of each thing that happens, from ``started`` to ``finished``; a ``Watch``, say, which
        writes them down. Where the run ends otherwise the exception tells it.
    dry_run
        Make the plan only: nothing is written, no lock is taken.

    Returns
    -------
    ExtractReport
        What was found and done, ``failures`` included.

    Raises
    ------
    ExtractError
        Before the store is touched: backbone, weights, layers, preprocessing or device are not as they must be. Later:
        a device that decodes fails, or refuses each of the first 64 files.
    RemovalRefusedError
        When too many images vanished; nothing but the empty set, where it is new, has been made.
    NumericsMovedError
        When the canaries of the set give other features than they did.
    SourceLostError
        When file after file cannot be read because the source has gone; what was computed until then is kept.
    ProcessLostError
        When the process of one of several devices is killed or crashes; what was computed until then is kept.
    StoreError
        When the source cannot be seen as a whole or holds no images, or the store is locked or damaged.
    ValueError
        When a pooling, dtype, policy or number is out of range, or ``extensions`` come with a scan, which has its own.
    """
    if not 0 <= max_removed <= 1 or (batch_size is not None and batch_size < 1) or (threads or 0) < 0:
        found = f"max_removed {max_removed}, batch_size {batch_size}, threads {threads}"
        raise ValueError(f"expected max_removed from 0 to 1, batch_size above 0, threads 0 or more; found {found}")
    if prune not in get_args(Prune):
        raise ValueError(f"expected prune to be {' or '.join(get_args(Prune))}; found {prune!r}")
    if store_views not in get_args(StoreViews):
        raise ValueError(f"expected store_views to be {' or '.join(get_args(StoreViews))}; found {store_views!r}")
    changes = {**(preprocess_changes or {}), **({} if decode is None else {"decode": decode})}
    teller = Teller(events, set_name)
    teller.tell("started", backbone=backbone_name)
    devices = choose_devices(device, precision="fp32" if precision == "auto" else precision)
    where = devices[0]
    backbone = load_backbone(
        backbone_name,
        weights,
        preprocess=preprocess,
        preprocess_changes=changes,
        arguments=arguments,
        views=views if store_views == "averaged" else (),
    )
    for each in {one.type: one for one in reversed(devices)}.values():  # the first of each kind
        require_decoder(backbone.preprocess, each)
    scan = scan_of(source, extensions)
    names = resolve_layers(backbone.layers, layers, backbone=backbone.name)
    backbone.require(names)
    columns = columns_for(backbone.layers, names, poolings, dtype=dtype)
    if store_views == "separate":
        require_room(view_names(views), backbone.preprocess)
        columns = columns_by_view(columns, view_names(views))
    settled = Precision(precision, "")
    if precision == "auto":
        settled = settle_precision(backbone, columns, scan, where, stored=_stored(store_path, set_name))
        choose_devices([str(each) for each in devices], precision=settled.name)  # the others must have it, too
    precision = settled.name
    task = Task(
        backbone=backbone,
        columns=columns,
        scan=scan,
        device=str(where),
        devices=tuple(map(str, devices)),
        precision=precision,
        precision_why=settled.why,
        batch_size=default_batch_size(where) if batch_size is None else batch_size,
        finds_batch_size=batch_size is None,
        compilation=compilation,
        threads=default_threads(backbone.preprocess.decode) if threads is None else threads,
        max_pixels=max_pixels,
        source={**backbone.source, **place_of(scan), "device": ", ".join(map(str, devices))},
        prune=prune,
    )
    options = {"rehash": rehash, "retry_failed": retry_failed}
    if dry_run:
        contract = backbone.contract(precision=precision)
        plan = plan_sync(store_path, set_name, contract, task.columns, task.scan, **options)
        report = _report(task, set_name, plan, dry_run=True)
        teller.tell("finished", **report.told())
        return report
    with FeatureStore.create(store_path) as store:
        report = _run(store, set_name, task, options, max_removed, command, progress, teller)
    teller.tell("finished", **report.told())
    return report


def _stored(store_path: Path | str, set_name: str) -> str | None:
    """Give the precision of the features that readers of a set see, if there is one."""
    try:
        with FeatureStore.open(store_path) as store:
            return store[set_name].contract.precision if set_name in store.sets() else None
    except StoreNotFoundError:
        return None


def _run(
    store: FeatureStore,
    set_name: str,
    task: Task,
    options: Mapping[str, bool],
    max_removed: float,
    command: str,
    progress: Progress | None,
    teller: Teller,
) -> ExtractReport:
    contract = task.backbone.contract(precision=task.precision)
    began = time.monotonic()
    versions = library_versions()
    with store.writer(
        set_name, contract, task.columns, command=command, source=task.source, versions=versions, run=teller.run
    ) as writer:
        writer.on_commit = teller.committed
        plan = writer.plan(task.scan, **options)
        if task.prune == "tombstone":
            refuse_removal(set_name, task.scan, plan, max_removed)
        task = with_batch_size(task, plan)
        tally = Tally(total=plan.to_read + len(plan.broken), progress=progress, teller=teller)
        teller.follow(tally)
        images = chain.from_iterable(group.images for group in plan.groups)
        tally.guard = cache(partial(guard_numerics, store.path, writer.generation, task, images, versions))
        teller.tell("planned", **counts_of(plan), **task.told())
        for image, reason in plan.broken:
            fail_image(writer, tally, image, "read", reason)
        tally.add(len(plan.broken))
        try:
            strays: list[SourceImage] = []
            for group in plan.groups:
                strays += forward_images(writer, group.images, group.columns, task, tally)
            forward_images(writer, strays, task.columns, task, tally)
        except (SourceLostError, ProcessLostError):
            writer.commit()
            raise
        if task.prune == "tombstone":
            writer.remove(plan.gone)
    seconds = time.monotonic() - began
    return _report(
        task,
        set_name,
        plan,
        forwarded=tally.forwarded,
        linked=tally.linked,
        removed=plan.vanished if task.prune == "tombstone" else 0,
        uncovered=writer.uncovered,
        failures=tuple(tally.failures),
        version=store[set_name].version if set_name in store.sets() else None,
        seconds=seconds,
        engine=tally.engine,
        why=tally.why,
        decoded=dict(tally.decoded),
        busy=tally.busy(seconds, max(task.threads, len(task.devices))),
    )


def _report(task: Task, set_name: str, plan: Plan, *, dry_run: bool = False, **done: Any) -> ExtractReport:
    return ExtractReport(
        set_name=set_name,
        plan=plan,
        columns=task.columns,
        contract_hash=task.backbone.contract(precision=task.precision).hash,
        device=", ".join(task.devices),
        precision=task.precision,
        precision_why=task.precision_why,
        batch_size=None if dry_run else task.batch_size,
        batch_size_why=task.batch_size_why,
        decode=task.backbone.preprocess.decode,
        decoder=decoder_words(task.backbone.preprocess),
        source=task.source,
        prune=task.prune,
        dry_run=dry_run,
        **done,
    )
