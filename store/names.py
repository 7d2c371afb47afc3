"""The image ids of an array's rows: fetched when first asked for, and looked up from id to row."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from .errors import UnknownImageError

__all__ = ["RowNames", "portable_names"]

NEIGHBOURS = 200
"""Ids on either side that are compared with an unknown one, and ids that end with the same file name."""


class RowNames:
    """The ids of n rows; pickled it holds the ids themselves, as one text."""

    def __init__(self, fetch: Callable[[], list[str]]) -> None:
        self._fetch = fetch
        self._ids: list[str] | None = None
        self._rows: dict[str, int] | None = None

    @property
    def ids(self) -> list[str]:
        """Id of each row; the list is kept and must not be changed."""
        if self._ids is None:
            self._ids = self._fetch()
        return self._ids

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Give the row of each id: ``(k,)`` int64.

        Raises
        ------
        UnknownImageError
            When some are not here; names the first of them, and an id that is close to it.
        """
        if isinstance(ids, str):
            raise TypeError(f"ids must be several: give [{ids!r}]")
        if self._rows is None:
            self._rows = {image_id: row for row, image_id in enumerate(self.ids)}
        wanted = list(ids)
        rows = [self._rows.get(image_id, -1) for image_id in wanted]
        unknown = [image_id for image_id, row in zip(wanted, rows, strict=True) if row < 0]
        if unknown:
            raise UnknownImageError(unknown, len(self.ids), self._near(unknown[0]))
        return np.array(rows, dtype=np.int64)

    def _near(self, unknown: str) -> Iterator[str]:
        """Give some ids to compare with: a million of them would take minutes."""
        at = bisect_left(self.ids, unknown)
        yield from self.ids[max(0, at - NEIGHBOURS) : at + NEIGHBOURS]
        name = "/" + unknown.rpartition("/")[2]
        yield from islice((image_id for image_id in self.ids if image_id.endswith(name)), NEIGHBOURS)

    def __reduce__(self) -> tuple[type[RowNames], tuple[_Joined]]:
        return RowNames, (_Joined(self.ids),)


class _Joined:
    """Ids as one text: a million of them are pickled in an instant, and cost their copy little until they are used."""

    def __init__(self, ids: list[str]) -> None:
        self._text = "\0".join(ids)  # no file name holds a NUL
        self._empty = not ids

    def __call__(self) -> list[str]:
        return [] if self._empty else self._text.split("\0")


def portable_names(ids: Sequence[str]) -> tuple[list[str], bool]:
    r"""Give ids as text that any tool takes, and say whether they had to be escaped.

    Ids that are UTF-8, as nearly always, stay as they are. Where one of them is not, all are escaped: a byte that is
    no UTF-8 becomes ``\xff``, and a backslash is doubled.
    """
    try:
        "\0".join(ids).encode()
    except UnicodeEncodeError:
        return [_escape(image_id) for image_id in ids], True
    return list(ids), False


def _escape(image_id: str) -> str:
    doubled = image_id.replace("\\", "\\\\")
    return doubled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
