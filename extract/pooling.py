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
        ``avg``, ``max``, ``gem`` with its exponent, or ``flat`` for ``NC``.

    Returns
    -------
    torch.Tensor
        float32 of shape (N, C), computed in float32 whatever the input's precision.

    Raises
    ------
    ValueError
        When ``flat`` meets positions, or another pooling meets none.

    Notes
    -----
    GeM is the generalised mean of Radenovic, Tolias and Chum, "Fine-tuning CNN image retrieval with no human
    annotation", 2018: the p-th root of the mean of x^p, with x at least 1e-6. The maximum is taken out of the
    sum first, so that x^p cannot overflow.
    """
    maps = maps.float()
    if (layout == "NC") != (pooling.kind == "flat"):
        raise ValueError(f"pooling {pooling.name!r} does not apply to a layer of layout {layout}")
    if layout == "NC":
        return maps
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


def pooling_for(layout: str, pooling: Pooling) -> Pooling:
    """Give ``flat`` for a layer without positions, whatever was asked, else the pooling asked for.

    Raises
    ------
    ValueError
        When ``flat`` is asked of a layer with positions.
    """
    if layout == "NC":
        return Pooling("flat")
    if pooling.kind == "flat":
        raise ValueError(
            f"pooling 'flat' is for layers without positions, not for layout {layout}: use avg, max or gem"
        )
    return pooling
