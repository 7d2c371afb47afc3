"""Features of image files, made exactly as those that are stored, and stored nowhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from icecore.store import Column, SourceImage

from .backbone import Backbone
from .batch_sizes import settle_batch_size
from .devices import choose_device
from .errors import ImageError
from .images import MAX_PIXELS
from .known import Stretch
from .line import Line
from .loaders import open_loader, require_decoder
from .pipeline import Batch, Failed, Linked, Row, default_threads, read_batches
from .trunk import Trunk
from .views import crops_for

__all__ = ["features_of", "stream_features"]


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
    starts = np.cumsum([column.width for column in columns])[:-1]
    stream = stream_features(
        backbone,
        columns,
        (SourceImage(id=str(path), path=path, size=0, mtime_ns=0, ctime_ns=0) for path in paths),
        count=len(paths),
        device=device,
        precision=precision,
        batch_size=batch_size,
        threads=threads,
        max_pixels=max_pixels,
    )
    with closing(stream):
        for outcomes, X in stream:
            rows = iter(X)
            for outcome in outcomes:
                if isinstance(outcome, Failed):
                    yield outcome.image.path, outcome.error
                else:
                    yield outcome.image.path, dict(zip(columns, np.split(next(rows), starts), strict=True))


def stream_features(
    backbone: Backbone,
    columns: Sequence[Column],
    images: Iterable[SourceImage],
    *,
    count: int,
    is_known: Callable[[bytes], bool] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int | None = None,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Generator[Stretch]:
    """Compute the columns of any number of images, side by side, in bounded memory.

    Parameters
    ----------
    images
        What to read, in this order; consumed as it goes.
    count
        Their number, by which batch size and compilation are chosen.
    is_known
        Says whether a sha256 digest needs no features; called from all threads. None: every image is computed.
    backbone, columns, device, precision, batch_size, threads, max_pixels
        As ``features_of`` takes them.

    Yields
    ------
    Stretch
        Together all images, in their order. Close the generator to stop early.

    Raises
    ------
    DeviceError, WeightsError, SourceLostError
        As ``features_of``.
    """
    where, preprocess = choose_device(device, precision=precision), backbone.preprocess
    require_decoder(preprocess, where)
    backbone.require(list(dict.fromkeys(column.layer for column in columns)))
    if batch_size is None:
        batch_size = settle_batch_size(backbone, columns, where, precision, count).size
    size = max(1, min(batch_size, count))
    line = Line(
        lambda: Trunk(
            backbone,
            columns,
            device=device,
            precision=precision,
            batch_size=size,
            compilation="auto",
            images=count,
        )
    )
    crops = crops_for(backbone.views, columns)
    loader = open_loader(preprocess, device=where, max_pixels=max_pixels, crops=crops)
    batches = read_batches(
        images,
        preprocess=preprocess,
        batch_size=size,
        threads=default_threads(preprocess.decode) if threads is None else threads,
        is_known=is_known,
        max_pixels=max_pixels,
        crops=crops,
        load_pixels=loader.load,
    )
    with closing(loader), closing(line), closing(batches):
        for batch, features in line.through(batches):
            yield _stretch(batch, features, columns)


def _stretch(batch: Batch, features: Mapping[Column, np.ndarray], columns: Sequence[Column]) -> Stretch:
    """Round to what is stored, join, and let rows fail that hold what the stored dtype cannot."""
    if not batch.rows:
        return Stretch(batch.outcomes, np.empty((0, sum(column.width for column in columns)), np.float32))
    with np.errstate(over="ignore"):
        rounded = [features[column].astype(column.dtype).astype(np.float32) for column in columns]
    X = np.hstack(rounded)  # (rows, D)
    fits = np.asarray(np.isfinite(X).all(axis=1))
    if fits.all():
        return Stretch(batch.outcomes, X)
    faults = {
        row.content: _value_error(columns, rounded, i) for i, row in enumerate(batch.rows) if not fits[i]
    }  # a copy of such an image fails like it
    return Stretch(tuple(_or_failed(outcome, faults) for outcome in batch.outcomes), X[fits])


def _value_error(columns: Sequence[Column], rounded: Sequence[np.ndarray], row: int) -> ImageError:
    column = next(c for c, X in zip(columns, rounded, strict=True) if not np.isfinite(X[row]).all())
    return ImageError("value", f"{column.name}: a value does not fit {column.dtype}")


def _or_failed(outcome: Row | Linked | Failed, faults: Mapping[bytes, ImageError]) -> Row | Linked | Failed:
    if isinstance(outcome, Failed) or outcome.content not in faults:
        return outcome
    return Failed(outcome.image, faults[outcome.content])
