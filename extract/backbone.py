"""The frozen network with its weights: what it is, where it came from, and what its features depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from icecore.store import Contract, ContractMismatchError
from icecore.store.contract import FULL
from torch import nn

from .builders import Builder, any_recipe, find_builder
from .errors import PreprocessError, UnknownLayerError, UntraceableError, WeightsError, did_you_mean
from .faithful import require_faithful
from .fingerprint import code_sha256, hidden_tensors, plain_tensors, source_sha256
from .graph import Trace, tensors_needed, trace
from .hooked import require_steady
from .layers import LayerInfo, describe_layers
from .preprocess import Preprocess
from .views import asked_views, require_room, view_names
from .weight_files import download, read_weights
from .weights import Loading, hashed_names, load_into, weights_sha256

__all__ = ["DECODER", "Backbone", "backbone_for", "load_backbone"]

DECODER = "pillow"
_FILES = (".pth", ".pt", ".tar", ".bin", ".safetensors")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A network in eval mode whose weights do not learn; made by ``load_backbone``."""

    builder: Builder
    """what built it"""
    module: nn.Module
    """the network; tensors that the weights file lacks hold their initial values, see ``require``"""
    arguments: Mapping[str, Any]
    """keyword arguments of the builder that change values"""
    preprocess: Preprocess
    """what happens to an image before it"""
    weights_sha256: str
    """hash of all tensors as loaded, whatever file format they came from; for one's own function of its code, too"""
    source: Mapping[str, str | None]
    """where weights (None: built with the network) and preprocessing came from: recorded, not hashed"""
    loading: Loading
    """which tensors fitted"""
    hooks: str = ""
    """why its layers are taken by forward hooks, which is that torch.fx cannot follow it; empty where it can"""
    views: tuple[str, ...] = (FULL,)
    """the crops and flips of an image whose features are averaged"""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what describes the network: where that is unpickled it is loaded anew and held against it."""
        return _reload, (self.contract(), dict(self.source))

    @property
    def name(self) -> str:
        """``resnet18`` or ``package.module:function``."""
        return self.builder.name

    @property
    def architecture(self) -> str:
        """``torchvision.models.resnet18`` or ``package.module:function``, as in the contract."""
        return self.builder.architecture

    @property
    def weights_words(self) -> str:
        """Where the weights came from, for messages."""
        return self.source["weights"] or f"the weights that {self.name} builds"

    @cached_property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Every layer with its shape for this preprocessing, in the order of the network."""
        crop = self.preprocess.crop
        larger = self.builder.build_for_size(self.arguments, self.module, 2 * crop)
        return describe_layers(self.module, size=crop, larger=larger)

    @cached_property
    def _traced(self) -> Trace:
        return trace(self.module)

    def contract(self, *, precision: str = "fp32") -> Contract:
        """Give all that decides a feature's value, for arithmetic in ``fp32``, ``bf16`` or ``fp16``."""
        return Contract(
            architecture=self.architecture,
            arguments=dict(self.arguments),
            weights=self.weights_sha256,
            preprocess=self.preprocess.steps,
            decoder=DECODER,
            views=self.views,
            precision=precision,
        )

    def require(self, layers: Iterable[str]) -> None:
        """Return when the weights hold every tensor on which these layers depend.

        Raises
        ------
        WeightsError
            Naming what is missing, of another shape, or a sign of another architecture.
        UnknownLayerError
            When there is no such layer.
        """
        asked = list(layers)
        if self.hooks:  # which tensors a layer needs, only a graph tells
            known, needed = [layer.name for layer in self.layers], hashed_names(self.module)
        else:
            traced = self._traced
            known = list(traced.nodes)
            needed = tensors_needed(traced, self.module, [layer for layer in asked if layer in traced.nodes])
        for layer in asked:
            if layer not in known:
                hint = did_you_mean(layer, known)
                raise UnknownLayerError(f"backbone {self.name} has no layer {layer!r}{hint}")
        why = self.loading.lacking(needed)
        if why is not None:
            raise WeightsError(f"{self.weights_words}: does not fit {self.name} up to {', '.join(asked)}: {why}")


def load_backbone(
    name: str,
    weights: str | Path | None = None,
    *,
    preprocess: str | Preprocess | None = None,
    preprocess_changes: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    views: Sequence[str] = (),
) -> Backbone:
    """Build a network, load its weights, and put it in eval mode.

    Parameters
    ----------
    name
        torchvision classification model (``resnet18``) or ``package.module:function`` for one's own.
    weights
        Name of torchvision weights (``IMAGENET1K_V1``, ``DEFAULT``; fetched once by torchvision), or path of a
        ``.pth``, ``.pt`` or ``.safetensors`` file. None only for one's own function, which then brings its own.
    preprocess
        A ``Preprocess``, or the name of the torchvision weights entry whose preprocessing to take. Default: that of
        the weights; for a file, that of the model's first published weights.
    preprocess_changes
        Fields of ``Preprocess`` to replace in it. For one's own function ``resize`` and ``crop`` here are enough.
    arguments
        Keyword arguments of the builder; default: those that torchvision uses with these weights.
    views
        ``flip``, ``five-crop`` or both: features are averaged over these views of an image. Default: the plain image.

    Returns
    -------
    Backbone
        On the CPU. ``source`` records which weights and which preprocessing were taken.

    Raises
    ------
    PairError
        When torch and torchvision do not fit together (raised as the name is first taken from the package).
    BackboneNotFoundError
        When there is no such network.
    WeightsError
        When the weights cannot be had or read, belong to another network, or are not finite.
    PreprocessError
        When the preprocessing is unknown, or none is given for one's own function; or it leaves no room for the views.
    TraceError
        When one's own network can neither be followed nor watched by hooks, or its graph does not compute what the
        network does.
    """
    builder = find_builder(name)
    published = None if isinstance(weights, Path) or weights is None else builder.recipe(weights)
    changes = dict(preprocess_changes or {})
    chosen, recipe, why = _choose_preprocess(builder, published, preprocess, changes)
    values = dict(builder.arguments(recipe) if arguments is None else arguments)
    module = builder.build(values)
    loading, where = _load(builder, module, weights, published)
    chosen = chosen.changed(changes)
    names = view_names(views)
    require_room(names, chosen)
    hooks, alone = ("", False) if builder.is_torchvision else _prove(module, size=chosen.crop)
    told = {"layers": f"forward hooks{', each image alone' if alone else ''}: {hooks}"} if hooks else {}
    return Backbone(
        builder=builder,
        module=module,
        arguments=values,
        preprocess=chosen,
        weights_sha256=_hash(builder, module, loading, hooks=bool(hooks)),
        source={"backbone": builder.name, "weights": where, "preprocess": _with_changes(why, changes), **told},
        loading=loading,
        hooks=hooks,
        views=names,
    )


def backbone_for(
    contract: Contract, weights: str | Path | None = None, *, source: Mapping[str, Any] | None = None
) -> Backbone:
    """Load the very backbone that a contract describes.

    Parameters
    ----------
    contract
        Base contract of a generation or of a bundle.
    weights
        Name or path of the weights; default: where ``source`` says they came from.
    source
        What was recorded beside the contract (``FeatureSet.source``).

    Raises
    ------
    ContractMismatchError
        When the weights loaded, or anything else, are not those of the contract; it lists the fields.
    WeightsError
        When the weights cannot be read.
    """
    recorded = (source or {}).get("weights")
    name = contract.architecture.removeprefix("torchvision.models.")
    backbone = load_backbone(
        name,
        weights if weights is not None else recorded,
        preprocess=Preprocess.from_steps(contract.preprocess),
        arguments=contract.arguments,
        views=asked_views(contract.views),
    )
    differences = backbone.contract(precision=contract.precision).diff(contract)
    if differences:
        code = "" if backbone.builder.is_torchvision else ", and the code as it was then"
        cure = f"give the weights that the features were extracted with{code}"
        raise ContractMismatchError(f"{backbone.weights_words}: not the backbone asked for", differences, cure)
    return backbone


def _reload(contract: Contract, source: Mapping[str, Any]) -> Backbone:
    return replace(backbone_for(contract, source=source), source=source)


def _choose_preprocess(
    builder: Builder, published: Any | None, asked: str | Preprocess | None, changes: Mapping[str, Any]
) -> tuple[Preprocess, Any | None, str]:
    """Give the preprocessing, the weights entry whose arguments apply, and the words that record the choice."""
    first = builder.recipes[0] if builder.recipes else None
    if isinstance(asked, Preprocess):
        return asked, published or first, "given field by field"
    if asked is not None:
        entry = builder.recipe(asked) or any_recipe(asked)
        own = entry if entry in builder.recipes else published or first
        return Preprocess.from_transforms(entry.transforms()), own, f"{entry!r}, as asked"
    if published is not None:
        return Preprocess.from_transforms(published.transforms()), published, f"{published!r}, of the weights"
    if first is None and {"resize", "crop"} <= changes.keys():
        return Preprocess(), None, "torchvision's ImageNet preset"
    if first is None:
        raise PreprocessError(
            f"preprocess: {builder.name} is your own function, so say what its images need: "
            f"Preprocess(resize=256, crop=224), or the name of a torchvision weights entry"
        )
    return Preprocess.from_transforms(first.transforms()), first, f"{first!r}, the first published for {builder.name}"


def _with_changes(why: str, changes: Mapping[str, Any]) -> str:
    return why + "".join(f", {name}={value!r}" for name, value in changes.items())


def _load(
    builder: Builder, module: nn.Module, weights: str | Path | None, published: Any | None
) -> tuple[Loading, str | None]:
    """Load the weights; give what became of each tensor, and where they came from: None for the network's own."""
    if weights is None:
        if builder.is_torchvision:
            raise WeightsError(
                f"{builder.name}: no weights given, and without them features are random; {_offer(builder)}"
            )
        return Loading(hashed_names(module), frozenset(), {}, frozenset()), None
    if published is not None:
        return load_into(module, download(published), where=repr(published)), repr(published)
    path = Path(weights)
    if not path.is_file() and path.suffix not in _FILES:
        hint = did_you_mean(str(weights), _names(builder))
        raise WeightsError(f"{builder.name}: no weights {str(weights)!r}{hint}; {_offer(builder)}")
    return load_into(module, read_weights(path), where=path), str(path.absolute())


def _prove(module: nn.Module, *, size: int) -> tuple[str, bool]:
    """Return when one's own network can be used; give why hooks are needed, or nothing, and if images run alone."""
    try:
        require_faithful(module, size=size)
    except UntraceableError as exc:
        return str(exc), require_steady(module, size=size, why=str(exc))
    return "", False


def _hash(builder: Builder, module: nn.Module, loading: Loading, *, hooks: bool) -> str:
    """Hash what decides values and is not in the contract's other fields."""
    if builder.is_torchvision:
        return weights_sha256(module, loading.loaded)
    if hooks:
        return weights_sha256(module, loading.loaded, hidden=plain_tensors(module), code=source_sha256(module))
    traced = trace(module)
    return weights_sha256(module, loading.loaded, hidden=hidden_tensors(traced, module), code=code_sha256(traced))


def _names(builder: Builder) -> list[str]:
    return [entry.name for entry in builder.recipes]


def _offer(builder: Builder) -> str:
    names = _names(builder)
    published = f"one of {', '.join(names)}, or " if names else ""
    return f"give {published}the path of a local .pth or .safetensors file"
