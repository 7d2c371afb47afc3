"""What this machine brings for extraction: the pair of libraries, processors, devices, compiler, decoders, memory.

Every check works where torch is missing or does not work, and then says so.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from icecore.store import Check
from icecore.store.health import Health

from .errors import CompileError, DeviceError, PairError
from .pairing import require_pair

__all__ = ["check_decoders", "check_machine", "cpu_name"]

LEAST_MEMORY, SMALL_MEMORY = 512 << 20, 2 << 30
"""Bytes of memory below which a run breaks, and below which large networks do."""
_INSTALL = "pip install 'icecore[extract]'"


def check_machine() -> tuple[Check, ...]:
    """Look at all that decides whether images can be extracted here, and how fast.

    Returns
    -------
    tuple of Check
        Without torch those that need none; one of them says what is missing.
    """
    pair = _check_pair()
    checks = [pair, _check_cpu(), *_check_memory(), *check_decoders()]
    if pair.health == "ok":
        checks += [*_check_bf16(), *_check_cuda(), *_check_nvjpeg(), *_check_compiling(), *_check_batch_sizes()]
    return tuple(checks)


def cpu_name() -> str:
    """Give what the processor is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def check_decoders() -> Iterator[Check]:
    """Look at each decoder of images that the contract may name."""
    try:
        from PIL import __version__, features
    except ImportError:
        yield Check("decoder", "warn", "Pillow is not installed", f"extract and predict need it: {_INSTALL}")
        return
    if not features.check_codec("jpg"):
        yield Check(
            "decoder", "bad", f"Pillow {__version__} without JPEG", "install Pillow from a wheel: pip install pillow"
        )
        return
    turbo = features.version_feature("libjpeg_turbo") if features.check_feature("libjpeg_turbo") else None
    formats = [name for name in ("webp", "avif") if features.check_module(name)]
    told = f"Pillow {__version__}, {f'libjpeg-turbo {turbo}' if turbo else 'libjpeg without turbo'}, "
    told += ", ".join(formats) or "no WEBP, no AVIF"
    if turbo is None:
        yield Check("decoder", "warn", told, "JPEG is read several times faster by Pillow's wheels: pip install pillow")
    else:
        yield Check("decoder", "ok", told)


def _check_pair() -> Check:
    from importlib import metadata

    try:
        require_pair()
    except PairError as exc:
        missing = isinstance(exc.__cause__, metadata.PackageNotFoundError)
        if missing:
            return Check("torch", "warn", str(exc).partition(":")[0], f"for extract and predict: {_INSTALL}")
        found, _, cure = str(exc).rpartition(": ")
        return Check("torch", "bad", found, cure)
    import torch
    import torchvision

    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    told = f"torch {versions['torch']} and torchvision {versions['torchvision']} fit together"
    return Check("torch", "ok", told, facts=versions)


def _check_cpu() -> Check:
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    told = f"{cpu_name()}, {usable} of {there} processors usable"
    allowed = _allowed_processors()
    facts = {"processors": there, "usable": usable, "allowed": allowed}
    if allowed is not None and allowed < usable:
        cure = f"set compute.threads = {max(1, int(allowed))}: more only take turns"
        return Check("processor", "warn", f"{told}, but only {allowed:g} at a time are granted", cure, facts)
    return Check("processor", "ok", told, facts=facts)


def _check_memory() -> Iterator[Check]:
    free = _free_memory()
    if free is None:
        return  # not Linux
    health: Health = "bad" if free < LEAST_MEMORY else "warn" if free < SMALL_MEMORY else "ok"
    cure = "" if health == "ok" else "close other programs, or set compute.batch_size = 1"
    yield Check("memory", health, f"{free / 1e9:.1f} GB free", cure, {"bytes": free})


def _check_bf16() -> Iterator[Check]:
    import torch

    has = torch.cpu.get_capabilities()
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
    found = [name for flag, name in names.items() if has.get(flag)]
    told = f"bf16 in hardware ({', '.join(found)})" if found else "no bf16 in hardware: fp32 is the fastest"
    yield Check("bf16 on the CPU", "ok", told, facts={flag: bool(has.get(flag)) for flag in names})


def _check_cuda() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        told = (
            f"none that torch finds (torch is built for CUDA {built})"
            if built
            else "none (torch is built without CUDA)"
        )
        yield Check("CUDA", "ok", told)
        return
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            about = torch.cuda.get_device_properties(index)
        except RuntimeError as exc:
            told = f"{name} does not answer ({(str(exc).splitlines() or [''])[0]})"
            yield Check(
                name, "bad", told, "see `nvidia-smi`; restart what holds the device, or set compute.device = 'cpu'"
            )
            continue
        with torch.cuda.device(index):
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        told = f"{about.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, {'bf16' if bf16 else 'fp16, no bf16'}"
        facts = {"name": about.name, "free_bytes": free, "bytes": total, "bf16": bf16}
        if free < SMALL_MEMORY:
            yield Check(
                name, "warn", told, "see `nvidia-smi` for what holds it, or set compute.batch_size lower", facts
            )
        else:
            yield Check(name, "ok", told, facts=facts)


def _check_nvjpeg() -> Iterator[Check]:
    import torch

    from .nvjpeg import require_nvjpeg

    if not torch.cuda.is_available():
        return
    try:
        require_nvjpeg(torch.device("cuda", 0))
    except DeviceError as exc:
        found, _, cure = str(exc).rpartition(": ")
        yield Check("nvJPEG", "warn", found, cure)
    else:
        yield Check("nvJPEG", "ok", "decodes on cuda:0: preprocess.decode may be nvjpeg")


def _check_compiling() -> Iterator[Check]:
    from .compiled import MOST_BYTES, cache_folder, require_compiler

    try:
        require_compiler()
        yield Check("C++ compiler", "ok", "there: the forward pass can be compiled")
    except CompileError:
        cure = "install g++ or clang, or name one in CXX; without it the forward pass runs uncompiled"
        yield Check("C++ compiler", "warn", "none", cure)
    folder = cache_folder() / "compiled"
    kept = list(folder.glob("*.so"))
    size = sum(path.stat().st_size for path in kept)
    told = f"{len(kept)} networks, {size / 1e6:.0f} of {MOST_BYTES / 1e6:.0f} MB in {folder}"
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    facts = {"networks": len(kept), "bytes": size}
    if os.access(nearest, os.W_OK):
        yield Check("compiled networks", "ok", told, facts=facts)
    else:
        cure = "set ICECORE_CACHE to a folder of your own; without it every run compiles anew"
        yield Check("compiled networks", "warn", f"{nearest} may not be written", cure, facts)


def _check_batch_sizes() -> Iterator[Check]:
    from .batch_sizes import sizes_folder

    folder = sizes_folder()
    kept = len(list(folder.glob("*.json")))
    yield Check("batch sizes", "ok", f"{kept} found here before, in {folder}", facts={"remembered": kept})


def _allowed_processors() -> float | None:
    """Give the processors that the container's quota grants at a time; None where there is no quota."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _free_memory() -> int | None:
    """Give the bytes that a new program could take, by the machine and by the container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None
    try:
        limit, used = (
            int(Path("/sys/fs/cgroup", name).read_text("ascii")) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # none, or "max"
        return free
    return min(free, max(0, limit - used))
