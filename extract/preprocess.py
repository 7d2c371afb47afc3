"""What happens to an image between file and network, as one value that goes whole into the contract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from .errors import PreprocessError

__all__ = ["LEAST_SCALE", "Decode", "Interpolation", "Preprocess"]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Decode = Literal["exact", "fast", "nvjpeg"]
"""how files become pixels: every pixel as Pillow decodes it, large JPEG files at 1/2, 1/4 or 1/8 of their size, or JPEG
files by nvJPEG on a CUDA device, which resizes all images"""

LEAST_SCALE = 2
"""How many times as long as after the resize ``fast`` leaves the shorter side, at least: with 2 the cosine of features
to those of ``exact`` stayed above 0.999, with 1 it fell to 0.990 (benchmarks/decode_speed.py)."""

_DECODING: Mapping[Decode, Mapping[str, Any]] = {
    "exact": {},
    "fast": {"scaling": "dct", "scaling_least": LEAST_SCALE},
    "nvjpeg": {"jpeg": "nvjpeg"},
}
"""what each way of decoding adds to its step; ``exact`` was there before the others and adds nothing"""
_RESIZING = {"by": "tensor"}
"""what the resize of a float32 tensor adds to its step: Pillow rounds after each axis, a tensor once"""
_LIMIT = 8192  # pixels a side; the largest of torchvision's own presets is 518


@dataclass(frozen=True)
class Preprocess:
    """Resize of the shorter side, centre crop and normalisation; the defaults are torchvision's preset.

    The policies that it always applies are part of ``steps``: EXIF orientation is applied, transparency is laid
    over white, grey is replicated, 16-bit grey is scaled to 8 bits, CMYK is converted by Pillow, of an
    animation the first frame counts, colour profiles are ignored.

    Raises
    ------
    PreprocessError
        When a size is not within 1 to 8192, the interpolation or the way of decoding is unknown or the two do not go
        together, or ``mean`` and ``std`` are not three finite numbers each (``std`` above 0).

    Examples
    --------
    >>> Preprocess(resize=232).steps[3]["size"]
    232
    """

    resize: int = 256
    """length of the shorter side after resizing, in pixels"""
    crop: int = 224
    """side of the square cut from the centre, in pixels; smaller images are padded with black"""
    interpolation: Interpolation = "bilinear"
    """filter of the resize; Pillow antialiases all but ``nearest``"""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """subtracted from red, green and blue, as shares of 1"""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """what each is then divided by"""
    decode: Decode = "exact"
    """``fast`` decodes a JPEG at 1/2, 1/4 or 1/8 of its size where its shorter side stays twice ``resize`` or longer;
    ``nvjpeg`` decodes JPEG files on a CUDA device, and resizes all images there (not by ``lanczos``)"""

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _LIMIT:
                raise PreprocessError(f"preprocess: {name} must be an integer from 1 to {_LIMIT}, found {size!r}")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise PreprocessError(f"preprocess: interpolation is one of {known}, found {self.interpolation!r}")
        if self.decode not in get_args(Decode):
            raise PreprocessError(f"preprocess: decode is one of {', '.join(get_args(Decode))}, found {self.decode!r}")
        if self.decode == "nvjpeg" and self.interpolation == "lanczos":
            raise PreprocessError(
                "preprocess: decode nvjpeg resizes on the device, which has no lanczos: take another interpolation "
                '(nearest, bilinear, bicubic), or decode = "exact"'
            )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise PreprocessError(f"preprocess: std must be above 0, found {self.std}")

    @classmethod
    def from_transforms(cls, transforms: Any) -> Preprocess:
        """Take the values of a torchvision ``ImageClassification`` preset, as ``weights.transforms()`` gives.

        Raises
        ------
        PreprocessError
            When the preset does something else than resize the shorter side and crop a centred square.
        """
        try:
            (resize,), (crop,) = transforms.resize_size, transforms.crop_size
            interpolation = transforms.interpolation.value
            mean, std = tuple(transforms.mean), tuple(transforms.std)
        except (AttributeError, TypeError, ValueError) as exc:
            kind = type(transforms).__name__
            raise PreprocessError(f"preprocess: {kind} is not torchvision's ImageClassification preset") from exc
        return cls(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)

    @classmethod
    def from_steps(cls, steps: Sequence[Mapping[str, Any]]) -> Preprocess:
        """Read back what ``steps`` gave.

        Raises
        ------
        PreprocessError
            When a step or policy is one that this release does not have: it would compute other features.
        """
        found = {str(step.get("op")): step for step in steps}
        try:
            value = cls(
                resize=found["resize"]["size"],
                crop=found["crop"]["size"],
                interpolation=found["resize"]["interpolation"],
                mean=tuple(found["normalise"]["mean"]),
                std=tuple(found["normalise"]["std"]),
                decode=_decode_of(found.get("decode", {})),
            )
        except KeyError as exc:
            raise PreprocessError(f"preprocess: the steps {list(found)} lack {exc}") from exc
        ours, theirs = value.steps, tuple(dict(step) for step in steps)
        if ours != theirs:
            odd = [theirs_ for theirs_ in theirs if theirs_ not in ours] or [o for o in ours if o not in theirs]
            raise PreprocessError(f"preprocess: this release cannot repeat the step {odd[0] if odd else theirs}")
        return value

    def changed(self, changes: Mapping[str, Any]) -> Preprocess:
        """Give a copy with some fields replaced.

        Raises
        ------
        PreprocessError
            When a field is unknown or its value impossible.
        """
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise PreprocessError(f"preprocess: no field {name!r}; it has {', '.join(known)}")
        return replace(self, **changes)

    @property
    def steps(self) -> tuple[dict[str, Any], ...]:
        """Every step with its parameters, in order: flat dicts of plain JSON values, for the contract."""
        decoding, resizing = _DECODING[self.decode], _RESIZING if self.decode == "nvjpeg" else {}
        return (
            {"op": "decode", "frame": "first", "colour_profile": "ignored", **decoding},
            {
                "op": "colour",
                "to": "RGB",
                "alpha": "over white",
                "cmyk": "pillow",
                "grey": "replicated",
                "grey16": "shifted right by 8",
                "palette": "expanded",
            },
            {"op": "orient", "exif": "applied"},
            {
                "op": "resize",
                "size": self.resize,
                "side": "shorter",
                "interpolation": self.interpolation,
                "antialias": self.interpolation != "nearest",
                **resizing,
            },
            {"op": "crop", "size": self.crop, "place": "centre", "pad": 0},
            {"op": "normalise", "divide": 255, "mean": list(self.mean), "std": list(self.std)},
        )


def _decode_of(step: Mapping[str, Any]) -> Decode:
    if "jpeg" in step:
        return "nvjpeg"
    return "fast" if "scaling" in step else "exact"


def _three(name: str, values: Any) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as exc:
        raise PreprocessError(f"preprocess: {name} must be three numbers, found {values!r}") from exc
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise PreprocessError(f"preprocess: {name} must be three finite numbers, found {values!r}")
    return numbers
