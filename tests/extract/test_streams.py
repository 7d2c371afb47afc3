"""Passes on a GPU: slots, padding, order and halving, on a device that stands for one; and on a real one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import load_backbone
from icecore.extract.errors import DeviceError
from icecore.extract.layers import columns_for
from icecore.extract.streams import CudaPlatform, Halving, Streams, is_shortage
from icecore.extract.trunk import Trunk
from torch import Tensor

SIDE = 4


class Queued:
    """The CPU as a device of queues and events, with memory for passes of ``most`` images."""

    device = torch.device("cpu")

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.slots = 0
        self.recorded_times = 0
        self.log: list[str] = []

    def locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype == torch.uint8:
            self.slots += 1
        return torch.full(shape, 99, dtype=dtype)  # what was there before

    def queue(self) -> Any:
        platform = self

        class Queue:
            def wait_event(self, event: Any) -> None:
                assert event.recorded, "waits for what was never ordered"
                platform.log.append("wait")

            def synchronize(self) -> None:
                platform.log.append("synchronize")

        return Queue()

    def within(self, queue: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def event(self) -> Any:
        class Event:
            recorded = False

            def record(self, queue: Any) -> None:
                self.recorded = True

            def synchronize(self) -> None:
                assert self.recorded

            def elapsed_time(self, later: Any) -> float:
                assert self.recorded
                assert later.recorded
                return 500.0

        return Event()

    def recorded(self, body: Callable[[Tensor], tuple[Tensor, ...]], pixels: Tensor, queue: Any) -> Any:
        self.recorded_times += 1
        outputs = tuple(out.clone() for out in body(pixels))

        def repeat() -> tuple[Tensor, ...]:
            for out, new in zip(outputs, body(pixels), strict=True):
                out.copy_(new)
            return outputs

        return repeat

    def body(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Sums and first pixels."""
        if len(batch) > self.most:
            raise torch.OutOfMemoryError(f"{len(batch)} images")
        flat = batch.float().flatten(1)
        return flat.sum(1, keepdim=True), flat[:, :2]


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)


def expected(given: np.ndarray) -> list[np.ndarray]:
    flat = given.reshape(len(given), -1).astype(np.float32)
    return [flat.sum(1, keepdims=True), flat[:, :2]]


def streams(platform: Queued, size: int = 4, *, record: bool = True) -> Streams:
    return Streams(platform.body, (size, 3, SIDE, SIDE), [1, 2], platform, record=record)


@pytest.mark.parametrize("record", [True, False])
def test_each_pass_gives_its_own_rows_whatever_the_order_of_taking(record: bool) -> None:
    platform = Queued()
    passes = streams(platform, record=record)
    given = [pixels(1 + n % 4, n) for n in range(9)]
    waits = [passes.start(one) for one in given]
    for n in (3, 0, 8, 1, 2, 7, 5, 4, 6):
        for found, wanted in zip(waits[n](), expected(given[n]), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert platform.slots == 9
    assert platform.recorded_times == int(record)
    assert passes.seconds == 4.5


def test_slots_are_used_again_once_their_rows_were_taken() -> None:
    platform = Queued()
    passes = streams(platform)
    waits = []
    for n in range(30):
        waits.append(passes.start(pixels(2, n)))
        if len(waits) == 3:
            waits.pop(0)()
    assert platform.slots == 3


def test_rows_that_were_taken_do_not_change_when_their_slot_is_used_again() -> None:
    passes = streams(Queued())
    first = passes.start(pixels(4, 0))()
    passes.start(pixels(4, 1))()
    for found, wanted in zip(first, expected(pixels(4, 0)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("most", "size"), [(8, 8), (7, 4), (3, 2), (1, 1)])
def test_passes_are_halved_until_they_fit(most: int, size: int) -> None:
    platform, freed = Queued(most), 0

    def free() -> None:
        nonlocal freed
        freed += 1

    passes = Halving(lambda n: streams(platform, n), 8, free)
    given = pixels(7, 0)
    for found, wanted in zip(passes.start(given)(), expected(given), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert passes.size == size
    assert freed == {8: 0, 4: 1, 2: 2, 1: 3}[size]


def test_memory_that_runs_out_in_the_middle_loses_and_doubles_nothing() -> None:
    """Another program took it: passes ordered before are whole, the rest is done in smaller ones."""
    platform = Queued()
    passes = Halving(lambda n: streams(platform, n, record=False), 4, lambda: None)
    before = passes.start(pixels(4, 0))
    platform.most = 2
    after = passes.start(pixels(4, 1))
    for wait, seed in ((before, 0), (after, 1)):
        for found, wanted in zip(wait(), expected(pixels(4, seed)), strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert passes.size == 2
    assert passes.seconds == 1.5  # of three passes


def test_libraries_have_words_of_their_own_for_a_lack_of_memory() -> None:
    assert is_shortage(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert is_shortage(RuntimeError("CUDA error: out of memory"))
    assert not is_shortage(RuntimeError("CUDA error: an illegal memory access was encountered"))

    def broken(size: int) -> Streams:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        Halving(broken, 8, lambda: None)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(DeviceError, match="does not suffice for a pass of one image"):
        Halving(lambda n: streams(Queued(0), n), 8, lambda: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compilation", ["always", "never"])
def test_on_a_gpu_passes_under_way_give_what_the_cpu_gives(compilation: Any, assets: Path) -> None:
    backbone = load_backbone("squeezenet1_1", assets / "weights/squeezenet1_1.pth")
    columns = columns_for(backbone.layers, ["features.6", "features.12"], ["avg"])
    given = [np.random.default_rng(n).integers(0, 256, (1 + n % 4, 3, 224, 224), dtype=np.uint8) for n in range(7)]
    exact = Trunk(backbone, columns, device="cpu", batch_size=4)
    wanted = [exact.forward(one) for one in given]
    found = Trunk(backbone, columns, device="cuda", batch_size=4, compilation=compilation)
    assert found.engine == {"always": "graph", "never": "eager"}[compilation]
    for wait, rows in zip([found.start(one) for one in given], wanted, strict=True):
        for column, values in wait().items():
            np.testing.assert_allclose(values, rows[column], atol=1e-4 * np.abs(rows[column]).max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_memory_that_a_gpu_refuses_halves_the_passes(assets: Path) -> None:
    backbone = load_backbone("squeezenet1_1", assets / "weights/squeezenet1_1.pth")
    columns = columns_for(backbone.layers, ["features.12"], ["avg"])
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.5e9 / torch.cuda.mem_get_info()[1])
    try:
        trunk = Trunk(backbone, columns, device="cuda", batch_size=1024, compilation="never")
        given = np.random.default_rng(0).integers(0, 256, (1024, 3, 224, 224), dtype=np.uint8)
        rows = trunk.forward(given)[columns[0]]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert rows.shape[0] == 1024
    assert trunk.pass_size < 1024
    assert CudaPlatform(torch.device("cuda", 0)).locked((2,), torch.float32).is_pinned()
