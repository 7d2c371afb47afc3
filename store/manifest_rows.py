"""Read the rows of a manifest file, CSV or Parquet, one at a time, each with its place; only their form is judged here.

What the columns mean is ``manifest``'s business.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from .errors import MissingExtraError, SourceError

__all__ = ["Row", "Table", "open_table", "place_of"]

PATH, ID = "path", "id"
AT_A_TIME = 10_000
"""Rows of a Parquet file in memory."""


class Row(NamedTuple):
    """One row as it stands in the file."""

    number: int
    """CSV: line that the row begins on; Parquet: row; both from 1"""
    path: bytes
    """empty where there is none"""
    id: bytes
    """empty where there is none, or no such column"""
    fault: str = ""
    """why the row cannot be read"""


@dataclass(frozen=True)
class Table:
    """An open manifest."""

    has_ids: bool
    """whether there is a column ``id``"""
    rows: Iterator[Row]
    """to be read once, while the file is open"""


def open_table(path: Path) -> AbstractContextManager[Table]:
    """Open a manifest; ``.csv`` and ``.parquet`` are told by the ending.

    Raises
    ------
    SourceError
        When it is neither, cannot be read, or its columns are not as they must be; while rows are read also where
        it is damaged.
    MissingExtraError
        When it is a Parquet file and pyarrow is not installed.
    """
    if path.suffix.lower() not in _READERS:
        raise SourceError(f"{path}: not a manifest by its ending, expected .csv or .parquet")
    if not path.is_file():
        raise SourceError(f"{path}: no such manifest")
    return _READERS[path.suffix.lower()](path)


def place_of(path: Path, number: int) -> str:
    """Say where a row stands: ``images.csv:7`` for a line, ``images.parquet, row 7``."""
    return f"{path}:{number}" if path.suffix.lower() == ".csv" else f"{path}, row {number}"


@contextmanager
def _open_csv(path: Path) -> Iterator[Table]:
    try:
        file = path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc
    with file:
        records = _records(path, file)
        line, header = next(records, (1, []))
        try:
            "".join(header).encode()
        except UnicodeEncodeError as exc:
            raise SourceError(f"{place_of(path, line)}: {_not_utf8(exc)}") from exc
        names = [name.strip() for name in header]
        _require_columns(path, names)
        yield Table(ID in names, _csv_rows(names, records))


def _records(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Give each record with the line that it begins on: a quoted field may span lines."""
    reader, start = csv.reader(file, strict=True), 1
    try:
        for values in reader:
            if values:
                yield start, values
            start = reader.line_num + 1
    except csv.Error as exc:
        raise SourceError(f"{place_of(path, start)}: malformed CSV ({exc})") from exc


def _csv_rows(names: list[str], records: Iterator[tuple[int, list[str]]]) -> Iterator[Row]:
    width, path_at, id_at = len(names), names.index(PATH), names.index(ID) if ID in names else None
    for line, values in records:
        if len(values) != width:
            yield Row(line, b"", b"", f"{len(values)} fields, the header has {width}")
            continue
        try:
            "".join(values).encode()  # a wrong encoding anywhere in the row makes its path doubtful too
        except UnicodeEncodeError as exc:
            yield Row(line, b"", b"", _not_utf8(exc))
            continue
        yield Row(line, values[path_at].encode(), b"" if id_at is None else values[id_at].encode())


def _not_utf8(exc: UnicodeEncodeError) -> str:
    byte = ord(exc.object[exc.start]) - 0xDC00  # how surrogateescape tells a byte that it could not decode
    return (
        f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8 (file names that are not UTF-8 can be listed in a "
        f"Parquet file, as binary)"
    )


@contextmanager
def _open_parquet(path: Path) -> Iterator[Table]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise MissingExtraError(f"{path}: a Parquet manifest", "pyarrow", "arrow") from exc
    try:
        with path.open("rb") as file, pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _require_columns(path, names)
            wanted = [name for name in (PATH, ID) if name in names]
            for name in wanted:
                _require_text(path, name, table.schema_arrow.field(name).type)
            yield Table(ID in names, _parquet_rows(table.iter_batches(AT_A_TIME, columns=wanted), wanted))
    except (pa.ArrowException, OSError) as exc:
        raise SourceError(f"{path}: not readable as a Parquet file ({str(exc).splitlines()[0]})") from exc


def _parquet_rows(batches: Iterator[Any], wanted: Sequence[str]) -> Iterator[Row]:
    numbers = count(1)
    for batch in batches:
        paths = _bytes_of(batch.column(PATH))
        ids = _bytes_of(batch.column(ID)) if ID in wanted else [b""] * len(paths)
        for path, image_id in zip(paths, ids, strict=True):
            yield Row(next(numbers), path or b"", image_id or b"")


def _bytes_of(values: Any) -> list[bytes | None]:
    import pyarrow as pa

    plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    found: list[bytes | None] = plain.cast(pa.large_binary()).to_pylist()
    return found


def _require_text(path: Path, name: str, kind: Any) -> None:
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(test(inner) for test in tests):
        raise SourceError(f"{path}: column {name!r} is {kind}, expected strings (or binary: the bytes of file names)")


def _require_columns(path: Path, names: Sequence[str]) -> None:
    if PATH not in names:
        found = ", ".join(map(repr, names)) or "an empty file"
        raise SourceError(f"{path}: no column 'path'; found {found}; expected path[,id] among its columns")
    if twice := [name for name in (PATH, ID) if names.count(name) > 1]:
        raise SourceError(f"{path}: column {' and '.join(map(repr, twice))} is there more than once")


_READERS: dict[str, Callable[[Path], AbstractContextManager[Table]]] = {".csv": _open_csv, ".parquet": _open_parquet}
