"""Figures as SVG text to put into a page.

Text and lines take the page's own colour, so that they read on light and dark grounds. Equal input gives equal
text.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["INK", "PALETTE", "draw", "printable"]

PALETTE = ("#2f6fde", "#12a594", "#e5772e", "#9a5bd6", "#d6409f", "#8a6d0b", "#3aa0c9", "#5b8c2a", "#c0392b", "#7a7f87")
"""Colours of models, classes and lines: told apart by colour-blind readers as far as ten can be, and clear on white
and on near-black."""
INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(paint: Callable[[Axes], None], size: tuple[float, float], title: str, salt: str) -> str:
    """Paint one figure and give it as inline SVG; ``salt`` keeps its ids apart from those of other figures."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(_SETTINGS | {"svg.hashsalt": salt}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so what this one lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), title)


def printable(text: str) -> str:
    r"""Give text that can be written as UTF-8 on one line: stray bytes and control characters as ``\xff``."""
    return "".join(map(_printable_character, text))


def _printable_character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":  # how Python carries a byte that is not UTF-8
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")


def _inline(svg: str, title: str) -> str:
    """Make a stand-alone SVG a part of a page: no prolog, the page's colour and fonts, a width that fits."""
    body = svg[svg.index("<svg") :]
    body = body.replace(INK, "currentColor")
    body = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "inherit", body)
    size = re.search(r'width="([\d.]+)pt"', body)
    width = f"{float(size[1]) * 4 / 3:.0f}px" if size else "100%"
    head = f'<svg role="img" aria-label="{title}" style="width:100%;max-width:{width};height:auto"'
    return body.replace("<svg", head, 1)
