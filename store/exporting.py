"""Features into one file for other tools: ``.npy``, Parquet, plain HDF5, or a virtual HDF5 view of the segments.

A file appears whole or not at all. Rows are read and written some MiB at a time, in the order of the images' ids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .array import FeatureArray
from .catalog import now
from .contract import FULL, Column, Dtype
from .durable import publish
from .errors import ExportError, ExportExistsError, suggest
from .export_hdf5 import write_hdf5, write_vds
from .export_table import Progress, write_npy, write_parquet

if TYPE_CHECKING:
    from .feature_set import FeatureSet

__all__ = ["Export", "ExportFormat", "export", "format_of", "selector"]

ExportFormat = Literal["npy", "parquet", "hdf5", "vds"]

SUFFIXES: dict[str, ExportFormat] = {
    ".npy": "npy",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".vds": "vds",
}
"""Endings of file names, and the format that they stand for."""


@dataclass(frozen=True)
class Export:
    """What was written."""

    files: tuple[Path, ...]
    """the file, and for ``npy`` the one that names its rows"""
    format: ExportFormat
    """its format"""
    version: int
    """version of the set that was read"""
    rows: int
    """images, n"""
    columns: tuple[Column, ...]
    """columns, in their order"""
    bytes: int
    """bytes of the files"""


def export(
    features: FeatureSet,
    layers: str | Sequence[str] | None,
    path: Path | str,
    *,
    format: ExportFormat | None = None,  # noqa: A002  (the word of the command line)
    version: int | str | None = None,
    dtype: Dtype | None = None,
    missing: Literal["refuse", "drop"] = "refuse",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Export:
    """Write features and the names of their rows to a file; FORMAT.md tells what stands in it.

    Parameters
    ----------
    features
        The feature set.
    layers
        Columns, as ``matrix`` takes them; None for all.
    path
        File to write.
    format
        ``npy``: one matrix, the columns side by side, and ``NAME.ids.json`` beside it, which names its rows.
        ``parquet``: a column ``id`` and one of fixed-size lists for each column. ``hdf5``: ids, content hashes, and a
        dataset for each column. ``vds``: the same, but the columns are views of the store's segments and take no
        space; it must be moved together with the store, and shows NaN where gc has taken segments away.
        By default what the file's ending says.
    version
        Version or tag; the latest by default.
    dtype
        Type of the values; by default as they are stored (``npy``: the wider of several).
    missing
        Where an image has no value in one of the columns: ``"refuse"``, or ``"drop"`` the image. Images recorded as
        failures are always left out.
    overwrite
        Replace a file that is there.
    progress
        Called with (rows done, rows in all).

    Returns
    -------
    Export
        The files, and what stands in them. Memory is some MiB and the ids.

    Raises
    ------
    ExportExistsError
        When a file is there and ``overwrite`` is False.
    ExportError
        When the format is unknown, or cannot hold what is asked.
    MissingExtraError
        When Parquet is asked for and pyarrow is not installed.
    LayerNotFoundError, AmbiguousLayerError, IncompleteColumnError, VersionNotFoundError, StoreDamagedError
        As ``matrix`` does.
    """
    path = Path(path)
    kind = format_of(path, format)
    if kind == "vds" and dtype is not None:
        raise ExportError(f"{path}: a virtual file shows values as they are stored; leave dtype out, or write hdf5")
    files = _files_of(path, kind)
    _require_free(files, overwrite=overwrite)
    pinned = features.as_of(features.version if version is None else version)
    names = [selector(column) for column in pinned.columns] if layers is None else layers
    if layers is None and not names:
        raise ExportError(f"set {features.name!r} has no layers at version {pinned.version}; nothing was written")
    with pinned.array(names, dtype=dtype, missing=missing) as array:
        facts = _facts(pinned, array)
        with _appearing(files, overwrite=overwrite) as temporaries:
            _WRITERS[kind](temporaries, path, array, facts, progress or _ignore)
        sizes = [file.stat().st_size for file in files]
        return Export(files, kind, facts["version"], len(array), array.columns, sum(sizes))


def format_of(path: Path, asked: str | None = None) -> ExportFormat:
    """Give the format to write: the one asked for, else the one that the file's ending stands for.

    Raises
    ------
    ExportError
        When there is no such format, or the ending tells none.
    """
    known = get_args(ExportFormat)
    if asked is not None and asked not in known:
        raise ExportError(f"no format {asked!r}; there are {', '.join(known)}{suggest(asked, known)}")
    if asked == "npy" and path.suffix != ".npy":
        raise ExportError(f"{path}: a file of format npy ends with .npy")
    found = asked or SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ExportError(f"{path}: what format? name one ({', '.join(known)}), or end it with {', '.join(SUFFIXES)}")
    return cast("ExportFormat", found)


def _files_of(path: Path, kind: ExportFormat) -> tuple[Path, ...]:
    """Give the files to write, in the order in which they get their names: the last makes the export valid."""
    return (path.with_suffix(".ids.json"), path) if kind == "npy" else (path,)


def _require_free(files: Sequence[Path], *, overwrite: bool) -> None:
    for file in files:
        if file.is_dir() or not file.parent.is_dir():
            raise ExportError(f"{file}: is a folder" if file.is_dir() else f"{file}: there is no folder {file.parent}")
        if not overwrite and os.path.lexists(file):
            raise ExportExistsError(file)


@contextmanager
def _appearing(files: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
    """Give temporary files to write; they get their names when all are written, and are gone when not."""
    temporaries = [file.with_name(f"{file.name}.{os.getpid()}.tmp") for file in files]
    try:
        yield temporaries
        _require_free(files, overwrite=overwrite)
        for file in files[1:]:
            file.unlink(missing_ok=True)  # else, killed here, old values would stand beside new names
        for temporary, file in zip(temporaries, files, strict=True):
            publish(temporary, file)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def _facts(features: FeatureSet, array: FeatureArray) -> dict[str, Any]:
    contract = features.contract
    return {
        "format": "icecore-export",
        "format_version": 1,
        "set": features.name,
        "version": features.version,
        "generation": features.generation,
        "contract": contract.to_json(),
        "contract_hash": contract.hash,
        "source": features.source,
        "versions": features.library_versions,
        "created": now(),
        "rows": len(array),
    }


def selector(column: Column) -> str:
    """Give the selector that names this column and no other: ``layer4:avg:float16``."""
    view = "" if column.view == FULL else f"@{column.view}"
    return f"{column.layer}:{column.pooling.name}{view}:{column.dtype}"


def _ignore(done: int, total: int) -> None:
    """Take no notice of progress."""


_WRITERS: dict[ExportFormat, Callable[[Sequence[Path], Path, FeatureArray, dict[str, Any], Progress], None]] = {
    "npy": write_npy,
    "parquet": write_parquet,
    "hdf5": write_hdf5,
    "vds": write_vds,
}
