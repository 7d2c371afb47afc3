"""The forward pass as machine code for this processor: compiled once by PyTorch's inductor, and kept on disk.

Each time it is loaded it is held against the pass that it stands for.
Compiling takes 8 to 20 seconds on two cores, and on most networks gives code that is 1.1 to 2.5 times as fast
(``benchmarks/RESULTS.md``). What is kept has the weights in it, and its name is a hash of all that it was made of:
weights, layers, batch, precision, torch, processor. Beside it stands how fast it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from icecore.store.durable import write_bytes
from torch import Tensor, nn

from .errors import CompileError
from .native import NativeForward, unpack

__all__ = [
    "Forward",
    "cache_folder",
    "compiled_forward",
    "is_kept",
    "key_of",
    "pays",
    "require_compiler",
    "seconds_of",
    "speed_up",
]

Forward = Callable[[Tensor], tuple[Tensor, ...]]
"""from a uint8 batch to the pooled columns"""

MOST_BYTES = 2 << 30
"""Bytes of compiled networks that are kept; those not used for longest go first."""

_MAKING = "making-"
"""begins the names of the folders in which networks are being compiled"""
_ABANDONED = 86_400.0
"""seconds after which nobody is at work in one"""
LEAST_GAIN = 0.2
"""Share of the time that compiled code is expected to save."""
_DEAREST = 20.0
"""Seconds that compiling is expected to take."""
_COSINE = {"fp32": 0.99999, "bf16": 0.999}
"""How much alike the two passes must be, by image and column."""


def pays(images: int, seconds_an_image: float) -> bool:
    """Say whether to compile before so many images: the time surely saved must be twice the time it takes."""
    return images * seconds_an_image * LEAST_GAIN > 2 * _DEAREST


def cache_folder() -> Path:
    """Give where compiled networks are kept: ``ICECORE_CACHE``, else ``icecore`` in the user's cache folder."""
    chosen = os.environ.get("ICECORE_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = os.fspath(Path.home() / ".cache")
        except RuntimeError as exc:
            raise OSError("this user has no home folder") from exc
    return Path(base) / "icecore"


def key_of(facts: Mapping[str, Any]) -> str:
    """Give the name of what would be compiled of these facts, on this machine and with this torch: 64 hex digits."""
    whole = {
        **facts,
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "flags": _processor_flags(),
        "threads": 1,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def is_kept(key: str) -> bool:
    """Say whether it has been compiled already."""
    try:
        path = _path(key)
        return path.is_file() and path.with_suffix(".json").is_file()
    except OSError:  # a folder of another user's
        return False


def require_compiler() -> None:
    """Return where this machine can compile.

    Raises
    ------
    CompileError
        When there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as exc:
        raise CompileError(
            "compiling needs a C++ compiler, and there is none: install g++ or clang, or name one in CXX, "
            'or set compute.compilation = "never"'
        ) from exc


def speed_up(key: str) -> float | None:
    """Say how many times as fast as the pass that it stands for it was when it was compiled; None where it was not."""
    try:
        told = json.loads(_path(key).with_suffix(".json").read_bytes())
        return float(told["eager"]) / float(told["compiled"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def compiled_forward(key: str, body: nn.Module, example: Tensor, *, precision: str, at_once: int = 1) -> Forward:
    """Give the compiled form of a forward pass, from disk where it is kept, and else compile and keep it.

    It runs on the thread that calls it, and on no other.

    Parameters
    ----------
    key
        As ``key_of`` gives it.
    body
        From a uint8 batch on the CPU to a tuple of tensors of shape (n, D).
    example
        A batch, of the only shape that the result will take.
    precision
        ``fp32`` or ``bf16``: how much alike the two must be.
    at_once
        Passes that may run side by side, from as many threads.

    Raises
    ------
    CompileError
        When it cannot be compiled, or gives other values than ``body``; nothing is kept then.
    """
    try:
        path = _path(key)
        if is_kept(key):
            _require_sound(path)
            try:
                forward = _matching(path, body, example, precision, at_once)
            except CompileError:
                _delete(path)
                raise
        else:
            forward = _make(path, body, example, precision, at_once)
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used
    except OSError as exc:
        told = f"compiled networks cannot be kept ({_first_line(exc)})"
        raise CompileError(f"{told}; set ICECORE_CACHE to a folder of your own") from exc
    return forward


def _make(path: Path, body: nn.Module, example: Tensor, precision: str, at_once: int) -> Forward:
    """Compile, hold against ``body``, measure, and only then keep."""
    require_compiler()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_MAKING, dir=path.parent) as folder:
        library = Path(folder) / "network.so"
        with _without_chatter():
            _compile(library, body, example)
        if library.stat().st_size > MOST_BYTES:
            raise CompileError(f"compiled it has {library.stat().st_size:,} bytes, and {MOST_BYTES:,} are kept")
        forward = _matching(library, body, example, precision, at_once)
        seconds = {"eager": seconds_of(body, example), "compiled": seconds_of(forward, example)}
        facts = {"xxh3_128": _digest(library), **seconds}
        if not is_kept(path.stem):  # by another process meanwhile
            library.replace(path)
            write_bytes(path.with_suffix(".json"), json.dumps(facts).encode())  # last: with it, the other one counts
    _trim(path.parent)
    return forward


def _matching(library: Path, body: nn.Module, example: Tensor, precision: str, at_once: int) -> Forward:
    wanted = body(example)
    try:
        forward = NativeForward(library, example.shape, at_once)
        worst = _likeness(wanted, forward(example))
    except (RuntimeError, OSError) as exc:
        raise CompileError(f"{library}: cannot be loaded ({_first_line(exc)})") from exc
    if not worst >= _COSINE[precision]:
        raise CompileError(
            f"the compiled network gives other features (cosine {worst:.6f}, expected {_COSINE[precision]} or more)"
        )
    return forward


def _path(key: str) -> Path:
    return cache_folder() / "compiled" / f"{key}.so"


def _compile(library: Path, body: nn.Module, example: Tensor) -> None:
    package = library.with_suffix(".pt2")
    try:
        with torch.no_grad():
            exported = torch.export.export(body, (example,))
            torch._inductor.aoti_compile_and_package(  # noqa: SLF001 - its documented place
                exported,
                package_path=os.fspath(package),
                inductor_configs={"freezing": True, "cpp.threads": 1},
            )
        unpack(package, library)
    except CompileError:
        raise
    except Exception as exc:  # export and inductor raise whatever their many parts do
        raise CompileError(f"cannot be compiled ({type(exc).__name__}: {_first_line(exc)})") from exc


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep what inductor's imports say of CUDA, which is not asked for, from the user."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _trim(folder: Path) -> None:
    """Delete what was not used for longest, beyond the bytes that are kept, and what a killed process left."""
    found = []
    for path in folder.glob("*.so"):
        with contextlib.suppress(FileNotFoundError):  # another process trims, too
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > MOST_BYTES:
            _delete(path)
    for left in folder.glob(f"{_MAKING}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _delete(path: Path) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _require_sound(path: Path) -> None:
    """Refuse code that is not what was compiled here: it would be run."""
    try:
        told, found = json.loads(path.with_suffix(".json").read_bytes()), _digest(path)
        owners = {file.stat().st_uid for file in (path.parent, path, path.with_suffix(".json"))}
    except (OSError, ValueError) as exc:
        raise CompileError(f"{path}: cannot be read ({_first_line(exc)}); delete it") from exc
    if hasattr(os, "getuid") and owners != {os.getuid()}:
        raise CompileError(f"{path}: belongs to another user; set ICECORE_CACHE to a folder of your own")
    if not isinstance(told, dict) or told.get("xxh3_128") != found:
        _delete(path)
        raise CompileError(f"{path}: is not what was compiled; it was deleted")


def _digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def _likeness(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Give how alike an image's features in a column are, at worst; 0 where shapes differ or a value is not finite.

    It is the cosine where both are of one length, and less where they are not.
    """
    worst = 1.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return 0.0
        x, y = a.double(), b.double()
        length = x.norm(dim=1)
        distance = torch.where(length > 0, (x - y).norm(dim=1) / length, (x != y).any(1).double() * 2)
        worst = min(worst, float(torch.nan_to_num(1 - distance**2 / 2, nan=0.0).min()))
    return worst


def _processor_flags() -> str:
    """Give a hash of what the processor can do: code compiled for one does not run on each."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:  # not Linux
        import platform

        return platform.processor()
    told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(" ".join(sorted(told.split())).encode()).hexdigest()


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [""])[0]


def seconds_of(forward: Callable[[Tensor], object], batch: Tensor) -> float:
    """Measure a pass: the better of two, after one that does not count."""
    forward(batch)
    took = []
    for _ in range(2):
        began = time.perf_counter()
        forward(batch)
        took.append(time.perf_counter() - began)
    return min(took)
