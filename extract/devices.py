"""Which device computes, in which precision, how many images at a time, and how exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .errors import DeviceError

__all__ = ["choose_device", "choose_devices", "choose_precision", "default_batch_size", "exact_fp32"]

_PRECISIONS = ("fp32", "bf16", "fp16")


def choose_device(device: str, *, precision: str = "fp32") -> torch.device:
    """Give the device to compute on.

    Parameters
    ----------
    device
        ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: CUDA where there is one, else the CPU.
    precision
        ``fp32``, ``bf16`` or ``fp16`` (CUDA only).

    Returns
    -------
    torch.device
        With its index where it is a CUDA device.

    Raises
    ------
    DeviceError
        When the device is unknown or absent, or cannot compute in this precision. Another device is never
        taken instead.
    """
    if precision not in _PRECISIONS:
        raise DeviceError(f"precision is one of {', '.join(_PRECISIONS)}, found {precision!r}")
    chosen = _cuda_or_cpu(device)
    if precision == "fp16" and chosen.type != "cuda":
        raise DeviceError(f"precision fp16 needs a CUDA device, and the device is {chosen}: use fp32 or bf16")
    if precision == "bf16" and chosen.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise DeviceError(f"{torch.cuda.get_device_name(chosen)} has no bf16: use fp32 or fp16")
    return chosen


def choose_devices(device: str | Sequence[str], *, precision: str = "fp32") -> tuple[torch.device, ...]:
    """Give the devices to compute on, each with a process of its own where they are several.

    Parameters
    ----------
    device
        As ``choose_device`` takes it; ``cuda:all`` for every CUDA device; or several in a sequence, in which the
        same may come twice.
    precision
        As ``choose_device`` takes it.

    Raises
    ------
    DeviceError
        As ``choose_device``, and when the sequence is empty.
    """
    if device == "cuda:all":
        device = [f"cuda:{index}" for index in range(_cuda_devices())] or "cuda:0"
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise DeviceError("no device is named: give auto, cpu, cuda, cuda:N, cuda:all, or several of them")
    return tuple(choose_device(name, precision=precision) for name in names)


def choose_precision(device: torch.device, precision: str, *, stored: str | None = None) -> str:
    """Give the precision to compute in.

    Parameters
    ----------
    device
        Where.
    precision
        ``fp32``, ``bf16`` or ``fp16``, which is given back; or ``auto``: what the set has already, where the device
        can; else bf16 where the device has it in hardware, fp16 on other CUDA devices, fp32 on other processors.
        ``settle_precision`` then looks whether it is good enough.
    stored
        Precision of the features that the set has, if any.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        able = {"fp32", "fp16", best}
    else:
        capabilities = torch.cpu.get_capabilities()
        best = "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
        able = {"fp32", "bf16"}
    return stored if stored in able else best


def default_batch_size(device: torch.device) -> int:
    """Give the images of a pass: 64 on CUDA, 4 on a CPU.

    Large activations cost a CPU more in fresh memory than large batches win: spread over two cores, mobilenet_v2
    forwards 77 images a second at 4, 57 at 16 and 38 at 64, squeezenet1_1 227, 196 and 81, resnet18 53, 45 and 38.
    """
    return 64 if device.type == "cuda" else 4


@contextmanager
def exact_fp32(device: torch.device) -> Iterator[None]:
    """Keep float32 products in float32 (cuDNN takes TF32 by default) and convolutions repeatable.

    The settings are the process's; with the last of the threads that asked for them they are as before.
    """
    settings = _EXACT[device.type]
    settings.enter()
    try:
        yield
    finally:
        settings.leave()


class _Exact:
    """Settings of a kind of device, held for as long as somebody needs them."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._holders = 0
        self._restore: Callable[[], None] = lambda: None

    def enter(self) -> None:
        with self._lock:
            if not self._holders:
                self._set()
            self._holders += 1

    def leave(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._restore()

    def _set(self) -> None:
        if self._kind == "cuda":
            backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
        else:
            backends = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv]  # type: ignore[attr-defined]
        before = [backend.fp32_precision for backend in backends]
        cudnn = torch.backends.cudnn
        deterministic, benchmark = cudnn.deterministic, cudnn.benchmark

        def restore() -> None:
            for backend, value in zip(backends, before, strict=True):
                backend.fp32_precision = value
            cudnn.deterministic, cudnn.benchmark = deterministic, benchmark

        self._restore = restore
        for backend in backends:
            backend.fp32_precision = "ieee"
        if self._kind == "cuda":
            cudnn.deterministic, cudnn.benchmark = True, False


_EXACT = {kind: _Exact(kind) for kind in ("cpu", "cuda")}


def _cuda_devices() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cuda_or_cpu(device: str) -> torch.device:
    available = _cuda_devices()
    if device == "auto":
        device = "cuda" if available else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as exc:
        raise DeviceError(f"no device {device!r}: it is auto, cpu, cuda or cuda:N") from exc
    if chosen.type == "cpu":
        return torch.device("cpu")
    if chosen.type != "cuda":
        raise DeviceError(f"no device {device!r}: it is auto, cpu, cuda or cuda:N")
    index = chosen.index or 0
    if index >= available:
        raise DeviceError(f"device {device!r} is not there: torch finds {available} CUDA devices; use cpu or auto")
    return torch.device("cuda", index)
