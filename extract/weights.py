"""Weight files: read without running code, compared with the network, loaded, hashed.

Nothing is guessed: a tensor is loaded when name and shape agree, and all that does not agree is kept as a fact,
for ``lacking`` to judge once the layers are known.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import WeightsError

__all__ = ["Loading", "download", "load_into", "read_weights", "weights_sha256"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_COUNTER = "num_batches_tracked"  # of BatchNorm: counts training steps, decides no value in eval mode
# Before torch 0.4 a dot was allowed in a module's name; DenseNet's published files still have them.
_OLD_DENSENET = re.compile(
    r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))"
)
_SHOWN = 5


@dataclass(frozen=True)
class Loading:
    """What became of each tensor."""

    loaded: frozenset[str]
    """names in network and file, of the same shape: copied"""
    missing: frozenset[str]
    """names that only the network has"""
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """names of both, with the network's and the file's shape: not copied"""
    extra: frozenset[str]
    """names that only the file has"""

    def lacking(self, needed: Collection[str]) -> str | None:
        """Say why the tensors ``needed`` by some layers are not all right, or None when they are.

        Tensors that only the file has are no fault when they belong to another part of the network, such as the
        classifier. Beside needed ones they are: a ResNet-34 file holds all that a ResNet-18 asks for.
        """
        if shapes := sorted(self.misshapen.keys() & set(needed)):
            first = shapes[0]
            ours, theirs = self.misshapen[first]
            more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
            return f"{first} has shape {theirs}, the network needs {ours}{more}"
        if missing := sorted(self.missing & set(needed)):
            return f"{len(missing)} tensors that the layers need are missing: {_some(missing)}"
        parts = {name.split(".")[0] for name in needed}
        if extra := sorted(name for name in self.extra if name.split(".")[0] in parts):
            return f"it holds {len(extra)} tensors that the network does not have: {_some(extra)}"
        return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` file into tensors by name, on the CPU.

    A nested ``state_dict`` or ``model`` is opened, and the prefixes of DataParallel and ``torch.compile`` are
    taken off. Nothing in the file is run: pickles are read with ``weights_only=True``.

    Raises
    ------
    WeightsError
        When the file is absent, cut short, holds code or no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except pickle.UnpicklingError as exc:
        raise WeightsError(
            f"{path}: holds more than tensors, and loading it could run code; save model.state_dict() instead"
        ) from exc
    except Exception as exc:
        line = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise WeightsError(f"{path}: not a readable weights file ({line}); is it whole?") from exc
    return _state(content, path)


def download(recipe: Any) -> dict[str, Tensor]:
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


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], *, where: object) -> Loading:
    """Copy the tensors whose name and shape agree into ``network``.

    Raises
    ------
    WeightsError
        When none agrees, or one that does holds NaN or infinity.
    """
    ours = {name: tuple(t.shape) for name, t in network.state_dict().items() if not name.endswith(_COUNTER)}
    theirs = {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith(_COUNTER)}
    loaded = {name for name in ours.keys() & theirs.keys() if ours[name] == theirs[name]}
    if ours and not loaded:
        raise WeightsError(
            f"{where}: none of its {len(theirs)} tensors fits the network, so it belongs to another one: "
            f"it has {_some(list(theirs))}; the network has {_some(list(ours))}"
        )
    for name in sorted(loaded):
        if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
            raise WeightsError(f"{where}: {name} holds NaN or infinity")
    network.load_state_dict({name: tensors[name] for name in loaded}, strict=False)
    return Loading(
        loaded=frozenset(loaded),
        missing=frozenset(ours.keys() - theirs.keys()),
        misshapen={n: (ours[n], theirs[n]) for n in (ours.keys() & theirs.keys()) - loaded},
        extra=frozenset(theirs.keys() - ours.keys()),
    )


def weights_sha256(network: nn.Module, names: Collection[str]) -> str:
    """Hash the tensors as they are in the network: name, dtype, shape and little-endian bytes, sorted by name."""
    state = network.state_dict()
    digest = hashlib.sha256()
    for name in sorted(names):
        tensor = state[name].detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            raw = raw.reshape(-1, tensor.element_size())[:, ::-1].reshape(-1)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(raw.tobytes())
    return digest.hexdigest()


def hashed_names(network: nn.Module) -> frozenset[str]:
    """Give the names of all tensors that count: every one but BatchNorm's step counters."""
    return frozenset(name for name in network.state_dict() if not name.endswith(_COUNTER))


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path, device="cpu")


def _read_pickle(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _state(content: Any, where: object) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise WeightsError(f"{where}: holds a {type(content).__name__}, expected tensors by name (a state_dict)")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{where}: holds no tensors; its keys are {_some([str(key) for key in content])}")
    return {_OLD_DENSENET.sub(r"\1\2", name): value for name, value in _without_prefixes(tensors).items()}


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _some(names: Collection[str]) -> str:
    shown = list(names)[:_SHOWN]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
