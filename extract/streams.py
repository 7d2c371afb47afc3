"""Several passes under way on a GPU: while one computes, the next is copied there and the one before comes back.

Each pass has a slot: page-locked memory on both ways, and memory on the device. Copies to the device have a queue of
their own; an event orders them before the pass that needs them. The pass is recorded once as a CUDA graph, so that the
processor gives one order a pass instead of one an operation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .devices import exact_fp32
from .errors import DeviceError

__all__ = ["CudaPlatform", "Halving", "Platform", "Streams", "device_alone", "is_shortage"]

Body = Callable[[Tensor], tuple[Tensor, ...]]
"""from a uint8 batch to the pooled columns, float32 of (B, D) each"""

device_alone = threading.Lock()
"""held while a pass is recorded, and by other threads while they order work: what waits for the whole device breaks a
recording"""


class Platform(Protocol):
    """What is asked of a device: queues that work beside the processor, and events that order them."""

    device: torch.device
    """where the memory of the passes lies"""

    def locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give memory of the processor that the device copies from and to by itself."""

    def queue(self) -> Any:
        """Give a queue: ``wait_event(event)``, and ``synchronize()``."""

    def within(self, queue: Any) -> AbstractContextManager[Any]:
        """Let what is ordered in the block go into a queue."""

    def event(self) -> Any:
        """Give an event: ``record(queue)``, ``synchronize()``, and ``elapsed_time(later)`` in milliseconds."""

    def recorded(self, body: Body, pixels: Tensor, queue: Any) -> Callable[[], tuple[Tensor, ...]]:
        """Record a pass over ``pixels``, whose values may change; what is given repeats it into the same outputs."""


class CudaPlatform:
    """A CUDA device, by its index."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        torch.cuda.synchronize(device)  # the weights, which are copied in another queue

    def locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Give page-locked memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def queue(self) -> Any:
        """Give a stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def within(self, queue: Any) -> AbstractContextManager[Any]:
        """Make a stream the current one."""
        return torch.cuda.stream(queue)

    def event(self) -> Any:
        """Give an event that tells the time."""
        return torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]

    def recorded(self, body: Body, pixels: Tensor, queue: Any) -> Callable[[], tuple[Tensor, ...]]:
        """Record a CUDA graph."""
        with torch.cuda.stream(queue):
            for _ in range(3):  # libraries choose and allocate before the pass that counts
                body(pixels)
        queue.synchronize()
        graph = torch.cuda.CUDAGraph()
        with device_alone, torch.cuda.graph(graph, stream=queue, capture_error_mode="thread_local"):
            outputs = body(pixels)
        tensors = (*body.parameters(), *body.buffers()) if isinstance(body, nn.Module) else ()
        return _Graph(graph, outputs, [tensor.detach() for tensor in tensors])


class _Graph:
    """A recorded pass, with the weights: it knows their addresses alone, and whoever has the network may move it."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: tuple[Tensor, ...], weights: list[Tensor]) -> None:
        self._graph, self._outputs, self._weights = graph, outputs, weights

    def __call__(self) -> tuple[Tensor, ...]:
        self._graph.replay()
        return self._outputs


class Streams:
    """Passes of one shape on a device.

    Parameters
    ----------
    body
        The pass; lives on the device.
    shape
        Of its batch, (B, 3, S, S).
    widths
        Of its outputs.
    platform
        The device.
    record
        Record the pass and repeat it, or order its operations each time.
    fills
        Fill each batch with black images; what is recorded has to be filled.
    """

    def __init__(
        self,
        body: Body,
        shape: tuple[int, int, int, int],
        widths: Sequence[int],
        platform: Platform,
        *,
        record: bool,
        fills: bool = True,
    ) -> None:
        self._body, self._shape, self._widths, self._platform = body, shape, tuple(widths), platform
        self._fills = fills or record
        self._copies, self._passes = platform.queue(), platform.queue()
        self._free: list[_Slot] = []
        self._closed = False
        self.seconds = 0.0
        """time that passes took, copying back included"""
        self._recorded: Callable[[], tuple[Tensor, ...]] | None = None
        self._input: Tensor | None = None
        if record:
            with torch.inference_mode(), exact_fp32(platform.device):
                with platform.within(self._passes):
                    self._input = torch.zeros(shape, dtype=torch.uint8, device=platform.device)
                self._recorded = platform.recorded(body, self._input, self._passes)

    @property
    def size(self) -> int:
        """Images of a pass."""
        return self._shape[0]

    def start(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Order a pass over 1 to ``size`` images; what is given waits for its end, and must be called once.

        Raises
        ------
        torch.OutOfMemoryError
            When the device has too little; passes that were ordered before are whole.
        """
        slot = self._free.pop() if self._free else _Slot(self._shape, self._widths, self._platform, self._copies)
        n = len(pixels)
        slot.given[:n] = torch.from_numpy(np.ascontiguousarray(pixels))
        slot.given[n:] = 0
        rows = self._shape[0] if self._fills else n
        with torch.inference_mode(), exact_fp32(self._platform.device):
            with self._platform.within(self._copies):
                slot.pixels.copy_(slot.given, non_blocking=True)
                slot.arrived.record(self._copies)
            with self._platform.within(self._passes):
                self._passes.wait_event(slot.arrived)
                slot.begun.record(self._passes)
                for out, found in zip(slot.taken, self._pass(slot.pixels[:rows]), strict=True):
                    out[:rows].copy_(found, non_blocking=True)
                slot.done.record(self._passes)
        return partial(self._take, slot, n)

    def close(self) -> None:
        """Wait for every pass, and let go of the memory."""
        self._copies.synchronize()
        self._passes.synchronize()
        self._closed = True
        self._free.clear()
        self._recorded = self._input = None

    def _pass(self, pixels: Tensor) -> tuple[Tensor, ...]:
        if self._recorded is None or self._input is None:
            return self._body(pixels)
        self._input.copy_(pixels, non_blocking=True)
        return self._recorded()

    def _take(self, slot: _Slot, n: int) -> list[np.ndarray]:
        slot.done.synchronize()
        self.seconds += slot.begun.elapsed_time(slot.done) / 1000
        rows = [out[:n].numpy().copy() for out in slot.taken]
        if not self._closed:
            self._free.append(slot)
        return rows


class Halving:
    """Passes that get smaller where the device's memory does not suffice.

    Parameters
    ----------
    make
        Gives the streams for passes of so many images.
    size
        Images of a pass, to begin with.
    free
        Gives the device's unused memory back, before smaller passes are tried.

    Raises
    ------
    DeviceError
        When the memory does not suffice for one image.
    """

    def __init__(self, make: Callable[[int], Streams], size: int, free: Callable[[], None]) -> None:
        self._make, self._free = make, free
        self._streams: Streams | None = None
        self._larger: list[Streams] = []  # those before; some of their rows may still be taken
        self._size = size
        while self._streams is None:
            self._try()

    at_once = 3
    """passes that may be under way: one computes, one arrives, one comes back"""

    @property
    def size(self) -> int:
        """Images of a pass."""
        return self._size

    @property
    def seconds(self) -> float:
        """Time that passes took, copying back included."""
        now = self._streams.seconds if self._streams is not None else 0.0
        return now + sum(streams.seconds for streams in self._larger)

    def start(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Order as many passes as it takes; what is given waits for their end, and must be called once."""
        waits: list[Callable[[], list[np.ndarray]]] = []
        at = 0
        while at < len(pixels):
            if self._streams is None:
                self._try()
                continue
            part = pixels[at : at + self._size]
            try:
                waits.append(self._streams.start(part))
            except RuntimeError as exc:
                if not is_shortage(exc):
                    raise
                self._halve(exc)
                continue
            at += len(part)
        return lambda: [np.concatenate(rows) for rows in zip(*(wait() for wait in waits), strict=True)]

    def close(self) -> None:
        """Wait for every pass, and let go of the memory."""
        if self._streams is not None:
            self._streams.close()

    def _try(self) -> None:
        try:
            self._streams = self._make(self._size)
        except RuntimeError as exc:
            if not is_shortage(exc):
                raise
            self._halve(exc)

    def _halve(self, exc: RuntimeError) -> None:
        if self._size == 1:
            raise DeviceError("the device's memory does not suffice for a pass of one image") from exc
        self.close()
        if self._streams is not None:
            self._larger.append(self._streams)
        self._streams = None
        self._size //= 2
        self._free()


def is_shortage(exc: RuntimeError) -> bool:
    """Say whether an error is that of a device without memory left; its libraries have words of their own for it."""
    told = str(exc).lower()
    return isinstance(exc, torch.OutOfMemoryError) or "out of memory" in told or "alloc_failed" in told


class _Slot:
    """Memory of a pass under way; used again once its rows have been taken."""

    def __init__(
        self, shape: tuple[int, int, int, int], widths: Sequence[int], platform: Platform, copies: Any
    ) -> None:
        self.given = platform.locked(shape, torch.uint8)
        with platform.within(copies):  # memory that another queue is about to write to is not given out to this one
            self.pixels = torch.empty(shape, dtype=torch.uint8, device=platform.device)
        self.taken = [platform.locked((shape[0], width), torch.float32) for width in widths]
        self.arrived, self.begun, self.done = platform.event(), platform.event(), platform.event()
