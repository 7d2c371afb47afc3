"""icecore.extract: images through a frozen backbone, once, into the feature store.

Nothing here imports torch until it is used: ``import icecore.extract`` works in an installation without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    BackboneNotFoundError,
    CompileError,
    DeviceError,
    ExtractError,
    ImageError,
    NumericsMovedError,
    PairError,
    PreprocessError,
    ProcessLostError,
    RemovalRefusedError,
    SourceLostError,
    TraceError,
    TuningDivergedError,
    TuningError,
    UnknownLayerError,
    UnpoolableLayerError,
    WatchError,
    WeightsError,
)

if TYPE_CHECKING:
    from .backbone import Backbone, backbone_for, load_backbone
    from .builders import known_backbones
    from .comparing import Comparison, compare_precisions
    from .devices import choose_device, choose_precision
    from .events import Event
    from .finetuning import TuningReport, finetune_backbone
    from .job import extract_images
    from .layers import LayerInfo, list_layers, resolve_layers
    from .machine import check_machine
    from .pairing import require_pair
    from .predicting import features_of, stream_features
    from .preprocess import Preprocess
    from .pretraining import pretrain
    from .report import ExtractReport, FailedImage
    from .transformer import FrozenBackbone
    from .tuning_data import TrainingImage
    from .tuning_loop import Epoch
    from .tuning_options import TuningOptions
    from .watching import Watch

__all__ = [
    "Backbone",
    "BackboneNotFoundError",
    "Comparison",
    "CompileError",
    "DeviceError",
    "Epoch",
    "Event",
    "ExtractError",
    "ExtractReport",
    "FailedImage",
    "FrozenBackbone",
    "ImageError",
    "LayerInfo",
    "NumericsMovedError",
    "PairError",
    "Preprocess",
    "PreprocessError",
    "ProcessLostError",
    "RemovalRefusedError",
    "SourceLostError",
    "TraceError",
    "TrainingImage",
    "TuningDivergedError",
    "TuningError",
    "TuningOptions",
    "TuningReport",
    "UnknownLayerError",
    "UnpoolableLayerError",
    "Watch",
    "WatchError",
    "WeightsError",
    "backbone_for",
    "check_machine",
    "choose_device",
    "choose_precision",
    "compare_precisions",
    "extract_images",
    "features_of",
    "finetune_backbone",
    "known_backbones",
    "list_layers",
    "load_backbone",
    "pretrain",
    "require_pair",
    "resolve_layers",
    "stream_features",
]

_TORCHLESS = {
    "Event": "events",
    "ExtractReport": "report",
    "FailedImage": "report",
    "Preprocess": "preprocess",
    "TuningOptions": "tuning_options",
    "Watch": "watching",
    "check_machine": "machine",
    "require_pair": "pairing",
}
_WITH_TORCH = {
    "Backbone": "backbone",
    "Comparison": "comparing",
    "Epoch": "tuning_loop",
    "FrozenBackbone": "transformer",
    "LayerInfo": "layers",
    "TrainingImage": "tuning_data",
    "TuningReport": "finetuning",
    "backbone_for": "backbone",
    "choose_device": "devices",
    "choose_precision": "devices",
    "compare_precisions": "comparing",
    "extract_images": "job",
    "features_of": "predicting",
    "finetune_backbone": "finetuning",
    "known_backbones": "builders",
    "list_layers": "layers",
    "load_backbone": "backbone",
    "pretrain": "pretraining",
    "resolve_layers": "layers",
    "stream_features": "predicting",
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name when it is first used; a broken torch is told then, in one line."""
    home = _TORCHLESS.get(name)
    if home is None and name in _WITH_TORCH:
        from .pairing import require_pair

        require_pair()
        home = _WITH_TORCH[name]
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
