"""What stands on the two sides of a comparison: which versions, and which fine-tunings made their backbones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from icecore.store import Column, FeatureSet, FeatureStore, LayerNotFoundError, VersionNotFoundError
from icecore.store.tunings import Tuning, read_tuning, tuned_weights_path

from .errors import ComparisonError
from .sweep_layers import Selection, expand_layers

__all__ = ["Source", "choose_sides", "layers_of_both"]

Layers = Sequence[str | Sequence[str]]


@dataclass(frozen=True)
class Source:
    """One side of a comparison, before anything is trained."""

    features: FeatureSet
    """pinned to a version"""
    name: str
    """``SET@VERSION``"""
    tunings: tuple[Tuning, ...]
    """fine-tunings behind its backbone, the latest first; empty where it is as published"""


def choose_sides(store: FeatureStore, a: str, b: str | None = None) -> tuple[Source, Source]:
    """Find the two versions to compare.

    Parameters
    ----------
    store
        An open store.
    a, b
        Names as ``FeatureStore.at`` takes them. Without ``b``, ``a`` is a fine-tuned one and becomes the second side;
        the first is the newest version of the generation that its backbone was tuned from.

    Raises
    ------
    ComparisonError
        When both are one and the same state; when there is no ``b`` and ``a`` is not fine-tuned, or its parent has no
        features that can be read; when the record of a fine-tuning is gone.
    icecore.store.StoreError
        When there is no such state.
    """
    first = _source(store, a)
    if b is None:
        return _parent(store, first), first
    second = _source(store, b)
    same = first.features.generation == second.features.generation
    if same and first.features.version == second.features.version:
        raise ComparisonError(f"{a!r} and {b!r} are both {first.name}; name two versions that differ")
    return first, second


def layers_of_both(
    a: Source, b: Source, layers: Layers, layers_b: Layers | None
) -> tuple[tuple[Selection, ...], tuple[Selection, ...], tuple[str, ...]]:
    """Give the selections of layers of each side, position by position beside each other, and notes on them.

    Parameters
    ----------
    layers
        Of both sides, names or globs as ``sweep_models`` takes them; all columns that both have by default.
    layers_b
        Of the second side, where its network names them otherwise.

    Raises
    ------
    ComparisonError
        When one side lacks a layer, the numbers differ, or there is nothing in common.
    icecore.store.StoreError
        When neither side has a layer, or a name stands for several columns.
    """
    if not layers and layers_b is None:
        return _common(a, b)
    if layers_b is not None:
        ours, theirs = expand_layers(a.features, layers), expand_layers(b.features, layers_b)
        if len(ours) != len(theirs):
            raise ComparisonError(
                f"the second side has {len(theirs)} selections of layers for {len(ours)} of the first; name as many, "
                "in the order in which they stand beside each other"
            )
        return ours, theirs, ()
    ours, theirs = _expand(a, b, layers), _expand(b, a, layers)
    alone = _alone(a, b, ours), _alone(b, a, theirs)
    for (side, other), names in zip(((a, b), (b, a)), alone, strict=True):
        if names:
            raise _lacking(side, other, ", ".join(map(repr, names)))
    return ours, theirs, _other_network(a, b)


def _other_network(a: Source, b: Source) -> tuple[str, ...]:
    """Say so where layers of one name are of two networks."""
    ours, theirs = a.features.contract.architecture, b.features.contract.architecture
    return () if ours == theirs else (f"{ours} and {theirs} are compared at the layers that have the same names",)


def _source(store: FeatureStore, name: str) -> Source:
    features = store.at(name)
    return Source(features, f"{features.name}@{features.version}", _tunings(store, features))


def _tunings(store: FeatureStore, features: FeatureSet) -> tuple[Tuning, ...]:
    """Walk from a backbone to the one that it was tuned from, and on."""
    found: list[Tuning] = []
    weights = features.contract.weights
    while tuning := read_tuning(store.path, weights):
        found.append(tuning)
        weights = tuning.parent.weights
        if weights in {tuning.weights for tuning in found}:
            raise ComparisonError(f"the records of fine-tuned weights {weights[:12]} name each other as parents")
    if (path := tuned_weights_path(store.path, weights)).exists():
        raise ComparisonError(
            f"{path}: these weights were fine-tuned here and their record {path.with_suffix('.json').name} is gone: "
            "nobody knows which images they have seen; put it back, or run `icecore finetune` again"
        )
    return tuple(found)


def _parent(store: FeatureStore, tuned: Source) -> Source:
    """Find the generation that a backbone was tuned from: by its uuid, or by its contract."""
    if not tuned.tunings:
        raise ComparisonError(
            f"{tuned.name} is not of a fine-tuned backbone, so that it has no parent; name both sides: A and B"
        )
    tuning = tuned.tunings[0]
    known = sorted(store.generations(tuning.parent), key=lambda found: found[0] != tuned.features.name)
    tried = dict.fromkeys([*([tuning.parent_generation] if tuning.parent_generation else []), *(u for _, u in known)])
    there = {uuid for _, uuid in known}
    reasons = []
    for uuid in (uuid for uuid in tried if uuid in there):
        try:
            return _source(store, uuid)
        except VersionNotFoundError as exc:
            reasons.append(str(exc))
    told = "; ".join(reasons) or "no generation of this store was extracted with the weights that it was tuned from"
    raise ComparisonError(
        f"{tuned.name}: the features of the frozen backbone cannot be read ({told}); extract them into a set of their "
        "own with `icecore extract CONFIG --set set=NAME`, and name both sides"
    )


def _common(a: Source, b: Source) -> tuple[tuple[Selection, ...], tuple[Selection, ...], tuple[str, ...]]:
    """Give the columns that both sides have, whatever they are stored as, and say which ones are left out."""
    ours, theirs = ({_key(column): column.name for column in side.features.columns} for side in (a, b))
    both = [key for key in ours if key in theirs]
    if not both:
        raise ComparisonError(
            f"{a.name} and {b.name} have no layer in common: {', '.join(ours.values())}; and "
            f"{', '.join(theirs.values())}; name layers of each, in the order in which they stand beside each other"
        )
    apart = (
        (a.name, [name for key, name in ours.items() if key not in theirs]),
        (b.name, [name for key, name in theirs.items() if key not in ours]),
    )
    notes = [f"layers of {side} alone, left out: {', '.join(names)}" for side, names in apart if names]
    selections = (tuple((each[key],) for key in both) for each in (ours, theirs))
    return next(selections), next(selections), (*notes, *_other_network(a, b))


def _key(column: Column) -> tuple[str, str, str]:
    """Give what a column is, without the type that it is stored as."""
    return column.layer, column.pooling.name, column.view


def _expand(side: Source, other: Source, layers: Layers) -> tuple[Selection, ...]:
    """Find the layers of one side; what the other side alone has is told with the cure."""
    try:
        return expand_layers(side.features, layers)
    except LayerNotFoundError as exc:
        name = exc.layer
        try:
            expand_layers(other.features, [name])
        except LayerNotFoundError:
            raise exc from None
        raise _lacking(other, side, repr(name)) from exc


def _alone(side: Source, other: Source, found: Sequence[Selection]) -> list[str]:
    """Give the layers that a glob has found on this side and that the other side does not have."""
    there = {_key(column) for column in other.features.columns}
    return [name for names in found for name in names if _key(side.features.resolve(name)) not in there]


def _lacking(side: Source, other: Source, names: str) -> ComparisonError:
    has = ", ".join(column.name for column in other.features.columns)
    return ComparisonError(
        f"layer {names} is in {side.name} and not in {other.name}, which has {has}; extract it there too, leave it "
        "out, or say which layer stands for it where the networks differ"
    )
