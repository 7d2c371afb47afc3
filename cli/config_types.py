"""The types of config values, with their limits: paths below the config file, devices, poolings, grids, sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from icecore.store import Pooling
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo

__all__ = [
    "ConfigPath",
    "Count",
    "Device",
    "Grid",
    "Joined",
    "LogPath",
    "ManifestPath",
    "OneOrMore",
    "OuterFolds",
    "PoolingName",
    "Positive",
    "Section",
    "Share",
    "parse_bytes",
]


def _below_config(value: Any, info: ValidationInfo) -> Any:
    folder = (info.context or {}).get("folder")
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("a path is missing")
    return Path(folder or ".") / Path(value).expanduser()


def _log_below_config(value: Any, info: ValidationInfo) -> Any:
    return Path(value) if value == "-" else _below_config(value, info)


def _listing(value: Path) -> Path:
    if value.suffix.lower() not in {".csv", ".parquet"}:
        raise ValueError("expected a .csv or .parquet file")
    return value


def _device(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    known = r"auto|cpu|cuda(:\d+)?" + ("" if isinstance(value, list) else "|cuda:all")
    if not names or not all(isinstance(name, str) and re.fullmatch(known, name) for name in names):
        raise ValueError("expected auto, cpu, cuda, cuda:N, cuda:all, or a list of the first four")
    return tuple(names) if isinstance(value, list) else value


def _pooling(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "flat":
        raise ValueError(
            "flat is what layers without positions get by themselves; for the others name avg, max, gem, cls or mean"
        )
    return Pooling.parse(value).name


def _none_or_several(value: int) -> int:
    if value == 1:
        raise ValueError("expected 0, for none, or at least 2")
    return value


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def parse_bytes(value: Any) -> Any:
    """Read a number of bytes, or a text such as ``512 MiB``; others are left to pydantic, or refused."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]i?)?B", value) if isinstance(value, str) else None
    count = int(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if count < 1:
        raise ValueError('expected a number of bytes, or a text such as "512 MiB" or "2 GB"')
    return count


_UNITS = {"": 1} | {f"{name}{i}": (1024 if i else 1000) ** n for n, name in enumerate("KMGT", 1) for i in ("", "i")}
ConfigPath = Annotated[Path, BeforeValidator(_below_config)]
ManifestPath = Annotated[ConfigPath, AfterValidator(_listing)]
LogPath = Annotated[Path, BeforeValidator(_log_below_config)]
Device = Annotated[str | tuple[str, ...], BeforeValidator(_device)]
PoolingName = Annotated[str, BeforeValidator(_pooling)]
Joined = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Values = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Named = Annotated[dict[str, Values], Field(strict=False, min_length=1)]
Grid = Annotated[
    Annotated[Values, Tag("grid:values")] | Annotated[Named, Tag("grid:named")],
    Discriminator(lambda grid: "grid:named" if isinstance(grid, dict) else "grid:values"),
]
Count = Annotated[int, Field(ge=0)]
OuterFolds = Annotated[int, Field(ge=0, le=100), AfterValidator(_none_or_several)]
T = TypeVar("T")
OneOrMore = Annotated[tuple[T, ...], BeforeValidator(_listed), Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of a config file: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
