"""Features of a handful of image files, made exactly as those that are stored, and stored nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from icecore.store import Column, SourceImage

from .backbone import Backbone
from .batch_sizes import settle_batch_size
from .devices import choose_device
from .errors import ImageError
from .images import MAX_PIXELS
from .line import Line
from .loaders import open_loader, require_decoder
from .pipeline import Failed, default_threads, read_batches
from .trunk import Trunk
from .views import crops_for

__all__ = ["features_of"]


def features_of(
    backbone: Backbone,
    columns: Sequence[Column],
    images: Sequence[Path | str],
    *,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[Path, Mapping[Column, np.ndarray] | ImageError]]:
    """Compute the columns of some images by the path that extraction takes.

    Values are rounded to each column's stored dtype, because that is what a model was trained on.

    Parameters
    ----------
    backbone
        As ``backbone_for`` gives it.
    columns
        What to compute.
    images
        Paths of image files; the same one may come twice.
    device, precision, batch_size, threads, max_pixels
        As ``extract_images`` takes them.

    Yields
    ------
    tuple
        The path, and its columns as float32 of shape (D,), or the ImageError of an image that cannot be used; one
        pair for each of ``images``, in their order.

    Raises
    ------
    DeviceError, WeightsError
        As ``Trunk`` and ``open_loader``, before the first image; a DeviceError also when a device that decodes fails.
    SourceLostError
        As ``read_batches``.
    """
    paths = [Path(image) for image in images]
    where, preprocess = choose_device(device, precision=precision), backbone.preprocess
    require_decoder(preprocess, where)
    if batch_size is None:
        batch_size = settle_batch_size(backbone, columns, where, precision, len(paths)).size
    size = max(1, min(batch_size, len(paths)))
    trunk = Trunk(
        backbone,
        columns,
        device=device,
        precision=precision,
        batch_size=size,
        compilation="auto",
        images=len(paths),
    )
    line = Line(lambda: trunk)
    crops = crops_for(backbone.views, columns)
    loader = open_loader(preprocess, device=where, max_pixels=max_pixels, crops=crops)
    batches = read_batches(
        [SourceImage(id=str(path), path=path, size=0, mtime_ns=0, ctime_ns=0) for path in paths],
        preprocess=preprocess,
        batch_size=size,
        threads=default_threads(preprocess.decode) if threads is None else threads,
        max_pixels=max_pixels,
        crops=crops,
        load_pixels=loader.load,
    )
    with closing(loader), closing(trunk), closing(batches):
        for batch, features in line.through(batches):
            rounded = _rounded(features)
            position = 0
            for outcome in batch.outcomes:
                if isinstance(outcome, Failed):
                    yield outcome.image.path, outcome.error
                    continue
                yield outcome.image.path, _one(rounded, position)
                position += 1


def _rounded(features: Mapping[Column, np.ndarray]) -> dict[Column, np.ndarray]:
    with np.errstate(over="ignore"):
        return {column: rows.astype(column.dtype).astype(np.float32) for column, rows in features.items()}


def _one(features: Mapping[Column, np.ndarray], position: int) -> Mapping[Column, np.ndarray] | ImageError:
    row = {column: rows[position] for column, rows in features.items()}
    for column, values in row.items():
        if not np.isfinite(values).all():
            return ImageError("value", f"{column.name}: a value does not fit {column.dtype}")
    return row
