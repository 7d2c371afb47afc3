"""From a name to a network without weights: torchvision's classification models and one's own functions."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torchvision import models

from .errors import BackboneNotFoundError, PreprocessError, did_you_mean

__all__ = ["Builder", "any_recipe", "find_builder", "known_backbones"]

# torchvision itself passes these beside its weights, so its published networks are these. The auxiliary
# heads work in training only.
_ARGUMENTS_WITH_WEIGHTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True},
    "inception_v3": {"aux_logits": False, "transform_input": True},
}
# No value depends on these: they skip a random initialisation that takes up to a minute and warns.
_QUIET: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
# Networks that are built for one input size: the argument that sets it.
_SIZE_ARGUMENT = {"VisionTransformer": "image_size", "MaxVit": "input_size"}
_TORCHVISION = "torchvision.models."


@dataclass(frozen=True)
class Builder:
    """How a network is built."""

    name: str
    """as asked for: ``resnet18`` or ``package.module:function``"""
    architecture: str
    """as in the contract: ``torchvision.models.resnet18`` or ``package.module:function``"""
    function: Callable[..., Any]
    """takes keyword arguments, gives a ``torch.nn.Module``"""

    @property
    def is_torchvision(self) -> bool:
        """Whether torchvision has published weights and preprocessing for it."""
        return self.architecture.startswith(_TORCHVISION)

    @property
    def recipes(self) -> tuple[Any, ...]:
        """Torchvision's weights entries for it, in the order of its documentation; none for one's own."""
        return tuple(models.get_model_weights(self.name)) if self.is_torchvision else ()

    def recipe(self, name: str) -> Any | None:
        """Give the weights entry called ``IMAGENET1K_V1``, ``DEFAULT`` or ``ResNet18_Weights.IMAGENET1K_V1``."""
        if not self.recipes:
            return None
        entries = type(self.recipes[0])
        return entries.__members__.get(name.removeprefix(f"{entries.__name__}."))

    def arguments(self, recipe: Any | None) -> dict[str, Any]:
        """Give the arguments that make the network of a weights entry and differ from the builder's defaults."""
        arguments = dict(_ARGUMENTS_WITH_WEIGHTS.get(self.name, {}))
        if recipe is not None and self.name.startswith("vit_") and recipe.meta["min_size"][0] != 224:
            arguments["image_size"] = recipe.meta["min_size"][0]
        return arguments

    def build(self, arguments: Mapping[str, Any], *, meta: bool = False) -> torch.nn.Module:
        """Build the network, in eval mode, with its initial weights or, on the meta device, without any.

        The same arguments give the same weights, and the caller's random state is left as it was.

        Raises
        ------
        BackboneNotFoundError
            When the function refuses the arguments or gives something else than a module.
        """
        quiet = {} if not self.is_torchvision else {"weights": None, **_QUIET.get(self.name, {})}
        try:
            with torch.random.fork_rng(devices=[]), _EmptyOnMeta() if meta else nullcontext():
                torch.manual_seed(0)
                network = self.function(**quiet, **arguments)
        except (TypeError, ValueError, RuntimeError, AssertionError) as exc:  # what builders raise for arguments
            why = str(exc).partition("\n")[0] or type(exc).__name__
            raise BackboneNotFoundError(f"{self.name}: cannot be built with {dict(arguments)}: {why}") from exc
        if not isinstance(network, torch.nn.Module):
            kind = type(network).__name__
            raise BackboneNotFoundError(f"{self.name}: gives a {kind}, expected a torch.nn.Module")
        return (network.to("meta") if meta else network).eval().requires_grad_(False)

    def build_for_size(self, arguments: Mapping[str, Any], network: torch.nn.Module, size: int) -> torch.nn.Module:
        """Give ``network`` on the meta device, rebuilt for another input size where it is made for one only."""
        argument = _SIZE_ARGUMENT.get(type(network).__name__) if self.is_torchvision else None
        if argument is None:
            return network
        value = size if argument == "image_size" else (size, size)
        return self.build({**arguments, argument: value}, meta=True)


class _EmptyOnMeta(TorchFunctionMode):
    """Lets uninitialised tensors, which is how layers make their parameters, take no memory and no time.

    Unlike ``torch.device("meta")`` it leaves other tensors alone: RegNet's builder computes with some.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **place})


def known_backbones() -> list[str]:
    """Give the names of torchvision's classification models, sorted."""
    return sorted(models.list_models(module=models))


def find_builder(name: str) -> Builder:
    """Find the function that builds a network.

    Parameters
    ----------
    name
        A torchvision classification model such as ``resnet18`` (also as ``torchvision.models.resnet18``), or
        ``package.module:function`` for one's own.

    Raises
    ------
    BackboneNotFoundError
        When there is none; the message suggests the closest name.
    """
    if ":" in name:
        return Builder(name, name, _own_function(name))
    short = name.removeprefix(_TORCHVISION)
    known = known_backbones()
    if short not in known:
        raise BackboneNotFoundError(
            f"no backbone {name!r}{did_you_mean(short, known)}; it is one of torchvision's {len(known)} "
            f"classification models, or package.module:function for your own"
        )
    return Builder(short, f"{_TORCHVISION}{short}", models.get_model_builder(short))


def any_recipe(name: str) -> Any:
    """Find a weights entry of any torchvision model by its full name.

    Raises
    ------
    PreprocessError
        When there is none.
    """
    try:
        return models.get_weight(name)
    except (ValueError, KeyError, AttributeError) as exc:
        raise PreprocessError(
            f"preprocess: no torchvision weights entry {name!r}; a full name reads ResNet18_Weights.IMAGENET1K_V1"
        ) from exc


def _own_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as exc:
        raise BackboneNotFoundError(f"backbone {name!r}: module {module_name!r} cannot be imported: {exc}") from exc
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        hint = did_you_mean(function_name, known)
        raise BackboneNotFoundError(f"backbone {name!r}: {module_name} has no function {function_name!r}{hint}")
    return function  # type: ignore[no-any-return]
