"""Weight files: read into tensors by name, without running any code, and without judging what they are for."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError

__all__ = ["download", "read_weights", "some"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_ZIP, _PICKLE, _GIT_LFS = b"PK", b"\x80", b"version https://git-lfs"
_SHOWN = 5


def read_weights(path: Path) -> OrderedDict[str, Tensor]:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` file into tensors by name, on the CPU.

    The format is told by the first bytes. A nested ``state_dict`` or ``model`` is opened. Nothing in the file is
    run: pickles are read with ``weights_only=True``.

    Returns
    -------
    OrderedDict
        With the ``_metadata`` of the file where it has some: the version of each module that was saved.

    Raises
    ------
    WeightsError
        When the file is absent, of another format, cut short, holds code or no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    read = _reader(path)
    try:
        content = read(path)
    except pickle.UnpicklingError as exc:
        raise WeightsError(
            f"{path}: holds more than tensors, and loading it could run code; save model.state_dict() instead"
        ) from exc
    except Exception as exc:
        line = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise WeightsError(f"{path}: not a readable weights file ({line}); is it whole?") from exc
    return _state(content, path)


def download(recipe: Any) -> OrderedDict[str, Tensor]:
    """Fetch published weights by torchvision's own means (its cache first), checked against their file name.

    Raises
    ------
    WeightsError
        When they are neither in the cache nor to be had.
    """
    try:
        content = recipe.get_state_dict(progress=False, check_hash=True, weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, pickle.UnpicklingError) as exc:
        raise WeightsError(
            f"{recipe}: cannot be fetched from {recipe.url} ({exc}); without a network, give the path of a local "
            f".pth or .safetensors file as weights"
        ) from exc
    return _state(content, recipe.url)


def some(names: Collection[str]) -> str:
    """Join the first few names, and count the rest."""
    shown = list(names)[:_SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _reader(path: Path) -> Any:
    """Choose by the first bytes: an error page or a pointer saved as ``.pth`` is not even tried."""
    with path.open("rb") as file:
        head = file.read(40)
    if head[6:9] == b"\0\0{":  # the header of safetensors after its length, which may look like the beginnings below
        return _read_safetensors
    if head.startswith((_ZIP, _PICKLE)):
        return _read_pickle
    if head.startswith(_GIT_LFS):
        raise WeightsError(f"{path}: a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`")
    found = f"begins with {head!r}" if head else "it is empty"
    raise WeightsError(f"{path}: not a weights file, {found}; expected what torch.save or safetensors writes")


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:  # given a path, torch goes by its ending
        return torch.load(file, map_location="cpu", weights_only=True)


def _state(content: Any, where: object) -> OrderedDict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{where}: holds a {type(content).__name__}, expected tensors by name (a state_dict)")
    tensors = OrderedDict((str(name), value) for name, value in content.items() if isinstance(value, Tensor))
    if not tensors:
        raise WeightsError(f"{where}: holds no tensors; its keys are {some([str(key) for key in content])}")
    if isinstance(metadata := getattr(content, "_metadata", None), Mapping):
        tensors._metadata = metadata  # type: ignore[attr-defined]  # noqa: SLF001 - where torch itself keeps it
    return tensors
