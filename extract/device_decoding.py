"""Images decoded and resized on a device for many threads at once: what waits is answered together.

Each thread looks at the header of its file. What the device may decode goes there as it is; what it may not, or
refuses, goes there as Pillow's pixels, so that all are resized in one way. One thread serves the device: whenever that
is free it takes what waits, up to a number of images and of pixels, and waits for no more.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from icecore.store.contract import FULL
from torch import Tensor

from .decoding import MAX_PIXELS, decode_image
from .errors import DeviceError, first_line
from .images import resized_size
from .jpeg_files import size_for_device
from .nvjpeg import JpegPlatform
from .pipeline import default_threads
from .preprocess import Preprocess
from .streams import device_alone, is_shortage
from .tensor_images import crop_tensor, resize_tensor

__all__ = ["MOST_IMAGES", "MOST_PIXELS", "DeviceLoader"]

log = logging.getLogger(__name__)

MOST_IMAGES, MOST_PIXELS = 64, 1 << 26
"""Images answered together, and their pixels: 200 MB of the device's memory, and 12 bytes a pixel of the image that is
being resized. A larger image goes alone."""
MOST_BYTES = 1 << 26
"""Crops answered together, in bytes of page-locked memory (one image may have more)."""
TRUSTED = 64
"""Files refused by a device that has decoded none, though Pillow decodes them, after which it is taken for broken."""


class _RefusedError(Exception):
    """The device does not decode a file; Pillow may."""


@dataclass
class _Request:
    """An image that a thread waits for."""

    given: Tensor
    """uint8 on the CPU: the file of (bytes,), or its pixels of (H, W, 3)"""
    size: tuple[int, int]
    """width and height before the resize"""
    target: tuple[int, int]
    """width and height after it"""
    answer: Future[np.ndarray] = field(default_factory=Future)
    """uint8 (crops, 3, S, S)"""

    @property
    def is_file(self) -> bool:
        return self.given.ndim == 1

    @property
    def weight(self) -> int:
        """Pixels that it costs, before or after the resize."""
        return max(self.size[0] * self.size[1], self.target[0] * self.target[1])


class DeviceLoader:
    """Gives the pixels of images to any number of threads. Close it when the last has been answered.

    Parameters
    ----------
    preprocess
        Sizes and interpolation.
    platform
        The device.
    max_pixels
        Limit of width x height, as ``load_image`` takes it.
    crops
        What is cut out of each image, as ``load_image`` takes it.
    """

    def __init__(
        self,
        preprocess: Preprocess,
        platform: JpegPlatform,
        *,
        max_pixels: int = MAX_PIXELS,
        crops: Sequence[str] = (FULL,),
    ) -> None:
        self._preprocess, self._platform, self._max_pixels = preprocess, platform, max_pixels
        self._crops = tuple(crops)
        shape = (len(self._crops), 3, preprocess.crop, preprocess.crop)
        self._most_images = max(1, min(MOST_IMAGES, MOST_BYTES // math.prod(shape)))
        self._most_pixels = MOST_PIXELS
        self._host = platform.locked((self._most_images, *shape))
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closed: DeviceError | None = None
        self._counts = {"device": 0, "pillow": 0}
        self._refused, self._said = 0, ""
        self._by_pillow = threading.Semaphore(default_threads())  # of the whole images that it leaves in memory
        self._server = threading.Thread(target=self._serve, name="icecore-device-decode", daemon=True)
        self._server.start()

    @property
    def counts(self) -> Mapping[str, int]:
        """Images that were given so far, by what decoded them: ``device`` and ``pillow``."""
        with self._changed:
            return dict(self._counts)

    def load(self, data: bytes) -> np.ndarray:
        """Give what ``load_image`` gives, resized on the device; waits for it.

        Raises
        ------
        ImageError
            With kind ``decode``, ``too-large`` or ``unsupported``.
        DeviceError
            When the device fails, has refused each of the first 64 files that it was given and Pillow could decode, or
            the loader was closed.
        """
        size = size_for_device(data, max_pixels=self._max_pixels)
        said = ""
        if size is not None:
            file = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            try:
                return self._ask(file, size, "device")
            except _RefusedError as exc:
                said = str(exc)
        with self._by_pillow:
            image = decode_image(data, max_pixels=self._max_pixels)
            if said:
                self._count_refused(said)
            return self._ask(torch.from_numpy(np.array(image)), image.size, "pillow")

    def close(self) -> None:
        """Let go of the device; threads that still wait are told with a DeviceError."""
        self._stop(DeviceError("the decoding on the device was ended while an image waited for it"))
        self._server.join()
        if self._refused and not self._counts["device"]:
            log.warning("%s decoded none of %d JPEG files (%s)", self._platform.device, self._refused, self._said)

    # --- what the threads of the callers do

    def _ask(self, given: Tensor, size: tuple[int, int], way: str) -> np.ndarray:
        target = resized_size(*size, self._preprocess.resize, self._max_pixels)
        request = _Request(given, size, target)
        with self._changed:
            if self._closed is not None:
                raise DeviceError(str(self._closed)) from self._closed
            self._waiting.append(request)
            self._changed.notify_all()
        rows = request.answer.result()  # (crops, 3, S, S)
        with self._changed:
            self._counts[way] += 1
        return rows[0] if self._crops == (FULL,) else rows

    def _count_refused(self, said: str) -> None:
        with self._changed:
            self._refused, self._said = self._refused + 1, said
            broken = self._refused >= TRUSTED and not self._counts["device"]
        if broken:
            raise DeviceError(
                f"{self._platform.device} decoded none of the first {TRUSTED} JPEG files, and Pillow decodes them; it "
                f'says: {said}; set preprocess.decode = "exact", or put the driver right'
            )

    # --- what the thread of the device does

    def _serve(self) -> None:
        group: Sequence[_Request] = ()
        try:
            while group := self._next_group():
                with device_alone, torch.inference_mode():
                    self._answer(group)
        except Exception as exc:  # noqa: BLE001 - told to every thread that waits, or comes later
            device = self._platform.device
            failed = f"{device} failed while it decoded and resized images ({first_line(exc)})"
            self._stop(DeviceError(failed), (request for request in group if not request.answer.done()))

    def _stop(self, why: DeviceError, begun: Iterable[_Request] = ()) -> None:
        with self._changed:
            self._closed = self._closed or why
            left = [*begun, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            request.answer.set_exception(DeviceError(str(self._closed)))

    def _next_group(self) -> list[_Request]:
        """Wait for requests; give the oldest, or none when the loader is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed is not None)
            group: list[_Request] = []
            room = self._most_pixels
            while self._waiting and len(group) < self._most_images:
                room -= self._waiting[0].weight
                if group and room < 0:
                    break
                group.append(self._waiting.popleft())
            return group

    def _answer(self, group: Sequence[_Request]) -> bool:
        """Answer each request with its pixels or with what is wrong; say whether all have pixels."""
        try:
            rows = self._computed(group)  # (n, crops, 3, S, S)
        except _RefusedError as exc:
            said, short = str(exc), False
        except RuntimeError as exc:
            if not is_shortage(exc):
                raise
            said, short = first_line(exc), True
        else:
            for request, row in zip(group, rows, strict=True):
                request.answer.set_result(row)
            return True
        self._platform.recover()  # after the exception, whose frames hold pixels on the device
        if len(group) > 1:
            return self._answer_parts(group, short=short)
        (request,) = group
        if request.is_file:
            request.answer.set_exception(_RefusedError(said))
            return False
        request.answer.set_result(self._cut(request.given.permute(2, 0, 1), request).numpy())  # on the CPU
        return True

    def _answer_parts(self, group: Sequence[_Request], *, short: bool) -> bool:
        """Answer in halves where memory was short; else one by one, which tells what the device refuses."""
        if short:
            self._shrink(group)
            middle = len(group) // 2
            return self._answer(group[:middle]) & self._answer(group[middle:])
        answered = [self._answer([request]) for request in group]
        if all(answered):  # together they were too many
            self._shrink(group)
        return all(answered)

    def _shrink(self, group: Sequence[_Request]) -> None:
        """Take no group again that is as large."""
        self._most_images = max(1, min(self._most_images, len(group) // 2))
        self._most_pixels = max(1, min(self._most_pixels, sum(request.weight for request in group) // 2))

    def _computed(self, group: Sequence[_Request]) -> list[np.ndarray]:
        with self._platform.within():
            decoded = iter(self._decoded([request for request in group if request.is_file]))
            cuts = []
            for request in group:
                pixels = next(decoded) if request.is_file else self._sent(request)  # (3, H, W)
                cuts.append(self._cut(pixels, request))
            host = self._host[: len(group)]
            host.copy_(torch.stack(cuts), non_blocking=True)  # (n, crops, 3, S, S)
            self._platform.wait()
        return [row.numpy().copy() for row in host]

    def _decoded(self, requests: Sequence[_Request]) -> list[Tensor]:
        if not requests:
            return []
        try:
            found = self._platform.decode([request.given for request in requests])
        except RuntimeError as exc:
            if is_shortage(exc):
                raise
            raise _RefusedError(first_line(exc)) from exc
        for pixels, request in zip(found, requests, strict=True):
            if pixels.shape != (3, *request.size[::-1]):
                raise _RefusedError(f"it decodes {request.size} as {tuple(pixels.shape)}")
        return found

    def _sent(self, request: _Request) -> Tensor:
        return request.given.to(self._platform.device).permute(2, 0, 1)

    def _cut(self, pixels: Tensor, request: _Request) -> Tensor:
        resized = resize_tensor(pixels, request.target, self._preprocess.interpolation)
        return crop_tensor(resized, self._preprocess.crop, self._crops)  # (crops, 3, S, S)
