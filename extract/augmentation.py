"""Random views of an image for training: the presets, by torchvision's transforms, each view with a seed of its own.

So a view is the same whichever process makes it, and however many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

from .errors import TuningError
from .preprocess import Preprocess
from .tuning_options import Augment

__all__ = ["augmentation", "random_view"]

_INTERPOLATION = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
_SCALE = (0.5, 1.0)
"""Share of the area that a random crop covers."""


def augmentation(name: Augment, preprocess: Preprocess) -> Callable[[Image.Image], Any] | None:
    """Give the transform of a preset, from an upright RGB image to an image of ``crop`` x ``crop``; None for ``none``.

    Raises
    ------
    TuningError
        When there is no such preset.
    """
    if name not in get_args(Augment):
        raise TuningError(f"augment: one of {', '.join(get_args(Augment))}, found {name!r}")
    if name == "none":
        return None
    side, how = preprocess.crop, _INTERPOLATION[preprocess.interpolation]
    if name == "shift":
        resize = v2.Resize(preprocess.resize, interpolation=how, antialias=True)
        shifted: Callable[[Image.Image], Any] = v2.Compose(
            [resize, v2.CenterCrop(side), v2.RandomCrop(side, padding=side // 8, padding_mode="edge")]
        )
        return shifted
    steps: list[Any] = [v2.RandomResizedCrop(side, scale=_SCALE, interpolation=how, antialias=True)]
    steps.append(v2.RandomHorizontalFlip())
    if name == "colour":
        steps.append(v2.ColorJitter(0.3, 0.3, 0.3))
    if name == "rand":
        steps.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))
    composed: Callable[[Image.Image], Any] = v2.Compose(steps)
    return composed


def random_view(image: Image.Image, transform: Callable[[Image.Image], Any], seed: int) -> np.ndarray:
    """Give a view of an image as uint8 (3, S, S); torch's random state stays as it was.

    Parameters
    ----------
    image
        Upright RGB.
    transform
        As ``augmentation`` gives it.
    seed
        Decides the view.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.ascontiguousarray(np.asarray(transform(image)).transpose(2, 0, 1))
