"""The sides of store_scale.py that sync folders, night after night."""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from icecore.store import FeatureStore, SourceImage, compact, plan_sync, scan_folder

from .common import COLUMN, CONTRACT, LAYER, LONG_AGO, SET, Run, live_segments
from .rows import BATCH, Rows, digest, image_id

FOLDER_FILES = 1000


def make_files(folder: str, files: int) -> Run:
    """Make empty files with times long past, in folders of 1,000, and let their change times grow old."""
    for row in range(files):
        path = f"{folder}/{image_id(row)}"
        if row % FOLDER_FILES == 0:
            Path(path).parent.mkdir(parents=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    time.sleep(3)  # younger than two seconds, they would be read again by every run
    return {}


def sync_icecore(folder: str, store: str) -> Run:
    """Plan, and append a row for each file found, as a run of extract does without its network."""
    features, numbers = Rows(), count()
    began = time.perf_counter()
    with FeatureStore.create(store).writer(SET, CONTRACT, [COLUMN]) as writer:
        plan = writer.plan(scan_folder(folder))
        planned = time.perf_counter() - began
        for group in plan.groups:
            for images in _batched(iter(group.images)):
                start = next(numbers) * BATCH
                contents = [hashlib.sha256(image.key).digest() for image in images]
                writer.append(images, contents, {COLUMN: features.block(start, start + len(images))})
    return {"seconds": time.perf_counter() - began, "plan_s": planned}


def plan_icecore(folder: str, store: str, files: int) -> Run:
    """Plan a sync that finds nothing to do."""
    began = time.perf_counter()
    plan = plan_sync(store, SET, CONTRACT, [COLUMN], scan_folder(folder))
    spent = time.perf_counter() - began
    assert (plan.unchanged, plan.to_read, plan.total) == (files, 0, files), plan
    return {"seconds": spent}


def walk_bare(folder: str, files: int) -> Run:
    """List the folders and stat every file, and keep nothing."""
    began = time.perf_counter()
    found = _walk(folder)
    spent = time.perf_counter() - began
    assert found == files
    return {"seconds": spent}


def nightly(store: str, nights: int, rows: int, merging: bool) -> Run:
    """Commit some rows a night, each by a writer of its own; their ids fall anywhere between the earlier ones."""
    if not merging:
        compact.COMPACT_PAST = sys.maxsize
    features, opened, spent = Rows(), FeatureStore.create(store), []
    for night in range(nights):
        contents = sorted(digest(row) for row in range(night * rows, (night + 1) * rows))
        images = [SourceImage(f"{content.hex()[:16]}.jpg", Path("x"), 1, LONG_AGO, LONG_AGO) for content in contents]
        began = time.perf_counter()
        with opened.writer(SET, CONTRACT, [COLUMN]) as writer:
            writer.append(images, contents, {COLUMN: features.block(night * rows, (night + 1) * rows)})
        spent.append(time.perf_counter() - began)
    return {"night_s": statistics.median(spent), "slowest_night_s": max(spent), **_counts(Path(store))}


def compact_icecore(store: str) -> Run:
    """Merge a store's segments, and collect what only older versions needed."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        opened.compact()
        compacted = time.perf_counter() - began
        opened.collect()
    return {"compact_s": compacted, "collect_s": time.perf_counter() - began - compacted, **_counts(Path(store))}


def read_nightly(store: str) -> Run:
    """Read the layer as float32 from a fresh process, and give a digest of it."""
    began = time.perf_counter()
    with FeatureStore.open(store) as opened:
        X = opened[SET].array(LAYER).read(dtype=np.float32)
        spent = time.perf_counter() - began
    return {"seconds": spent, "digest": int.from_bytes(hashlib.sha256(X.data).digest()[:6], "big")}


def _counts(store: Path) -> Run:
    return {"live_segments": len(live_segments(store)), "files": len(list((store / "segments").rglob("*.h5")))}


def _batched(images: Iterator[SourceImage]) -> Iterator[list[SourceImage]]:
    while some := list(islice(images, BATCH)):
        yield some


def _walk(folder: str) -> int:
    found = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                found += _walk(entry.path)
            else:
                entry.stat()
                found += 1
    return found
