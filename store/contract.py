"""The contract: all that decides a feature's value, as two hashed values.

The *base* contract (``Contract``) names the network, its weights as loaded, every preprocessing step and the
numerics; one generation of a feature set holds exactly one. A ``Column`` is one layer under one pooling.
Batch size, threads, device, paths and library versions are in neither: they must not change a value, and are
recorded beside the features instead.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from .errors import FormatError

__all__ = ["FULL", "NUMERICS", "Column", "Contract", "Difference", "Dtype", "Layout", "Pooling", "canonical_json"]

Dtype = Literal["float16", "float32"]
Layout = Literal["NCHW", "NHWC", "NLC", "NC"]

NUMERICS = ("precision", "decoder")
"""Fields of the base contract in which the nightly GPU and the laptop that predicts may differ."""

MAX_WIDTH = 1_000_000
"""Most numbers an image that a column may have: 4 MB a row as float32."""

FULL = "full"
"""The view that is the plain image."""

_VIEW = re.compile(r"[a-z]+(-[a-z]+)*")
_GEM = re.compile(r"gem(?P<open>\()?(?P<p>\d{1,3}(?:\.\d{1,12})?)?(?(open)\))")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Difference:
    """One field in which two contracts differ."""

    field: str
    """dotted name of the field"""
    ours: Any
    """its value in the contract that asked"""
    theirs: Any
    """its value in the other one"""


@dataclass(frozen=True)
class Contract:
    """The base contract of a generation.

    Two contracts are equal when their canonical JSON is. ``hash`` is the sha256 of it.
    """

    architecture: str
    """builder of the network: ``torchvision.models.resnet18`` or ``package.module:function``"""
    arguments: Mapping[str, Any]
    """keyword arguments of the builder that change values"""
    weights: str
    """sha256, in hex, of the tensors as loaded"""
    preprocess: tuple[Mapping[str, Any], ...]
    """every step from file to tensor with its parameters, in order"""
    decoder: str
    """family of the image decoder"""
    views: tuple[str, ...]
    """the crops or flips whose features are averaged; ``("full",)`` is the plain image"""
    precision: str
    """arithmetic of the forward pass: ``fp32``, ``bf16`` or ``fp16``"""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.weights):
            raise FormatError(f"contract: weights must be a sha256 in hex, found {self.weights!r}")

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return _sha256(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Give the contract as plain JSON values."""
        return json.loads(canonical_json(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Contract:
        """Read back what ``to_json`` gave.

        Raises
        ------
        FormatError
            When a field is missing or unknown.
        """
        names = {f.name for f in fields(cls)}
        if set(value) != names:
            odd = sorted(set(value) ^ names)
            raise FormatError(f"contract: fields {odd} are missing or unknown; expected {sorted(names)}")
        return cls(**{**value, "preprocess": tuple(value["preprocess"]), "views": tuple(value["views"])})

    def diff(self, other: Contract) -> tuple[Difference, ...]:
        """Give the fields in which ``other`` differs, in the order of the fields; empty when equal."""
        ours, theirs = dict(_leaves(self.to_json())), dict(_leaves(other.to_json()))
        return tuple(
            Difference(name, ours.get(name), theirs.get(name))
            for name in dict.fromkeys([*ours, *theirs])
            if ours.get(name) != theirs.get(name)
        )

    def __hash__(self) -> int:
        return hash(self.hash)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contract) and self.hash == other.hash


@dataclass(frozen=True)
class Pooling:
    """How a layer's map becomes one vector an image."""

    kind: Literal["avg", "max", "gem", "cls", "mean", "flat"]
    """mean, maximum, generalised mean over all positions; ``cls`` the class token, ``mean`` the mean of the tokens
    after it; ``flat`` for a layer that is a vector already"""
    p: float | None = None
    """exponent of the generalised mean, > 0"""

    @classmethod
    def parse(cls, text: str) -> Pooling:
        """Read ``avg``, ``max``, ``cls``, ``mean``, ``flat``, ``gem`` (exponent 3), ``gem4`` or ``gem(4)``.

        Raises
        ------
        ValueError
            When the text is none of these.
        """
        if text in {"avg", "max", "cls", "mean", "flat"}:
            return cls(text)  # type: ignore[arg-type]
        if (match := _GEM.fullmatch(text)) and float(match["p"] or 3) > 0 and text != "gem()":
            return cls("gem", float(match["p"] or 3))
        raise ValueError(
            f"no pooling {text!r}: it is avg, max, gem (exponent 3), gem(P) with 0 < P < 1000, cls or mean"
        )

    @property
    def name(self) -> str:
        """``avg``, ``max``, ``cls``, ``mean``, ``flat``, or ``gem`` with its exponent: ``gem3``."""
        return self.kind if self.p is None else f"{self.kind}{repr(self.p).removesuffix('.0')}"


@dataclass(frozen=True)
class Column:
    """One layer under one pooling, as stored."""

    layer: str
    """node name of torchvision's ``feature_extraction``, such as ``layer4`` or ``features.12``"""
    pooling: Pooling
    """how its map becomes a vector"""
    width: int = field(compare=False)
    """numbers an image, D: 1 to 1,000,000"""
    dtype: Dtype = "float16"
    """what is stored"""
    layout: Layout = "NCHW"
    """meaning of the layer's axes before pooling"""
    view: str = FULL
    """the crop or flip that it is computed from; ``full`` is what the base contract's views say"""

    def __post_init__(self) -> None:
        if self.dtype not in get_args(Dtype) or self.layout not in get_args(Layout):
            raise FormatError(f"column {self.layer}: unknown dtype {self.dtype!r} or layout {self.layout!r}")
        if not 1 <= self.width <= MAX_WIDTH:
            raise FormatError(f"column {self.layer}: {self.width:,} numbers an image, expected 1 to {MAX_WIDTH:,}")
        if not _VIEW.fullmatch(self.view):
            raise FormatError(f"column {self.layer}: {self.view!r} is not the name of a view, such as flip")
        if not self.layer or "/" in self.layer or ":" in self.layer or "\0" in self.layer:
            raise FormatError(f"column: {self.layer!r} is not a layer name ('/' and ':' are not allowed)")

    @property
    def name(self) -> str:
        """``layer4:avg``, ``layer4:avg@flip`` of a view, with ``:float32`` where the dtype is not float16."""
        view = "" if self.view == FULL else f"@{self.view}"
        suffix = "" if self.dtype == "float16" else f":{self.dtype}"
        return f"{self.layer}:{self.pooling.name}{view}{suffix}"

    @property
    def hash(self) -> str:
        """sha256, in hex, of layer, pooling, dtype, layout and view; the width follows from the base contract."""
        return _sha256(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Give what is hashed, as plain JSON values."""
        pooling = {"kind": self.pooling.kind, "p": self.pooling.p}
        view = {} if self.view == FULL else {"view": self.view}  # columns from before there were views keep their hash
        return {"dtype": self.dtype, "layer": self.layer, "layout": self.layout, "pooling": pooling, **view}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], width: int) -> Column:
        """Read back what ``to_json`` gave."""
        pooling, view = Pooling(**value["pooling"]), value.get("view", FULL)
        return cls(value["layer"], pooling, width, value["dtype"], value["layout"], view)


def canonical_json(value: Any) -> bytes:
    """Give JSON with sorted keys, no spaces, no NaN, in ASCII: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk nested JSON to ``preprocess.resize.size``-like names; steps are named by their ``op``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}[{index}:{item.get('op', '')}]")
    else:
        yield prefix, value
