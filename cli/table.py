"""Plain text tables for terminals, and lines of CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

__all__ = ["counted", "csv_line", "human_bytes", "one_line", "table"]


def one_line(text: str) -> str:
    r"""Escape what would break or colour a line of a terminal; bytes that are not UTF-8 stay as they are.

    >>> one_line("a\nb")
    'a\\nb'
    """
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in text)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Align columns: numbers to the right, text to the left, two spaces between."""
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or _is_number(row[i]) for row in rows)
        for i in range(len(header))
    ]

    def line(values: Sequence[str]) -> str:
        aligned = (v.rjust(w) if r else v.ljust(w) for v, w, r in zip(values, widths, right, strict=True))
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *(line(row) for row in cells)])


def csv_line(cells: Sequence[object]) -> bytes:
    """Give a line of RFC 4180; bytes of file names that are not UTF-8 are kept as they are."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)  # with its own line end it quotes a lone \r in a name too
    return line.getvalue().removesuffix("\r\n").encode("utf-8", "surrogateescape") + b"\n"


def counted(number: int, thing: str) -> str:
    """Give a number of things in words.

    >>> counted(1, "image"), counted(2000, "image")
    ('1 image', '2,000 images')
    """
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def human_bytes(size: int) -> str:
    """Give a number of bytes in the unit that suits it.

    >>> human_bytes(1536)
    '1.5 KiB'
    """
    scaled, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if scaled < 1024:
            break
        scaled, unit = scaled / 1024, larger
    return f"{size} B" if unit == "B" else f"{scaled:.1f} {unit}"


def _is_number(value: object) -> bool:
    return isinstance(value, str) and value.strip("+-%").replace(".", "", 1).replace(",", "").isdigit()
