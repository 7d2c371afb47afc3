"""Find the column that a selector names: ``layer4``, ``layer4:gem``, ``layer4:avg@flip``, ``layer4:avg:float32``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .contract import FULL, Column, Pooling
from .errors import AmbiguousLayerError, LayerNotFoundError

__all__ = ["select_column"]


class _Wanted(NamedTuple):
    """What a selector says."""

    layer: str
    pooling: Pooling | None
    view: str
    dtype: str

    def fits(self, column: Column) -> bool:
        same = (column.layer, column.view) == (self.layer, self.view)
        return same and self.pooling in (None, column.pooling) and self.dtype in ("", column.dtype)


def select_column(set_name: str, layer: str, columns: Sequence[Column]) -> Column:
    """Give the one column that a selector names; without a view it means the plain image.

    Raises
    ------
    LayerNotFoundError
        When nothing matches; names what there is.
    AmbiguousLayerError
        When the layer is stored under several poolings or dtypes.
    """
    names = [column.name for column in columns]
    try:
        wanted = _parse(layer, {column.layer for column in columns})
    except ValueError as exc:
        raise LayerNotFoundError(set_name, layer, names) from exc
    matches = [column for column in columns if wanted.fits(column)]
    if not matches:
        raise LayerNotFoundError(set_name, layer, names)
    if len(matches) > 1:
        raise AmbiguousLayerError(set_name, layer, [column.name for column in matches])
    return matches[0]


def _parse(text: str, layers: set[str]) -> _Wanted:
    """Read a selector; ``layer4@flip`` is a view of layer4, unless there is a layer of that very name."""
    name, _, rest = text.partition(":")
    pooling, _, dtype = rest.partition(":")
    pooling, _, view = pooling.partition("@")
    if not view and name not in layers:
        name, _, view = name.partition("@")
    return _Wanted(name, Pooling.parse(pooling) if pooling else None, view or FULL, dtype)
