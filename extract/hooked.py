"""Layers by forward hooks: for a network of one's own that torch.fx cannot follow.

Layers are paths of modules then, and a module that is called twice gives its last output, as in a graph. Whether a
network looks at values (``if x.sum() > 0``) is found out by running it on the meta device, where there are none. One
that does not calls the same modules each time: it is run in batches, and only until the last layer asked for is there.
One that does may decide another way for other images: it is run whole, and for each image alone, so that no image's
features depend on its neighbours.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TraceError
from .faithful import is_close
from .graph import share_copy

__all__ = ["HookedNetwork", "Watched", "require_steady", "watch", "watch_shapes"]


@dataclass
class Watched:
    """What the modules of a network gave in one run, by their paths, in the order in which they ended."""

    outputs: dict[str, Any] = field(default_factory=dict)
    """last output: a copy of a tensor as it was then, or the type of anything else"""
    calls: Counter[str] = field(default_factory=Counter)
    """how often each was called"""
    same_as: dict[str, str] = field(default_factory=dict)
    """innermost module that gave this very tensor"""


def watch(network: nn.Module, images: Tensor) -> Watched:
    """Run a network once on a batch, which is left as it is; whatever it raises is raised."""
    seen = Watched()
    givers: dict[tuple[int, int], tuple[str, Tensor]] = {}  # holds the tensors, so that no identity comes twice

    def keep(path: str, output: Any) -> None:
        giver = path
        if isinstance(output, Tensor):
            giver, _ = givers.setdefault((id(output), _changes(output)), (path, output))
        seen.outputs.pop(path, None)
        seen.outputs[path] = output.clone() if isinstance(output, Tensor) else type(output)
        seen.calls[path] += 1
        seen.same_as[path] = giver

    with torch.no_grad(), _hooks(network, [path for path, _ in network.named_modules() if path], keep):
        seen.outputs[""] = network(images.clone())
    result = seen.outputs.pop("")
    seen.outputs |= {"": result} if isinstance(result, Tensor) else {}
    return seen


def watch_shapes(network: nn.Module, shape: Sequence[int]) -> Watched | None:
    """Run a network on the meta device; None where that fails, as it does when it looks at values."""
    try:
        with torch.device("meta"):
            return watch(share_copy(network, device="meta"), torch.empty(*shape))
    except Exception:  # noqa: BLE001 - what a network raises that meets a tensor without values, is its own affair
        return None


class HookedNetwork(nn.Module):
    """From images to the outputs of some modules, as a network cut from a graph gives them.

    Parameters
    ----------
    network
        In eval mode; shared, not copied.
    layers
        Paths of modules.
    shape
        Shape of the batches that will come: (B, 3, S, S).
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__()
        seen = watch_shapes(network, shape)
        self._inner, self._layers = network, tuple(layers)
        self._calls = None if seen is None else {layer: seen.calls[layer] for layer in layers}

    @property
    def alone(self) -> bool:
        """Whether each image must be run alone, because the network looks at values."""
        return self._calls is None

    def forward(self, images: Tensor) -> tuple[Tensor | None, ...]:
        """Give the layers' outputs, copied as they were then; None for what was not called, or gave no tensor."""
        kept: dict[str, Tensor | None] = {}
        left = Counter(self._calls)

        def keep(path: str, output: Any) -> None:
            kept[path] = output.clone() if isinstance(output, Tensor) else None
            left[path] -= 1
            if self._calls is not None and not any(left.values()):
                raise _EnoughError

        with _hooks(self._inner, self._layers, keep), suppress(_EnoughError):
            self._inner(images)
        return tuple(kept.get(layer) for layer in self._layers)


def require_steady(network: nn.Module, *, size: int, why: str) -> bool:
    """Return when a network that hooks are to watch gives the same for the same image; True if each must run alone.

    Parameters
    ----------
    network
        In eval mode, with its weights.
    size
        Side of the square input, in pixels.
    why
        Why torch.fx cannot follow it, for the message where hooks are of no use either.

    Raises
    ------
    TraceError
        When it does not take images of this size, has no modules, draws random numbers, or mixes the images of a batch.
    """
    kind = type(network).__name__
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    is_alone = watch_shapes(network, noise.shape) is None
    batch = noise[:1] if is_alone else noise
    try:
        once, again = watch(network, batch), watch(network, batch)
        others = watch(network, batch[[0, 0]]) if not is_alone else once
    except Exception as exc:
        raise TraceError(f"{kind}: does not take images of 3 x {size} x {size}: {exc}") from exc
    if not once.calls:
        raise TraceError(f"{why}; and it calls no modules, whose outputs forward hooks could take")
    if path := _differing(once, again, images=len(batch), rows=len(batch)):
        raise TraceError(f"{kind}: {path} differs when the same images come again; it must not draw random numbers")
    if path := _differing(once, others, images=len(batch), rows=1):
        raise TraceError(f"{kind}: {path} of an image depends on the other images of its batch; it must not mix them")
    return is_alone


class _EnoughError(BaseException):
    """Ends a run; not an Exception, which the network might catch."""


def _changes(tensor: Tensor) -> int:
    """Count how often a tensor was changed in place; 0 where torch does not, for a network's own inference mode."""
    return 0 if tensor.is_inference() else int(tensor._version)  # noqa: SLF001 - torch has no other name for it


def _hooks(network: nn.Module, paths: Sequence[str], keep: Callable[[str, Any], None]) -> ExitStack:
    hooks = ExitStack()
    for path in paths:
        hooks.callback(network.get_submodule(path).register_forward_hook(_hook(path, keep)).remove)
    return hooks


def _hook(path: str, keep: Callable[[str, Any], None]) -> Callable[[nn.Module, Any, Any], None]:
    """Keep what the module gives to this thread: others may run the same network meanwhile."""
    owner = threading.get_ident()
    return lambda module, args, output: keep(path, output) if threading.get_ident() == owner else None


def _differing(ours: Watched, theirs: Watched, *, images: int, rows: int) -> str | None:
    """Give the first path whose outputs for the first ``rows`` images differ, or for all images what they gave."""
    for path in dict.fromkeys([*ours.outputs, *theirs.outputs]):
        a, b = ours.outputs.get(path), theirs.outputs.get(path)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            same = a is b
        elif rows == images:
            same = is_close(a, b)
        else:
            of_images = a.ndim > 0 and a.shape == b.shape and len(a) == images
            same = not of_images or is_close(a[:rows], b[:rows])
        if not same:
            return path or "its result"
    return None
