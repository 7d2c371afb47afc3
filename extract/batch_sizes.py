"""The batch size that is fastest on this machine: found once by short passes, and remembered for the runs that follow.

What is remembered lies beside the compiled networks, one small JSON file each, whose name is a hash of all that may
change the answer: device, processor, lanes, precision, network as cut, crop, views, torch, CUDA graph or not.

On a CPU the search runs uncompiled, also for a run that will compile: compiling takes 14 seconds and more a size, and
what is best uncompiled was within 3 % of the best compiled. Measured on two cores beside other work, fp32, sizes 1 to
16: uncompiled 4 for mobilenet_v2 and resnet18; compiled 4 was the best of the one and 2.7 % behind 8 with the other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from icecore.store import Column
from icecore.store.durable import write_bytes

from .backbone import Backbone
from .compiled import cache_folder, is_kept, key_of
from .devices import default_batch_size
from .errors import first_line
from .lanes import default_lanes
from .machine import cpu_name
from .streams import is_shortage
from .trunk import Compilation, Trunk, compiled_key
from .view_passes import ViewPasses

__all__ = ["LARGEST", "BatchSize", "best_of", "images_of_search", "settle_batch_size", "sizes_folder"]

log = logging.getLogger(__name__)

SIZES = {"cpu": (1, 2, 4, 8, 16), "cuda": (32, 64, 128, 256, 512)}
"""Tried one after the other, by kind of device."""
LARGEST = 65_536
MARGIN = 0.03
"""A smaller size is taken where its time an image is longer than the best by this share or less."""
SHARE = 0.02
"""Most of the images of a run that a search may cost."""
ROUNDS = 2
"""Of each size; the faster one counts, as other programs only make a pass slower."""
_FORMAT = 1
_LEAST = {"cpu": 4, "cuda": 128}
"""Images that a lane forwards in a round, or one pass where that is more."""

Measure = Callable[[int], float | None]
"""from a batch size to the seconds an image; None where the device's memory does not suffice"""


class BatchSize(NamedTuple):
    """What was chosen."""

    size: int
    """images of a pass"""
    why: str
    """how it was found, where this run searched; empty where it is remembered, or the default"""


def settle_batch_size(
    backbone: Backbone,
    columns: Sequence[Column],
    device: torch.device,
    precision: str,
    images: int,
    *,
    compilation: Compilation = "auto",
    measure: Measure | None = None,
) -> BatchSize:
    """Give the batch size that is remembered; else search, where enough images wait; else the default.

    Call it before the first row is written. What a search finds is remembered before it is given, so that a run that
    is killed and started again forms the same batches; where nothing can be remembered, none is begun.

    Parameters
    ----------
    backbone, columns
        What is to be computed.
    device, precision
        As ``choose_device`` and ``choose_precision`` give them.
    images
        Number that waits to be forwarded; a search may cost 2 % of it: on two cores from 10,300 images, on a GPU from
        164,800.
    compilation
        As the run is going to have it.
    measure
        Takes a size and gives the seconds an image. Default: noise through the network.
    """
    default = BatchSize(default_batch_size(device), "")
    try:
        path = sizes_folder() / f"{_key(backbone, columns, device, precision, compilation)}.json"
    except OSError as exc:
        log.warning("batch sizes cannot be remembered (%s); batches have %d images", first_line(exc), default.size)
        return default
    remembered = _remembered(path)
    if remembered is not None:
        log.info("batches of %d images, remembered in %s", remembered, path)
        return BatchSize(remembered, "")
    if (
        device.type == "cpu"
        and compilation != "never"
        and is_kept(compiled_key(backbone, columns, precision, default.size))
    ):
        return default  # to compile it anew for passes of another size costs more than that gains
    lanes = _lanes(backbone, device)
    if images_of_search(device, lanes) > SHARE * images or not _is_writable(path.parent):
        return default
    times = _search(measure or _noise(backbone, columns, device, precision, compilation, lanes), SIZES[device.type])
    if not times:
        return default  # the run makes its passes smaller, and says so
    size = _remember(path, best_of(times), times)
    if size is None:
        return default
    spent = images_of_search(device, lanes, tuple(times))
    told = f"found on this machine: {size} ({spent:,} images, {spent / images:.1%} of the run's, were spent)"
    log.info("batch size %s; milliseconds an image: %s", told, {n: round(s * 1000, 2) for n, s in times.items()})
    return BatchSize(size, told)


def best_of(seconds: Mapping[int, float]) -> int:
    """Give the smallest size whose time an image is within 3 % of the best."""
    enough = min(seconds.values()) * (1 + MARGIN)
    return min(size for size, time in seconds.items() if time <= enough)


def images_of_search(device: torch.device, lanes: int, sizes: Sequence[int] | None = None) -> int:
    """Count the images that a search forwards: a pass of each size to warm up, then the rounds."""
    tried = SIZES[device.type] if sizes is None else sizes
    return lanes * sum(size * (1 + ROUNDS * _passes(device, size)) for size in tried)


def sizes_folder() -> Path:
    """Give where batch sizes are remembered."""
    return cache_folder() / "batch-sizes"


def _passes(device: torch.device, size: int) -> int:
    return max(1, _LEAST[device.type] // size)


def _lanes(backbone: Backbone, device: torch.device) -> int:
    return 1 if device.type == "cuda" or backbone.hooks else default_lanes()


def _search(measure: Measure, sizes: Sequence[int]) -> dict[int, float]:
    """Give the seconds an image of each size, up to the largest that the memory has room for."""
    times: dict[int, float] = {}
    for size in sizes:
        try:
            seconds = measure(size)
        except RuntimeError as exc:
            if not is_shortage(exc):
                raise
            seconds = None
        if seconds is None:
            break
        times[size] = seconds
    return times


def _noise(
    backbone: Backbone,
    columns: Sequence[Column],
    device: torch.device,
    precision: str,
    compilation: Compilation,
    lanes: int,
) -> Measure:
    """Give what forwards noise, every lane busy; on a CPU uncompiled, on a GPU as the run will have it."""
    shape = ViewPasses(backbone.views, columns).shape(backbone.preprocess.crop)
    chance = np.random.default_rng(0)
    words: dict[str, Any] = {"device": str(device), "precision": precision}
    words["compilation"] = "never" if device.type == "cpu" else compilation

    def worked(trunk: Trunk) -> float:
        """Where each pass has one processor, count its work only, not its waiting for other programs."""
        alone = device.type == "cpu" and not backbone.hooks
        return time.process_time() / lanes if alone else trunk.seconds

    def measure(size: int) -> float | None:
        pixels = chance.integers(0, 256, (size, *shape), dtype=np.uint8)  # (B, 3, S, S) or (B, crops, 3, S, S)
        trunk = Trunk(backbone, columns, batch_size=size, **words)
        with closing(trunk):
            _forward(trunk, pixels, lanes)
            took = []
            for _ in range(ROUNDS):
                passes = lanes * _passes(device, size)
                before = worked(trunk)
                _forward(trunk, pixels, passes)
                took.append((worked(trunk) - before) / (passes * size))
            return None if trunk.pass_size < size else min(took)

    return measure


def _forward(trunk: Trunk, pixels: np.ndarray, passes: int) -> None:
    waiting: deque[Callable[[], object]] = deque()
    for _ in range(passes):
        if len(waiting) == trunk.at_once:
            waiting.popleft()()
        waiting.append(trunk.start(pixels))
    for wait in waiting:
        wait()


def _key(
    backbone: Backbone, columns: Sequence[Column], device: torch.device, precision: str, compilation: Compilation
) -> str:
    places = {layer.name: place for place, layer in enumerate(backbone.layers)}
    shapes = {name: list(tensor.shape) for name, tensor in backbone.module.state_dict().items()}
    facts: dict[str, Any] = {
        "device": cpu_name() if device.type == "cpu" else _gpu(device),
        "lanes": _lanes(backbone, device),
        "processors": default_lanes() if device.type == "cpu" else None,
        "precision": precision,
        "architecture": backbone.architecture,
        "shapes": hashlib.sha256(json.dumps(shapes, sort_keys=True).encode()).hexdigest(),
        "deepest": max((column.layer for column in columns), key=lambda layer: places.get(layer, -1)),
        "crop": backbone.preprocess.crop,
        "views": [list(backbone.views), sorted({column.view for column in columns})],
        "recorded": device.type == "cuda" and compilation != "never" and not backbone.hooks,
    }
    return key_of(facts)


def _gpu(device: torch.device) -> list[Any]:
    about = torch.cuda.get_device_properties(device)
    return [about.name, about.total_memory]


def _remembered(path: Path) -> int | None:
    """Give the size that a file holds; None where there is none, or none that can be understood."""
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        log.warning("%s: cannot be read (%s); no batch size is remembered there", path, first_line(exc))
        return None
    size = told.get("batch_size") if isinstance(told, dict) and told.get("format") == _FORMAT else None
    if type(size) is int and 0 < size <= LARGEST:  # True is no number of images
        return size
    log.warning("%s: cannot be read (not format %d, or no batch size in it); it is ignored", path, _FORMAT)
    return None


def _is_writable(folder: Path) -> bool:
    """Say whether something can be kept there, and warn where it cannot: what is not remembered is not searched."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as exc:
        _warn(folder, exc)
        return False


def _remember(path: Path, size: int, times: Mapping[int, float]) -> int | None:
    """Keep what was found, and give it; what another process has kept meanwhile goes before it."""
    already = _remembered(path)
    if already is not None:
        return already
    told = {"format": _FORMAT, "batch_size": size, "seconds_an_image": {str(n): round(s, 7) for n, s in times.items()}}
    try:
        write_bytes(path, json.dumps(told).encode())
    except OSError as exc:
        _warn(path.parent, exc)
        return None
    return size


def _warn(folder: Path, exc: OSError) -> None:
    log.warning(
        "%s: batch sizes cannot be remembered (%s), so the default is taken; set ICECORE_CACHE to a folder of your own",
        folder, first_line(exc),
    )  # fmt: skip
