"""Read config files: TOML, unknown keys refused, every fault listed at once with its place and a cure."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from icecore.store.errors import suggest
from pydantic import BaseModel, ValidationError

from .running import current
from .toml_place import find_line

__all__ = ["ConfigError", "load_config"]

C = TypeVar("C", bound=BaseModel)


class ConfigError(ValueError):
    """A config file, or what was set over it, cannot be used; the message lists every fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        super().__init__("\n".join([f"config invalid, {count}:", *(f"  {fault}" for fault in faults)]))


def load_config(kind: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a config file, with ``key=value`` overrides on top.

    Parameters
    ----------
    kind
        Which config it is.
    path
        TOML file.
    overrides
        ``train.folds=3``: a dotted key and a TOML value; text that is no TOML value is taken as a string.

    Raises
    ------
    ConfigError
        Listing every fault: file, line, key, what is allowed, and what was probably meant.
    """
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as exc:
        raise ConfigError([f"{path}: no such file"]) from exc
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError([f"{path}: {exc}"]) from exc
    for override in overrides:
        _set(values, override)
    try:
        config = kind.model_validate(values, context={"folder": path.parent})
    except ValidationError as exc:
        overridden = {tuple(o.partition("=")[0].strip().split(".")) for o in overrides}
        # Items that fail also leave their list too short, which is no fault of its own.
        errors = [e for e in exc.errors() if not (e["type"] == "too_short" and e["input"])]
        # A value that fits none of several types gives an error for each; one will do.
        faults = {(_key(error), _index(error)): _fault(path, text, kind, overridden, error) for error in errors}
        raise ConfigError(list(faults.values())) from exc
    if (running := current()) is not None:
        running.learn(config, path)
    return config


def _set(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError([f"--set {override}: expected key=value, such as compute.batch_size=32"])
    table = values
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError([f"--set {override}: {part} is a value, not a section"])
    try:
        table[parts[-1]] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[parts[-1]] = text.strip()


def _fault(path: Path, text: str, kind: type[BaseModel], overridden: set[tuple[str, ...]], error: Any) -> str:
    key, index = _key(error), _index(error)
    line = find_line(text, key)
    unknown = error["type"] == "extra_forbidden"
    ours = [o for o in overridden if o == key or (unknown and o[: len(key)] == key)]
    place = f"--set {'.'.join(ours[0])}" if ours else f"{path}:{line}" if line else f"{path}"
    message = error["msg"].removeprefix("Value error, ")
    if unknown:
        known = _known_keys(kind, key[:-1])
        message = f"unknown key{suggest(key[-1], known) or '; known: ' + ', '.join(known)}"
    elif error["type"] == "missing":
        message = "missing"
    else:
        message = f"{message[0].lower()}{message[1:]}"
        if not isinstance(error["input"], dict):  # a whole section would hide what is said of it
            message += f", found {error['input']!r}"
        if error["type"] == "literal_error" and isinstance(error["input"], str):
            message += suggest(
                error["input"], error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            )
    return f"{place}: {'.'.join(key)}{index}: {message}"


def _key(error: Any) -> tuple[str, ...]:
    """Give the dotted key of an error, without the names of types that pydantic puts between."""
    names = (part for part in error["loc"] if isinstance(part, str))
    return tuple(name for name in names if not name.startswith(("tuple[", "grid:")) and name not in ("str", "[key]"))


def _index(error: Any) -> str:
    return "".join(f"[{part}]" for part in error["loc"] if isinstance(part, int))


def _known_keys(kind: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    fields = kind.model_fields
    for part in path:
        inner = fields[part].annotation
        choices = [c for c in (inner, *getattr(inner, "__args__", ())) if isinstance(c, type)]
        fields = next(c.model_fields for c in choices if issubclass(c, BaseModel))
    return sorted(fields)
