"""Which columns a sweep goes over: names, globs over column names, and lists of columns to join."""

from __future__ import annotations

import re
from collections.abc import Sequence

from icecore.store import FeatureSet, LayerNotFoundError

__all__ = ["Selection", "expand_layers"]

Selection = tuple[str, ...]
"""A column, or several to join side by side, by their full names."""


def expand_layers(feature_set: FeatureSet, layers: Sequence[str | Sequence[str]] | None) -> tuple[Selection, ...]:
    """Give what makes cells of its own, each once, in the order asked for.

    Parameters
    ----------
    feature_set
        As of one version.
    layers
        Names and globs over column names such as ``layer*:gem``: ``*`` and ``?`` stay within one part of a dotted
        layer name, ``**`` crosses dots. A glob without a pooling takes every one. Each column that a glob matches
        makes cells of its own; in a list of layers to join it stands for all that it matches. None: every column.

    Raises
    ------
    icecore.store.LayerNotFoundError, icecore.store.AmbiguousLayerError
        When a name or glob matches nothing, or a name several columns.
    """
    names = [column.name for column in feature_set.columns]
    if layers is None:
        return tuple((name,) for name in names)
    found: dict[Selection, None] = {}
    for entry in layers:
        if isinstance(entry, str):
            found |= dict.fromkeys((name,) for name in _matching(feature_set, names, entry))
        else:
            found[tuple(dict.fromkeys(name for part in entry for name in _matching(feature_set, names, part)))] = None
    return tuple(found)


def _matching(feature_set: FeatureSet, names: Sequence[str], text: str) -> list[str]:
    if not re.search(r"[*?]", text):
        return [feature_set.resolve(text).name]
    layer, colon, rest = text.partition(":")
    of_layer, of_rest = _expression(layer, part="[^.]"), _expression(rest if colon else "*", part=".")
    parts = [name.partition(":") for name in names]
    found = ["".join(part) for part in parts if of_layer.fullmatch(part[0]) and of_rest.fullmatch(part[2])]
    if not found:
        raise LayerNotFoundError(feature_set.name, text, names)
    return found


def _expression(glob: str, *, part: str) -> re.Pattern[str]:
    parts = {"**": ".*", "*": f"{part}*", "?": part}
    return re.compile("".join(parts.get(one, re.escape(one)) for one in re.split(r"(\*\*|\*|\?)", glob)))
