"""Numbers in the text format of Prometheus, version 0.0.4, as the node exporter's textfile collector reads it.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isinf, isnan

__all__ = ["Family", "exposition"]


@dataclass(frozen=True)
class Family:
    """Numbers of one name, told apart by labels; each may go up and down."""

    name: str
    """letters, digits and ``_``; the unit comes last"""
    help: str
    """what it is, one line"""
    samples: Sequence[tuple[Mapping[str, str], float]] = field(default_factory=tuple)
    """labels with a value, no labels twice"""


def exposition(families: Sequence[Family]) -> bytes:
    """Write families as text; those without samples are left out.

    Returns
    -------
    bytes
        UTF-8, each line ended; bytes of file names that are not UTF-8 are written by their numbers.
    """
    lines = [line for family in families if family.samples for line in _lines(family)]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")


def _lines(family: Family) -> list[str]:
    told = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    head = [f"# HELP {family.name} {told}", f"# TYPE {family.name} gauge"]
    return [*head, *(f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples)]


def _labels(labels: Mapping[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    whole = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return whole.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
