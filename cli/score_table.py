"""Predictions as a table: its columns, by task and options, and CSV, JSON lines and Parquet written from it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from icecore.store import MissingExtraError

from .score_book import Prediction
from .table import csv_line

if TYPE_CHECKING:
    from icecore.train import Bundle

__all__ = ["FORMATS", "Format", "Layout", "format_of", "write_table"]

Format = Literal["csv", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
"""By the ending of a file."""
CALLED = {"classification": "label", "multilabel": "labels", "regression": "prediction"}
"""What the column of the calls is named, by task."""
BLOCK = 1000
"""Rows put into words at a time."""
CELLS = 1 << 20
"""Cells of a Parquet row group."""

Record = dict[str, Any]
"""a row of a table: column to text, number, truth or None"""


@dataclass(frozen=True)
class Layout:
    """Which columns a table has."""

    task: str
    """of the bundle"""
    classes: tuple[str, ...]
    """its classes or labels; none where it has no probabilities"""
    bundle: str
    """its name"""
    has_ids: bool = False
    """whether images have names of their own"""
    probabilities: bool = True
    """a column for each class or label"""
    top: int = 1
    """classes told by rank, the likeliest first; 1: only in the column of the calls"""
    threshold: float | None = None
    """the top probability below which an image is not called; None: every image is"""

    @property
    def called(self) -> str:
        """Name of the column of the calls."""
        return CALLED[self.task]

    @property
    def columns(self) -> dict[str, type]:
        """Names of all columns, with the types of their values."""
        found: dict[str, type] = {"path": str, **({"id": str} if self.has_ids else {})}
        found[self.called] = float if self.task == "regression" else str
        if self.task == "classification":
            found["probability"] = float
            for rank in range(1, self.top + 1) if self.top > 1 else ():
                found |= {f"label_{rank}": str, f"probability_{rank}": float}
        if self.probabilities:
            found |= {f"p:{name}": float for name in self.classes}
        if self.threshold is not None:
            found["abstained"] = bool
        return found | {"error": str, "bundle": str}

    def records(self, predictions: Sequence[Prediction], bundle: Bundle) -> list[Record]:
        """Put predictions into words; a column that says nothing of an image holds None."""
        scored = [p.outputs for p in predictions if p.outputs is not None]
        outputs = np.stack(scored) if scored else np.empty((0, 1))
        if self.task == "regression":
            outputs = outputs[:, 0]
        calls = iter(zip(bundle.calls(outputs) if scored else (), outputs, strict=True))
        return [self._record(p, *(next(calls) if p.outputs is not None else (None, None))) for p in predictions]

    def _record(self, p: Prediction, call: Any, numbers: Any) -> Record:
        record: Record = dict.fromkeys(self.columns)
        record |= {"path": os.fsdecode(p.path), "error": p.error or None, "bundle": self.bundle}
        if self.has_ids:
            record["id"] = os.fsdecode(p.id)
        if numbers is None:
            return record
        record[self.called] = call if isinstance(call, (str, float)) else ";".join(call)
        if self.task == "classification":
            record["probability"] = float(numbers.max())
            for rank, at in enumerate(np.argsort(-numbers, kind="stable")[: self.top].tolist() if self.top > 1 else ()):
                record |= {f"label_{rank + 1}": self.classes[at], f"probability_{rank + 1}": float(numbers[at])}
        if self.probabilities:
            record |= {f"p:{name}": float(value) for name, value in zip(self.classes, numbers, strict=False)}
        if self.threshold is not None:
            record["abstained"] = record["probability"] < self.threshold
            record[self.called] = None if record["abstained"] else record[self.called]
        return record

    def facts(self) -> dict[str, Any]:
        """Give all that decides how a table looks, as plain JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # an object


def write_table(
    predictions: Iterable[Prediction],
    layout: Layout,
    bundle: Bundle,
    file: BinaryIO,
    form: Format,
    *,
    is_text: bool = True,
) -> Counter[str]:
    """Write predictions, some at a time.

    Parameters
    ----------
    predictions
        The rows; consumed as they are written, and nothing is written before there is one.
    layout, bundle
        What is told of them.
    file
        Where to.
    form
        ``csv``: numbers of probabilities with six digits. ``jsonl``: an object a line, probabilities under one key.
        ``parquet``: the types of ``Layout.columns``, doubles for numbers.
    is_text
        Whether every path is UTF-8; else Parquet holds them as the bytes of file names.

    Returns
    -------
    Counter
        Rows: ``images``, ``failed``, ``abstained``.

    Raises
    ------
    MissingExtraError
        When Parquet is asked for and pyarrow is not installed.
    """
    counts: Counter[str] = Counter()
    blocks = _blocks(predictions, layout, bundle, counts)
    {"csv": _write_csv, "jsonl": _write_json_lines, "parquet": _Parquet(is_text).write}[form](blocks, layout, file)
    return counts


def _blocks(
    predictions: Iterable[Prediction], layout: Layout, bundle: Bundle, counts: Counter[str]
) -> Iterator[list[Record]]:
    waiting = iter(predictions)
    while some := list(islice(waiting, BLOCK)):
        records = layout.records(some, bundle)
        counts["images"] += len(records)
        counts["failed"] += sum(record["error"] is not None for record in records)
        counts["abstained"] += sum(record.get("abstained") or False for record in records)
        yield records


def _write_csv(blocks: Iterable[list[Record]], layout: Layout, file: BinaryIO) -> None:
    header = csv_line(list(layout.columns))
    for records in blocks:
        file.write(header)
        header = b""
        file.write(b"".join(csv_line([_cell(layout, *item) for item in record.items()]) for record in records))


def _cell(layout: Layout, name: str, value: Any) -> str:
    """Give a cell of CSV; single precision has nine digits, and six of a probability say enough."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.9g}" if name == layout.called else f"{value:.6g}"
    return str(value)


def _write_json_lines(blocks: Iterable[list[Record]], layout: Layout, file: BinaryIO) -> None:
    for records in blocks:
        file.write(b"".join(json.dumps(_nested(record, layout)).encode() + b"\n" for record in records))


def _nested(record: Record, layout: Layout) -> dict[str, Any]:
    """Give a record as an object: without what says nothing, probabilities and ranks by class."""
    told = {name: value for name, value in record.items() if value is not None or name == layout.called}
    if record["error"] is not None:
        return {name: told[name] for name in ("path", "id", "error", "bundle") if name in told}
    if layout.task == "multilabel":
        told["labels"] = record["labels"].split(";") if record["labels"] else []
    ranks = [(told.pop(f"label_{n}"), told.pop(f"probability_{n}")) for n in range(1, layout.top + 1) if layout.top > 1]
    chances = {name: told.pop(f"p:{name}") for name in layout.classes if f"p:{name}" in told}
    nested = {"probabilities": chances} if chances else {}
    return {
        **told,
        **({"top": [{"label": label, "probability": p} for label, p in ranks]} if ranks else {}),
        **nested,
    }


class _Parquet:
    """Writes row groups of some million cells."""

    def __init__(self, is_text: bool) -> None:
        self._is_text = is_text

    def write(self, blocks: Iterable[list[Record]], layout: Layout, file: BinaryIO) -> None:
        pa, parquet = _pyarrow()
        kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
        schema = pa.schema(
            [
                (name, pa.binary() if name in ("path", "id") and not self._is_text else kinds[kind])
                for name, kind in layout.columns.items()
            ]
        )
        rows = max(BLOCK, CELLS // len(layout.columns))
        waiting: list[Record] = []
        with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for records in blocks:
                waiting += records
                if len(waiting) >= rows:
                    writer.write_table(self._table(pa, waiting, schema))
                    waiting = []
            if waiting:
                writer.write_table(self._table(pa, waiting, schema))

    def _table(self, pa: Any, records: Sequence[Record], schema: Any) -> Any:
        columns = []
        for field in schema:
            values = [record[field.name] for record in records]
            if pa.types.is_binary(field.type):
                values = [os.fsencode(value) for value in values]
            columns.append(pa.array(values, field.type))
        return pa.table(columns, schema=schema)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingExtraError("predictions as Parquet", "pyarrow", "arrow") from exc
    return pyarrow, parquet


def format_of(out: Path | None, asked: str | None) -> Format:
    """Give the format asked for, or that of the file's ending, else CSV."""
    ending = f".{asked}" if asked else out.suffix.lower() if out is not None else ""
    form: Format = FORMATS.get(ending, "csv")
    if form == "parquet":
        _pyarrow()  # before any time is spent
    return form
