"""From a layer's output to one vector an image, on the device where the output lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from icecore.store import Pooling

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pool", "pooling_for"]

_POSITIONS = {"NCHW": (2, 3), "NHWC": (1, 2), "NLC": (1,)}
_SMALLEST = 1e-6


def pool(maps: Tensor, layout: str, pooling: Pooling) -> Tensor:
    """Reduce every image's positions to one vector.

    Parameters
    ----------
    maps
        Floating-point tensor: (N, C, H, W), (N, H, W, C), (N, L, C) or (N, C), as ``layout`` says.
    layout
        ``NCHW``, ``NHWC``, ``NLC`` or ``NC``.
    pooling
        ``avg``, ``max``, ``gem`` with its exponent, over all positions; for ``NLC`` also ``cls``, the first token,
        and ``mean``, the mean of those after it; or ``flat`` for ``NC``.

    Returns
    -------
    torch.Tensor
        float32 of shape (N, C), computed in float32 whatever the input's precision.

    Raises
    ------
    ValueError
        When ``flat`` meets positions, another pooling meets none, or ``cls`` or ``mean`` meets no list of tokens.

    Notes
    -----
    GeM is the generalised mean of Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human
    annotation", 2018: the p-th root of the mean of x^p, with x at least 1e-6. The maximum is taken out of the
    sum first, so that x^p cannot overflow.
    """
    maps = maps.float()
    of_tokens = pooling.kind in {"cls", "mean"}
    if (layout == "NC") != (pooling.kind == "flat") or (of_tokens and layout != "NLC"):
        raise ValueError(f"pooling {pooling.name!r} does not apply to a layer of layout {layout}")
    if layout == "NC":
        return maps
    if pooling.kind == "cls":
        return maps[:, 0]
    if pooling.kind == "mean":
        return maps[:, 1:].mean(1)
    positions = _POSITIONS[layout]
    if pooling.kind == "avg":
        return maps.mean(positions)
    if pooling.kind == "max":
        return maps.amax(positions)
    return _gem(maps, positions, pooling.p or 3.0)


def _gem(maps: Tensor, positions: tuple[int, ...], p: float) -> Tensor:
    maps = maps.clamp(min=_SMALLEST)
    top = maps.amax(positions, keepdim=True)  # one a channel
    mean = (maps / top).pow(p).mean(positions)  # (N, C), within 0 to 1
    return mean.pow(1.0 / p) * top.flatten(1)


def pooling_for(layout: str, pooling: Pooling, *, class_token: bool = False) -> Pooling:
    """Give the pooling that a layer is stored under.

    A layer without positions is ``flat``, whatever was asked. ``mean``, the mean of the patches, is ``avg`` where no
    class token stands before them: the same numbers get the same name.

    Raises
    ------
    ValueError
        When ``flat`` is asked of a layer with positions, or ``cls`` of one without a class token.
    """
    if layout == "NC":
        return Pooling("flat")
    if pooling.kind == "flat":
        raise ValueError(
            f"pooling 'flat' is for layers without positions, not for layout {layout}: use avg, max or gem"
        )
    if pooling.kind == "cls" and not class_token:
        raise ValueError(f"pooling 'cls' is for layers with a class token, and this one ({layout}) has none: use mean")
    return Pooling("avg") if pooling.kind == "mean" and not class_token else pooling
