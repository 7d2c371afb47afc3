"""Weights into a network: names and shapes compared, tensors copied, hashed.

Nothing is guessed: a tensor is loaded when name and shape agree, after the network's own classes have renamed what
they know under older names. All that does not agree is kept as a fact, for ``lacking`` to judge once the layers
are known.
"""

from __future__ import annotations

import hashlib
import re
import sys
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MNASNet

from .errors import WeightsError
from .weight_files import some

__all__ = ["Loading", "hashed_names", "load_into", "weights_sha256"]

_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_AVERAGED = "n_averaged"  # of AveragedModel, beside the prefix of DataParallel: counts, decides no value
_COUNTER = "num_batches_tracked"  # of BatchNorm: counts training steps, decides no value in eval mode
# Before torch 0.4 a dot was allowed in a module's name; DenseNet's published files still have them.
_OLD_DENSENET = re.compile(
    r"(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))"
)
_Shapes = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Loading:
    """What became of each tensor."""

    loaded: frozenset[str]
    """names in network and file, of the same shape: copied"""
    missing: frozenset[str]
    """names that only the network has"""
    misshapen: Mapping[str, _Shapes]
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
            return f"{len(missing)} tensors that the layers need are missing: {some(missing)}"
        parts = {name.split(".")[0] for name in needed}
        if extra := sorted(name for name in self.extra if name.split(".")[0] in parts):
            return f"it holds {len(extra)} tensors that the network does not have: {some(extra)}"
        return None


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], *, where: object) -> Loading:
    """Copy the tensors whose name and shape agree into ``network``.

    The prefixes of DataParallel and ``torch.compile`` come off, and older names are followed where the network's
    classes know them. ``tensors._metadata``, where there is one, tells them the version of the file.

    Raises
    ------
    WeightsError
        When none agrees, or one that does holds NaN or infinity.
    """
    state = _named_for(network, tensors)
    misshapen: dict[str, _Shapes] = {}
    try:
        with _passing_over_misshapen(network, misshapen), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "A new version of MNASNet")  # it loads the older one as it was
            told = network.load_state_dict(state, strict=False)
    except (RuntimeError, ValueError) as exc:
        raise WeightsError(f"{where}: cannot be loaded into a {type(network).__name__}: {exc}") from exc
    network.eval().requires_grad_(False)  # modules that loading has put in place, too
    ours = hashed_names(network)
    loading = Loading(
        loaded=ours.difference(told.missing_keys, misshapen),
        missing=ours.intersection(told.missing_keys).difference(misshapen),
        misshapen={name: shapes for name, shapes in misshapen.items() if name in ours},
        extra=frozenset(name for name in told.unexpected_keys if not name.endswith(_COUNTER)),
    )
    _require_sound(network, loading, where, state)
    return loading


def weights_sha256(
    network: nn.Module,
    names: Collection[str],
    *,
    hidden: Mapping[str, Tensor] | None = None,
    code: str = "",
) -> str:
    """Hash the tensors as they are in the network: name, dtype, shape and little-endian bytes, sorted by name.

    Tensors that ``state_dict`` leaves out (``hidden``) are sorted in; the hash of the network's ``code`` comes last.
    """
    tensors = {**network.state_dict(), **(hidden or {})}
    digest = hashlib.sha256()
    for name in sorted({*names, *(hidden or {})}):
        tensor = tensors[name].detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            raw = raw.reshape(-1, tensor.element_size())[:, ::-1].reshape(-1)
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(raw.tobytes())
    digest.update(code.encode())
    return digest.hexdigest()


def hashed_names(network: nn.Module) -> frozenset[str]:
    """Give the names of all tensors that count: every one but BatchNorm's step counters."""
    return frozenset(name for name in network.state_dict() if not name.endswith(_COUNTER))


def _named_for(network: nn.Module, tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Take wrappers' prefixes off, and old dots, as far as the network has no such names itself."""
    ours = network.state_dict().keys()
    state, metadata = dict(tensors), dict(getattr(tensors, "_metadata", {}))
    while not ours & state.keys() and (prefix := _common_prefix(state)):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name != _AVERAGED}
        inner = {f"{name}.": value for name, value in metadata.items() if f"{name}.".startswith(prefix)}
        metadata = {name.removeprefix(prefix)[:-1]: value for name, value in inner.items()}
    named = OrderedDict(
        (name if name in ours else _OLD_DENSENET.sub(r"\1\2", name), value) for name, value in state.items()
    )
    named._metadata = {**_versions(network), **metadata}  # type: ignore[attr-defined]  # noqa: SLF001
    return named


def _common_prefix(names: Collection[str]) -> str | None:
    told = [name for name in names if name != _AVERAGED]
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in told)), None)


def _versions(network: nn.Module) -> dict[str, dict[str, Any]]:
    """Give the version of the one class that cannot do without: files without metadata are taken for new ones."""
    parts = network.named_modules()
    return {name: {"version": part._version} for name, part in parts if isinstance(part, MNASNet)}  # noqa: SLF001


@contextmanager
def _passing_over_misshapen(network: nn.Module, misshapen: dict[str, _Shapes]) -> Iterator[None]:
    """Let ``load_state_dict`` leave tensors of another shape alone, and note them; it refuses the whole file else."""

    def drop(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found = state.get(prefix + name)
            if found is not None and found.shape != tensor.shape:
                misshapen[prefix + name] = tuple(tensor.shape), tuple(found.shape)
                del state[prefix + name]

    with ExitStack() as hooks:
        for part in network.modules():
            hook = part.register_load_state_dict_pre_hook(drop)  # type: ignore[no-untyped-call]
            hooks.callback(hook.remove)
        yield


def _require_sound(network: nn.Module, loading: Loading, where: object, names: Collection[str]) -> None:
    state = network.state_dict()
    ours, theirs = ([name for name in some_names if not name.endswith(_COUNTER)] for some_names in (state, names))
    if ours and not loading.loaded:
        raise WeightsError(
            f"{where}: none of its {len(theirs)} tensors fits the network, so it belongs to another one: "
            f"it has {some(theirs)}; the network has {some(ours)}"
        )
    for name in sorted(loading.loaded):
        if state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise WeightsError(f"{where}: {name} holds NaN or infinity")
