"""Globs over dotted layer names: ``*``, ``?`` and ``[...]`` stay within one part of a name, ``**`` crosses dots."""

from __future__ import annotations

import re

from .errors import UnknownLayerError

__all__ = ["glob_expression", "is_glob"]

_GLOB = re.compile(r"[*?\[]")


def is_glob(text: str) -> bool:
    """Say whether a name is a pattern."""
    return _GLOB.search(text) is not None


def glob_expression(pattern: str) -> re.Pattern[str]:
    """Translate a glob into a regular expression.

    Raises
    ------
    UnknownLayerError
        When it is no valid glob.
    """
    out, rest = "", pattern
    while rest:
        if rest.startswith("**"):
            out, rest = out + ".*", rest[2:]
        elif rest[0] in "*?":
            out, rest = out + ("[^.]*" if rest[0] == "*" else "[^.]"), rest[1:]
        elif match := re.match(r"\[(!?)([^\]]+)\]", rest):
            inside = match[2].replace("\\", r"\\").replace("^", r"\^").replace("[", r"\[")
            out, rest = out + f"(?!\\.)[{'^' if match[1] else ''}{inside}]", rest[match.end() :]
        else:
            out, rest = out + re.escape(rest[0]), rest[1:]
    try:
        return re.compile(out)
    except re.error as exc:
        raise UnknownLayerError(f"{pattern!r} is not a valid glob: {exc}") from exc
