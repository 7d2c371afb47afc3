"""Find the column that a selector names: ``layer4``, ``layer4:gem``, ``layer4:avg:float32``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .contract import Column, Pooling
from .errors import AmbiguousLayerError, LayerNotFoundError

__all__ = ["select_column"]


def select_column(set_name: str, layer: str, columns: Sequence[Column]) -> Column:
    """Give the one column that a selector names.

    Raises
    ------
    LayerNotFoundError
        When nothing matches; names what there is.
    AmbiguousLayerError
        When the layer is stored under several poolings or dtypes.
    """
    name, _, rest = layer.partition(":")
    pooling, _, dtype = rest.partition(":")
    names = [column.name for column in columns]
    try:
        wanted = Pooling.parse(pooling) if pooling else None
    except ValueError as exc:
        raise LayerNotFoundError(set_name, layer, names) from exc
    matches = list(_matching(columns, name, wanted, dtype))
    if not matches:
        raise LayerNotFoundError(set_name, layer, names)
    if len(matches) > 1:
        raise AmbiguousLayerError(set_name, layer, [column.name for column in matches])
    return matches[0]


def _matching(columns: Sequence[Column], layer: str, pooling: Pooling | None, dtype: str) -> Iterator[Column]:
    for column in columns:
        if column.layer == layer and pooling in (None, column.pooling) and dtype in ("", column.dtype):
            yield column
