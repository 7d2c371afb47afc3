"""The CSV of labels: one pass that gathers every fault with its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from .errors import LabelError

__all__ = ["LabelTable", "read_table", "refuse_rows"]

_ID, _PATH = "id", "path"
_OPTIONAL = ("split", "group")
_SHOWN_FAULTS = 10


def read_table(path: Path, file: TextIO, columns: Sequence[str]) -> LabelTable:
    """Read an open CSV of labels.

    Parameters
    ----------
    path
        Its name, for messages.
    file
        The open file.
    columns
        Columns that hold labels; every row must have a text in each.

    Raises
    ------
    LabelError
        See ``labels_from_csv``.
    """
    if not columns or isinstance(columns, str):
        raise LabelError(f"{path}: name at least one column of labels, in a list, found {columns!r}")
    if len(set(columns)) < len(columns):
        raise LabelError(f"{path}: columns of labels must be different names, found {', '.join(map(repr, columns))}")
    return LabelTable(path, file, tuple(columns)).read()


def refuse_rows(source: object, faults: Sequence[str]) -> None:
    """Refuse labels for what is wrong with their rows; without a fault, do nothing.

    Raises
    ------
    LabelError
        When there is a fault; the message shows ten.
    """
    if not faults:
        return
    shown = "\n  ".join(faults[:_SHOWN_FAULTS])
    more = f"\n  and {len(faults) - _SHOWN_FAULTS:,} more" if len(faults) > _SHOWN_FAULTS else ""
    raise LabelError(f"{source}: the labels cannot be used\n  {shown}{more}")


@dataclass
class LabelTable:
    """Rows of a CSV of labels."""

    path: Path
    """the file"""
    file: TextIO
    """the same, open"""
    columns: tuple[str, ...]
    """columns that hold labels"""
    key: str = _PATH
    """column that names the image"""
    line: dict[str, int] = field(default_factory=dict)
    """line that each image's row begins on"""
    rows: list[dict[str, str]] = field(default_factory=list)
    """good rows, by column"""
    faults: list[str] = field(default_factory=list)
    """what is wrong with the others"""

    def column(self, name: str) -> dict[str, str]:
        """Give the texts of a column by image, without those that are empty; nothing where there is no such column."""
        return {row[self.key]: row[name].strip() for row in self.rows if row.get(name, "").strip()}

    def read(self) -> LabelTable:
        """Take all rows."""
        records = self._records()
        header = [name.strip() for name in next(records, (0, []))[1]]
        self._check_header(header)
        for line, values in records:
            self._take(line, header, values)
        if not self.rows and not self.faults:
            self.faults.append("it has a header but no rows")
        self._check_splits(header)
        refuse_rows(self.path, self.faults)
        return self

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Give each record with the line that it begins on: a quoted field may span lines."""
        reader, start = csv.reader(self.file, strict=True), 1
        try:
            for values in reader:
                if values:
                    yield start, values
                start = reader.line_num + 1
        except csv.Error as exc:
            raise LabelError(f"{self.path}, line {start}: malformed CSV ({exc})") from exc

    def _check_header(self, header: list[str]) -> None:
        self.key = _ID if _ID in header else _PATH
        if taken := {_ID, _PATH, *_OPTIONAL}.intersection(self.columns):
            raise LabelError(f"{self.path}: column {', '.join(sorted(taken))} cannot hold labels; name others")
        absent = [name for name in (self.key, *self.columns) if name not in header]
        if absent:
            found = ", ".join(map(repr, header)) or "an empty file"
            raise LabelError(
                f"{self.path}: no column {' nor '.join(map(repr, absent))}; found {found}; "
                f"the first line must be path,{','.join(self.columns)}[,split][,group]"
            )
        if twice := {name for name in (_ID, _PATH, *self.columns, *_OPTIONAL) if header.count(name) > 1}:
            raise LabelError(f"{self.path}: column {', '.join(sorted(twice))} is there more than once")

    def _take(self, line: int, header: list[str], values: list[str]) -> None:
        if len(values) != len(header):
            self.faults.append(f"line {line}: {len(values)} fields, the header has {len(header)}")
            return
        row = dict(zip(header, values, strict=True))
        image = row[self.key]
        if not image:
            self.faults.append(f"line {line}: empty {self.key}")
        elif empty := [name for name in self.columns if not row[name].strip()]:
            self.faults.append(f"line {line}: empty {', '.join(empty)} of {image!r}")
        elif image in self.line:
            self.faults.append(f"lines {self.line[image]} and {line}: {image!r} is there twice")
        else:
            self.line[image] = line
            self.rows.append(row)

    def _check_splits(self, header: list[str]) -> None:
        """A split column is filled for every row or for none."""
        if "split" not in header or not any(row["split"].strip() for row in self.rows):
            return
        self.faults += [
            f"line {self.line[row[self.key]]}: empty split of {row[self.key]!r}"
            for row in self.rows
            if not row["split"].strip()
        ]
