"""Views of an image: crops of the resized image, and their mirror images. Knows no torch.

``flip`` asks for the plain image, which is the centre crop, and its mirror image. ``five-crop`` asks for the four
corners and the centre, as torchvision's FiveCrop cuts them; both together for these five and the mirror image of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, get_args

from icecore.store import Column
from icecore.store.contract import FULL

from .errors import PreprocessError
from .preprocess import Preprocess

__all__ = [
    "CORNERS",
    "StoreViews",
    "View",
    "asked_views",
    "columns_by_view",
    "crop_of",
    "crops_for",
    "is_mirrored",
    "require_room",
    "view_names",
]

View = Literal["flip", "five-crop"]
"""what can be asked for"""
StoreViews = Literal["averaged", "separate"]
"""one column of the mean over the views, or a column for each of them"""

CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
"""Crops in the corners of the resized image, in torchvision's order."""
_MIRRORED = {FULL: "flip", **{corner: f"{corner}-flip" for corner in CORNERS}}
_CROPS = {mirrored: crop for crop, mirrored in _MIRRORED.items()}


def view_names(asked: Sequence[str]) -> tuple[str, ...]:
    """Give the views that are meant, in the order in which they are averaged: ``("full", "flip")``.

    Raises
    ------
    PreprocessError
        When one asked for is unknown.
    """
    for view in asked:
        if view not in get_args(View):
            raise PreprocessError(f"views: no view {view!r}; it is {' or '.join(get_args(View))}")
    crops = (*CORNERS, FULL) if "five-crop" in asked else (FULL,)
    return (*crops, *(_MIRRORED[crop] for crop in crops)) if "flip" in asked else crops


def asked_views(names: Sequence[str]) -> tuple[View, ...]:
    """Give what to ask for to get the views of a contract: the inverse of ``view_names``.

    Raises
    ------
    PreprocessError
        When this release does not have these views: it would compute other features.
    """
    every: tuple[tuple[View, ...], ...] = ((), ("flip",), ("five-crop",), ("flip", "five-crop"))
    for asked in every:
        if view_names(asked) == tuple(names):
            return asked
    raise PreprocessError(f"views: this release cannot repeat the views {', '.join(names)}")


def require_room(names: Iterable[str], preprocess: Preprocess) -> None:
    """Return when every resized image is as large as its crops.

    Raises
    ------
    PreprocessError
        When it is not, and there are crops in corners.
    """
    if any(crop_of(name) != FULL for name in names) and preprocess.resize < preprocess.crop:
        raise PreprocessError(
            f"views: five-crop cuts {preprocess.crop} pixels out of each corner, and the shorter side has "
            f"{preprocess.resize}: set preprocess.resize to {preprocess.crop} or more"
        )


def crop_of(view: str) -> str:
    """Give the crop that a view shows, mirrored or not.

    Raises
    ------
    PreprocessError
        When there is no such view.
    """
    if view not in _MIRRORED and view not in _CROPS:
        raise PreprocessError(f"views: this release has no view {view!r}; it has {', '.join([*_MIRRORED, *_CROPS])}")
    return _CROPS.get(view, view)


def is_mirrored(view: str) -> bool:
    """Say whether a view shows the mirror image of its crop."""
    return view in _CROPS


def columns_by_view(columns: Iterable[Column], names: Sequence[str]) -> tuple[Column, ...]:
    """Give each column once for each view."""
    return tuple(replace(column, view=name) for column in columns for name in names)


def crops_for(averaged: Sequence[str], columns: Iterable[Column]) -> tuple[str, ...]:
    """Give the crops of each image that these columns need, when each is averaged over the views ``averaged``."""
    views = averaged if tuple(averaged) != (FULL,) else [column.view for column in columns]
    needed = {crop_of(view) for view in views}
    return tuple(crop for crop in (FULL, *CORNERS) if crop in needed)
