"""Config files: TOML, frozen, unknown keys refused, every fault listed at once with its place and a cure.

Paths in a config are relative to the config file's folder, so that a job does not depend on where it is started.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from icecore.store import IMAGE_EXTENSIONS, Pooling
from icecore.store.errors import suggest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from .toml_place import find_line

__all__ = ["ConfigError", "ExtractConfig", "TrainConfig", "load_config"]

ModelName = Literal["logistic_regression", "linear_svm", "rbf_svm", "xgboost"]


class ConfigError(ValueError):
    """A config file, or what was set over it, cannot be used; the message lists every fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(faults)} faults" if len(faults) > 1 else "1 fault"
        super().__init__("\n".join([f"config invalid, {count}:", *(f"  {fault}" for fault in faults)]))


def _below_config(value: Any, info: ValidationInfo) -> Any:
    folder = (info.context or {}).get("folder")
    if not isinstance(value, str):
        return value
    if not value:
        raise ValueError("a path is missing")
    return Path(folder or ".") / Path(value).expanduser()


def _pooling(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value == "flat":
        raise ValueError("flat is what layers without positions get by themselves; for the others name avg, max or gem")
    return Pooling.parse(value).name


ConfigPath = Annotated[Path, BeforeValidator(_below_config)]
PoolingName = Annotated[str, BeforeValidator(_pooling)]
Joined = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Grid = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Source(_Section):
    """Where the images are."""

    folder: Annotated[ConfigPath, Field(strict=False)]
    """folder of images, walked with its subfolders"""
    extensions: tuple[str, ...] = Field(IMAGE_EXTENSIONS, strict=False, min_length=1)
    """file name endings taken for images"""
    max_removed: Share = 0.5
    """refuse a run that would remove more than this share of the set's images: an unmounted disk"""


class Backbone(_Section):
    """The frozen network and what is taken from it."""

    name: str
    """torchvision classification model, or package.module:function"""
    weights: str | None = None
    """torchvision weights name, or a local .pth, .pt or .safetensors file"""
    layers: tuple[str, ...] = Field(strict=False, min_length=1)
    """layer names or globs: * within one dotted part, ** across"""
    pooling: tuple[PoolingName, ...] = Field(("avg",), strict=False, min_length=1)
    """avg, max, gem or gem(P); several give several columns a layer"""
    dtype: Literal["float16", "float32"] = "float16"
    """what is stored"""
    arguments: dict[str, Any] | None = None
    """keyword arguments of the builder; by default those that torchvision uses with these weights"""


class Preprocess(_Section):
    """Changes to the weights' own preprocessing."""

    like: str | None = None
    """take over the preprocessing of this torchvision weights entry, e.g. ResNet50_Weights.IMAGENET1K_V2"""
    resize: int | None = Field(None, ge=1)
    """length of the shorter side after resizing, pixels"""
    crop: int | None = Field(None, ge=1)
    """side of the centre crop, pixels"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """filter of the resize"""
    mean: tuple[float, float, float] | None = Field(None, strict=False)
    """subtracted from each channel, in units of 0 to 1"""
    std: tuple[Positive, Positive, Positive] | None = Field(None, strict=False)
    """each channel is divided by this"""

    def changes(self) -> dict[str, Any]:
        """Give the steps that differ from the weights' own."""
        return self.model_dump(exclude={"like"}, exclude_none=True)


class Compute(_Section):
    """How it is computed; nothing here changes a feature but precision."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N; one that is not there is an error"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """arithmetic of the forward pass; part of the contract"""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """images a forward pass; by default 64 on CUDA, two a core on a CPU"""
    threads: int | None = Field(None, ge=0, le=1024)
    """decoding threads; the number of cores by default, 0 decodes in line"""
    max_pixels: int = Field(89_478_485, ge=1)
    """images with more pixels are refused before they are decoded"""


class Labels(_Section):
    """What each image is."""

    csv: Annotated[ConfigPath | None, Field(strict=False)] = None
    """file with columns path,label and optionally split,group; without it labels come from folder names"""
    layout: Literal["split/label", "label"] = "split/label"
    """meaning of the folders: train/ants/1.jpg, or ants/1.jpg"""
    unknown: Literal["error", "skip"] = "error"
    """what to do with labels of images that the store does not hold"""
    missing: Literal["error", "skip"] = "error"
    """what to do with images without a label"""


class Split(_Section):
    """Which images are held out."""

    by: Literal["given", "hash"] = "given"
    """given: by the split folders or the CSV's split column; hash: by the image id, or group, for ever"""
    held_out: float = Field(0.2, gt=0, lt=1)
    """share held out by hash"""


class Train(_Section):
    """What is tried on the features."""

    name: str = Field("default", pattern=r"^\w[\w.-]{0,127}$")
    """name under which the bundle is kept in the store"""
    layers: tuple[str | Joined, ...] = Field((), strict=False)
    """layers tried one by one, ["a", "b"] in a list of its own being joined; every column by default"""
    models: tuple[ModelName, ...] = Field(get_args(ModelName), strict=False, min_length=1)
    """classifiers tried on each"""
    folds: int = Field(5, ge=2, le=100)
    """cross-validation folds on the training rows"""
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"] = "accuracy"
    """what the cross-validation chooses by"""
    class_weight: Literal["none", "balanced"] = "none"
    """balanced weighs classes alike, none rows"""
    grids: dict[ModelName, Grid] = Field({}, strict=False)
    """values of a model's main setting to try instead of its own grid, by model"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of folds and models"""
    save: Literal["best", "all"] = "best"
    """bundles kept"""
    report: bool = True
    """write report.html beside the bundle"""


class ExtractConfig(_Section):
    """What ``icecore extract`` reads; ``train``, ``labels`` and ``split`` may stand in the same file."""

    store: Annotated[ConfigPath, Field(strict=False)]
    """folder of the feature store"""
    set: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    """name of the feature set"""
    source: Source
    backbone: Backbone
    preprocess: Preprocess = Preprocess()
    compute: Compute = Compute()
    labels: Labels | None = None
    split: Split | None = None
    train: Train | None = None


class TrainConfig(_Section):
    """What ``icecore train`` reads; the sections of ``extract`` may stand in the same file."""

    store: Annotated[ConfigPath, Field(strict=False)]
    """folder of the feature store"""
    set: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    """name of the feature set"""
    labels: Labels = Labels()
    split: Split = Split()
    train: Train = Train()
    source: Source | None = None
    backbone: Backbone | None = None
    preprocess: Preprocess | None = None
    compute: Compute | None = None


C = TypeVar("C", bound=BaseModel)


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
        return kind.model_validate(values, context={"folder": path.parent})
    except ValidationError as exc:
        overridden = {tuple(o.partition("=")[0].strip().split(".")) for o in overrides}
        # Items that fail also leave their list too short, which is no fault of its own.
        errors = [e for e in exc.errors() if not (e["type"] == "too_short" and e["input"])]
        # A value that fits none of several types gives an error for each; one will do.
        faults = {(_key(error), _index(error)): _fault(path, text, kind, overridden, error) for error in errors}
        raise ConfigError(list(faults.values())) from exc


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
        message = f"{message[0].lower()}{message[1:]}, found {error['input']!r}"
        if error["type"] == "literal_error" and isinstance(error["input"], str):
            message += suggest(
                error["input"], error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
            )
    return f"{place}: {'.'.join(key)}{index}: {message}"


def _key(error: Any) -> tuple[str, ...]:
    """Give the dotted key of an error, without the names of types that pydantic puts between."""
    names = (part for part in error["loc"] if isinstance(part, str))
    return tuple(name for name in names if not name.startswith("tuple[") and name not in ("str", "[key]"))


def _index(error: Any) -> str:
    return "".join(f"[{part}]" for part in error["loc"] if isinstance(part, int))


def _known_keys(kind: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    fields = kind.model_fields
    for part in path:
        inner = fields[part].annotation
        choices = [c for c in (inner, *getattr(inner, "__args__", ())) if isinstance(c, type)]
        fields = next(c.model_fields for c in choices if issubclass(c, BaseModel))
    return sorted(fields)
