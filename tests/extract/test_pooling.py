"""Pooling equals what numpy computes, in every layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from icecore.extract.pooling import pool, pooling_for
from icecore.store import Pooling

MAPS = np.random.default_rng(0).normal(size=(3, 5, 4, 6)).astype(np.float32)  # (N, C, H, W)


def arranged(layout: str) -> torch.Tensor:
    if layout == "NHWC":
        return torch.from_numpy(MAPS.transpose(0, 2, 3, 1).copy())
    if layout == "NLC":
        return torch.from_numpy(MAPS.reshape(3, 5, 24).transpose(0, 2, 1).copy())
    return torch.from_numpy(MAPS)


def by_numpy(name: str) -> np.ndarray:
    flat = MAPS.reshape(3, 5, -1).astype(np.float64)
    if name == "avg":
        return flat.mean(-1)
    if name == "max":
        return flat.max(-1)
    p = Pooling.parse(name).p or 0
    return (np.maximum(flat, 1e-6) ** p).mean(-1) ** (1 / p)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NLC"])
@pytest.mark.parametrize("name", ["avg", "max", "gem", "gem(4.5)"])
def test_positions_are_pooled_in_every_layout(layout: str, name: str) -> None:
    pooled = pool(arranged(layout), layout, Pooling.parse(name))
    assert pooled.dtype == torch.float32
    np.testing.assert_allclose(pooled.numpy(), by_numpy(name), rtol=2e-6, atol=1e-6)  # float32 rounding


def test_half_precision_is_pooled_in_float32() -> None:
    ones = torch.full((1, 1, 300, 300), 10.0, dtype=torch.float16)  # the sum, 900,000, overflows float16
    assert pool(ones, "NCHW", Pooling.parse("avg")).item() == 10.0


def test_gem_with_a_large_exponent_does_not_overflow() -> None:
    maps = torch.tensor([1e4, 1e4]).view(1, 1, 1, 2)
    assert pool(maps, "NCHW", Pooling.parse("gem12")).item() == pytest.approx(1e4)


def test_a_vector_is_flat_whatever_is_asked() -> None:
    vectors = torch.randn(2, 7)
    assert pooling_for("NC", Pooling.parse("gem")) == Pooling("flat")
    assert torch.equal(pool(vectors, "NC", Pooling("flat")), vectors)


def test_flat_is_refused_for_positions() -> None:
    with pytest.raises(ValueError, match="use avg, max or gem"):
        pooling_for("NCHW", Pooling("flat"))
    with pytest.raises(ValueError, match="does not apply to a layer of layout NCHW"):
        pool(torch.zeros(1, 2, 3, 3), "NCHW", Pooling("flat"))
