"""The history of drift as a page: distances by layer, rows beyond the training range, classes; plain SVG and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .svg import PALETTE, printable

__all__ = ["HEADER", "drift_page", "drift_table"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 240, 52, 12, 12, 28
_STYLE = (
    "body{font:15px system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #8884}"
    "td:first-child,th:first-child{text-align:left}.bad{font-weight:bold}svg{width:100%;height:auto}"
)
Series = Mapping[str, Sequence[float | None]]


def drift_page(records: Sequence[Mapping[str, Any]], name: str) -> bytes:
    """Draw the history of a model.

    Parameters
    ----------
    records
        As ``read_history`` gives them.
    name
        Of the model.

    Returns
    -------
    bytes
        A page of UTF-8 that needs nothing else.
    """
    layers = _names(record["layers"] for record in records)
    distances = {layer: [_of_layer(record, layer, "distance") for record in records] for layer in layers}
    beyond = {layer: [_of_layer(record, layer, "beyond") for record in records] for layer in layers}
    shares = [record.get("classes", {}).get("shares", {}) for record in records]
    classes = {label: [each.get(label) for each in shares] for label in sorted({n for each in shares for n in each})}
    limit = records[-1]["max_drift"] if records else None
    when = [str(record["at"]) for record in records]
    charts = [
        _section("Distance from the training rows, standard deviations", distances, when, limit),
        _section("Share of rows beyond the training range (1 % is usual)", beyond, when, None),
        _section("Share of images called", classes, when, None) if classes else "",
    ]
    title = escape(printable(f"Drift of {name}"))
    body = "".join(charts) + _rows(records)
    page = f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>{body}\n"
    return page.encode("utf-8", "surrogateescape")


def drift_table(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Give a line for each comparison: when, bundle, rows, largest distance, of classes, where it has drifted."""
    return [
        [
            str(record["at"]),
            str(record.get("bundle", "")),
            f"{record['rows']:,}",
            f"{max(layer['distance'] for layer in record['layers']):.3f}",
            f"{max(layer['beyond'] for layer in record['layers']):.1%}",
            f"{record['classes']['distance']:.3f}" if "classes" in record else "",
            ", ".join(record["where"]) or "no",
        ]
        for record in records
    ]


HEADER = ["at", "bundle", "images", "distance", "beyond", "classes", "drifted"]


def _names(layers: Any) -> list[str]:
    return list(dict.fromkeys(layer["layer"] for each in layers for layer in each))


def _of_layer(record: Mapping[str, Any], name: str, key: str) -> float | None:
    return next((float(layer[key]) for layer in record["layers"] if layer["layer"] == name), None)


def _section(title: str, series: Series, when: Sequence[str], limit: float | None) -> str:
    return f"<h2>{escape(title)}</h2>{_legend(series)}{_chart(title, series, when, limit)}"


def _legend(series: Series) -> str:
    colours = zip(series, _colours(len(series)), strict=True)
    return "<p>" + " ".join(f'<span style="color:{c}">&#9632;</span> {escape(printable(n))}' for n, c in colours)


def _colours(count: int) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _chart(title: str, series: Series, when: Sequence[str], limit: float | None) -> str:
    values = [value for line in series.values() for value in line if value is not None]
    top = max([*values, limit or 0.0, 1e-6]) * 1.08

    def x(at: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (at / (len(when) - 1) if len(when) > 1 else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    marks = [f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="currentColor"/>']
    marks += [
        f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11">{value:.2g}</text>'
        for value in (0.0, top / 2, top)
    ]
    if limit is not None:
        marks.append(
            f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" '
            'stroke="#c0392b" stroke-dasharray="5 4"/>'
        )
    for at, anchor in ((0, "start"), (len(when) - 1, "end")) if len(when) > 1 else ((0, "middle"),):
        place = f'x="{x(at):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}"'
        marks.append(f'<text {place} font-size="11">{escape(when[at][:16])}</text>')
    for line, colour in zip(series.values(), _colours(len(series)), strict=True):
        points = [(x(at), y(value)) for at, value in enumerate(line) if value is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        marks += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
    head = f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" fill="currentColor">'
    return f"{head}{''.join(marks)}</svg>"


def _rows(records: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in HEADER)
    lines = []
    for record, cells in zip(reversed(records), reversed(drift_table(records)), strict=True):
        kind = ' class="bad"' if record["drifted"] else ""
        lines.append(f"<tr{kind}>" + "".join(f"<td>{escape(printable(cell))}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"
