"""Compiled networks, called by the C interface that inductor gives them: its Python one lets no other thread run.

``torch/csrc/inductor/aoti_runtime/interface.h`` describes it; tensors cross it by the functions that inductor's own C++
wrappers use.
"""

from __future__ import annotations

import ctypes
import os
import weakref
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import CompileError

__all__ = ["NativeForward", "unpack"]


def unpack(package: Path, library: Path) -> None:
    """Take the library out of what inductor packaged.

    Raises
    ------
    CompileError
        When its code calls operations that only the Python interface can give it.
    """
    with zipfile.ZipFile(package) as archive:
        names = [name for name in archive.namelist() if "/aotinductor/" in name]
        libraries = [name for name in names if name.endswith(".so")]
        others = [name for name in names if not name.endswith((".so", ".cpp", "_metadata.json"))]
        if len(libraries) != 1 or others:
            raise CompileError("its network has operations that inductor cannot put into one library")
        library.write_bytes(archive.read(libraries[0]))


class NativeForward:
    """A compiled pass; threads may call it side by side.

    Parameters
    ----------
    library
        The file that ``unpack`` gave.
    shape
        Of the only batch that it takes, uint8.
    at_once
        Calls that run side by side; more wait.

    Raises
    ------
    OSError, RuntimeError
        When it cannot be loaded.
    """

    def __init__(self, library: Path, shape: Sequence[int], at_once: int) -> None:
        self._library = ctypes.CDLL(os.fspath(library))
        self._shape = tuple(shape)
        self._network = ctypes.c_void_p()
        outputs = ctypes.c_size_t()
        create = self._library.AOTInductorModelContainerCreateWithDevice
        _require(create(ctypes.byref(self._network), ctypes.c_size_t(at_once), b"cpu", None))
        weakref.finalize(self, self._library.AOTInductorModelContainerDelete, self._network)
        _require(self._library.AOTInductorModelContainerGetNumOutputs(self._network, ctypes.byref(outputs)))
        self._outputs = outputs.value

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Compute the columns of a batch.

        Raises
        ------
        ValueError
            When the batch is another than the code was made for, which does not look.
        RuntimeError
            When the code fails.
        """
        if batch.dtype != torch.uint8 or tuple(batch.shape) != self._shape or not batch.is_contiguous():
            raise ValueError(f"expected a contiguous uint8 batch {self._shape}, found {batch.dtype} {batch.shape}")
        given, taken = (ctypes.c_void_p * 1)(*_handles([batch])), (ctypes.c_void_p * self._outputs)()
        run = self._library.AOTInductorModelContainerRun  # takes the handles over
        one, several = ctypes.c_size_t(1), ctypes.c_size_t(self._outputs)
        _require(run(self._network, given, one, taken, several, None, None))
        capsules = [_capsule(handle, None, None) for handle in taken]
        tensors: list[Tensor] = _interface.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return tuple(tensors)


def _handles(tensors: Sequence[Tensor]) -> list[int]:
    return [_pointer(capsule, None) for capsule in _interface.unsafe_alloc_void_ptrs_from_tensors(tensors)]


def _require(status: int) -> None:
    if status:
        raise RuntimeError(f"the compiled network failed with status {status}; the reason was written to stderr")


_interface: Any = torch._C._aoti  # noqa: SLF001 - what inductor's wrappers use
_python = ctypes.PyDLL(None)  # of our own: the types of ctypes.pythonapi's functions are everybody's
_pointer = _python.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule = _python.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
