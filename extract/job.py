"""The whole extraction: source, plan, backbone, batches, store."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import PIL
import torch
import torchvision
from icecore.store import (
    Column,
    FeatureStore,
    Plan,
    Scan,
    SourceImage,
    Writer,
    plan_sync,
)

from .backbone import Backbone, load_backbone
from .errors import SourceLostError
from .images import MAX_PIXELS
from .layers import columns_for, resolve_layers
from .pipeline import Batch, Failed, Row, default_threads, read_batches
from .preprocess import Preprocess
from .recording import Progress, Tally, fail_image, record_batch
from .report import ExtractReport, Prune
from .sourcing import place_of, refuse_removal, scan_of
from .trunk import Trunk, choose_device, default_batch_size

__all__ = ["extract_images"]


@dataclass(frozen=True)
class _Task:
    """What a run is to do, checked before the store is touched."""

    backbone: Backbone
    columns: tuple[Column, ...]
    scan: Scan
    device: str
    precision: str
    batch_size: int
    threads: int
    max_pixels: int
    source: Mapping[str, str | None]
    prune: Prune


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
    arguments: Mapping[str, Any] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    threads: int | None = None,
    extensions: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    rehash: bool = False,
    retry_failed: bool = False,
    prune: Prune = "tombstone",
    max_removed: float = 0.5,
    command: str = "",
    progress: Progress | None = None,
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
    layers
        Layer names and globs, as ``resolve_layers`` takes them.
    poolings
        ``avg``, ``max``, ``gem``, ``gem(P)``; every layer is stored under each.
    dtype
        ``float16`` or ``float32``: what is stored.
    device, precision
        As ``choose_device`` takes them.
    batch_size
        Images of a forward pass; shorter batches are padded to it. Default: 64 on CUDA, two a core on a CPU.
    threads
        Decoding threads; 0 decodes between the passes. Default: one for each processor that the process may
        use, at most 32.
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
    dry_run
        Make the plan only: nothing is written, no lock is taken.

    Returns
    -------
    ExtractReport
        What was found and done, ``failures`` included.

    Raises
    ------
    ExtractError
        Before the store is touched: backbone, weights, layers, preprocessing or device are not as they must be.
    RemovalRefusedError
        When too many images vanished; nothing but the empty set, where it is new, has been made.
    SourceLostError
        When file after file cannot be read because the source has gone; what was computed until then is kept.
    StoreError
        When the source cannot be seen as a whole or holds no images, or the store is locked or damaged.
    ValueError
        When a pooling, dtype, policy or number is out of range, or ``extensions`` come with a scan, which has its own.
    """
    threads = default_threads() if threads is None else threads
    if not 0 <= max_removed <= 1 or (batch_size is not None and batch_size < 1) or threads < 0:
        found = f"max_removed {max_removed}, batch_size {batch_size}, threads {threads}"
        raise ValueError(f"expected max_removed from 0 to 1, batch_size above 0, threads 0 or more; found {found}")
    if prune not in get_args(Prune):
        raise ValueError(f"expected prune to be {' or '.join(get_args(Prune))}; found {prune!r}")
    chosen = str(choose_device(device, precision=precision))
    backbone = load_backbone(
        backbone_name,
        weights,
        preprocess=preprocess,
        preprocess_changes=preprocess_changes,
        arguments=arguments,
    )
    scan = scan_of(source, extensions)
    names = resolve_layers(backbone.layers, layers, backbone=backbone.name)
    backbone.require(names)
    task = _Task(
        backbone=backbone,
        columns=columns_for(backbone.layers, names, poolings, dtype=dtype),
        scan=scan,
        device=chosen,
        precision=precision,
        batch_size=default_batch_size(torch.device(chosen)) if batch_size is None else batch_size,
        threads=threads,
        max_pixels=max_pixels,
        source={**backbone.source, **place_of(scan), "device": chosen},
        prune=prune,
    )
    options = {"rehash": rehash, "retry_failed": retry_failed}
    if dry_run:
        contract = backbone.contract(precision=precision)
        plan = plan_sync(store_path, set_name, contract, task.columns, task.scan, **options)
        return _report(task, set_name, plan, dry_run=True)
    with FeatureStore.create(store_path) as store:
        return _run(store, set_name, task, options, max_removed, command, progress)


def _run(
    store: FeatureStore,
    set_name: str,
    task: _Task,
    options: Mapping[str, bool],
    max_removed: float,
    command: str,
    progress: Progress | None,
) -> ExtractReport:
    contract = task.backbone.contract(precision=task.precision)
    began = time.monotonic()
    with store.writer(
        set_name, contract, task.columns, command=command, source=task.source, versions=_versions()
    ) as writer:
        plan = writer.plan(task.scan, **options)
        if task.prune == "tombstone":
            refuse_removal(set_name, task.scan, plan, max_removed)
        tally = Tally(total=plan.to_read + len(plan.broken), progress=progress)
        for image, reason in plan.broken:
            fail_image(writer, tally, image, "read", reason)
        tally.add(len(plan.broken))
        try:
            strays: list[SourceImage] = []
            for group in plan.groups:
                strays += _extract(writer, group.images, group.columns, task, tally)
            _extract(writer, strays, task.columns, task, tally)
        except SourceLostError:
            writer.commit()
            raise
        if task.prune == "tombstone":
            writer.remove(plan.gone)
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
        seconds=time.monotonic() - began,
    )


def _extract(
    writer: Writer, images: Iterable[SourceImage], columns: Sequence[Column], task: _Task, tally: Tally
) -> list[SourceImage]:
    """Read images and forward those whose content lacks the columns.

    Gives the images that must be read for all columns instead: their files have changed since the plan was made,
    and their new content lacks others, too. Nothing is recorded of these.
    """
    trunk: Trunk | None = None  # made for the first batch that has rows
    others = [column for column in task.columns if column not in columns]
    strays: list[SourceImage] = []
    batches = read_batches(
        images,
        preprocess=task.backbone.preprocess,
        batch_size=task.batch_size,
        threads=task.threads,
        is_known=lambda content: writer.is_known(content, columns),
        max_pixels=task.max_pixels,
    )
    with closing(batches):  # before the writer closes, which the threads ask
        for whole in batches:
            batch = _without_strays(whole, strays, writer, others) if others else whole
            features: Mapping[Column, np.ndarray] = {}
            if batch.rows:
                trunk = trunk or _trunk(task, columns)
                features = trunk.forward(batch.pixels)
            record_batch(writer, batch, features, tally)
            tally.add(len(batch.outcomes))
    return strays


def _without_strays(batch: Batch, strays: list[SourceImage], writer: Writer, others: Sequence[Column]) -> Batch:
    """Move the images of a batch whose content lacks the other columns to ``strays``."""
    ours = [isinstance(o, Failed) or writer.is_known(o.content, others) for o in batch.outcomes]
    strays += [o.image for o, stays in zip(batch.outcomes, ours, strict=True) if not stays]
    kept = [stays for o, stays in zip(batch.outcomes, ours, strict=True) if isinstance(o, Row)]
    outcomes = tuple(o for o, stays in zip(batch.outcomes, ours, strict=True) if stays)
    return batch if all(ours) else Batch(outcomes, batch.pixels[kept])


def _trunk(task: _Task, columns: Sequence[Column]) -> Trunk:
    return Trunk(task.backbone, columns, device=task.device, precision=task.precision, batch_size=task.batch_size)


def _versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


def _report(task: _Task, set_name: str, plan: Plan, *, dry_run: bool = False, **done: Any) -> ExtractReport:
    return ExtractReport(
        set_name=set_name,
        plan=plan,
        columns=task.columns,
        contract_hash=task.backbone.contract(precision=task.precision).hash,
        device=task.device,
        precision=task.precision,
        source=task.source,
        prune=task.prune,
        dry_run=dry_run,
        **done,
    )
