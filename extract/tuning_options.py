"""How a backbone is fine-tuned: every option with its limits, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from .errors import TuningError

__all__ = ["Augment", "TuningOptions", "Unfreeze"]

Unfreeze = int | Literal["all"] | Sequence[str]
"""the last so many layers with weights (0: none but the head), all, or globs over module names: ``layer4``,
``features.1[0-2]*``"""
Augment = Literal["none", "shift", "light", "colour", "rand"]
"""``light``: random resized crop (half of the area or more) and flip; ``colour``: these, and brightness, contrast and
saturation by up to 0.3; ``rand``: those of ``light``, and RandAugment's two operations; ``shift``: the image as
extraction sees it, moved by up to an eighth of its side; ``none``: not even that"""
Start = Literal["logistic_regression", "random"]
KeepPrefix = Literal["auto", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """Options of ``finetune_backbone``; the defaults train the head for an epoch, then the last four layers with it.

    Raises
    ------
    TuningError
        Naming the option that is out of range, or those that do not go together.
    """

    unfreeze: Unfreeze = 4
    """what learns beside the head: the last so many layers with weights, ``"all"``, or globs of module names"""
    epochs: int = 10
    """passes over the training images at most, those of the head alone included"""
    head_epochs: int = 1
    """first epochs in which the head alone learns"""
    gradual: int = 0
    """epochs after which the next block, nearer to the input, begins to learn; 0: all at once"""
    start: Start = "logistic_regression"
    """where the head starts: from a logistic regression on the frozen features, or from random numbers"""
    learning_rate: float = 3e-4
    """of the unfrozen block nearest to the head, at its peak"""
    head_learning_rate: float = 1e-3
    """of the head, at its peak"""
    layer_decay: float = 0.7
    """learning rate of each block, as a multiple of the next one's, nearer to the head"""
    warmup: float = 0.1
    """share of the steps in which rates rise to their peak; then they fall to zero by a cosine"""
    weight_decay: float = 0.01
    """AdamW's, not of biases and norms"""
    batch_size: int = 32
    """images of a step"""
    label_smoothing: float = 0.1
    """part of the target that is spread over all classes"""
    class_weight: Literal["balanced"] | None = None
    """``balanced`` weighs classes alike, None images"""
    clip: float = 1.0
    """longest gradient, all tensors together; 0: any"""
    average: float = 0.0
    """decay of the average over the weights of past steps that is taken in their place, 0.99 say; 0: none"""
    augment: Augment = "light"
    """random views that training sees; see ``augmentation``"""
    views: int = 0
    """random views of each image, made once; 0: new ones in every epoch"""
    mixup: float = 0.0
    """alpha of MixUp, 0: none"""
    cutmix: float = 0.0
    """alpha of CutMix, 0: none; of both, one is drawn each step"""
    validation: float = 0.15
    """share of the training images, or groups, by which the best epoch is chosen"""
    patience: int = 4
    """epochs without a better validation loss after which it stops; 0: never"""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """whether unfrozen batch norms keep their statistics"""
    recompute: bool = False
    """gradient checkpointing: less memory, some more time"""
    keep_prefix: KeepPrefix = "auto"
    """keep what the frozen part gives for each view: where views are fixed and there is room; ``always`` refuses to run
    where it cannot"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """arithmetic while training; features are extracted in that of the contract"""
    seed: int = 0
    """of validation part, order, views, dropout and head"""

    def __post_init__(self) -> None:
        self._require(1, self.epochs, "epochs")
        self._require(0, self.head_epochs, "head_epochs")
        self._require(0, self.gradual, "gradual")
        self._require(1, self.batch_size, "batch_size")
        self._require(0, self.views, "views")
        self._require(0, self.patience, "patience")
        for name in ("learning_rate", "head_learning_rate", "layer_decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TuningError(f"{name}: above 0, found {getattr(self, name)!r}")
        for name in ("weight_decay", "clip", "mixup", "cutmix"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TuningError(f"{name}: 0 or more, found {getattr(self, name)!r}")
        for name in ("warmup", "label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise TuningError(f"{name}: from 0 to below 1, found {getattr(self, name)!r}")
        if not 0 < self.validation < 1:
            raise TuningError(f"validation: above 0 and below 1, found {self.validation!r}")
        self._choice("start", get_args(Start))
        self._choice("augment", get_args(Augment))
        self._choice("batch_norm", ("frozen", "train"))
        self._choice("precision", ("fp32", "bf16", "fp16"))
        self._choice("keep_prefix", get_args(KeepPrefix))
        self._choice("class_weight", (None, "balanced"))
        if self.head_epochs >= self.epochs and self.unfreeze != 0:
            raise TuningError(
                f"head_epochs: {self.head_epochs} of {self.epochs} epochs leave none in which the backbone learns"
            )
        if self.keep_prefix == "always" and not self.fixed_views:
            raise TuningError(
                'keep_prefix: views that are new in every epoch cannot be kept; set views, or augment = "none"'
            )
        if (self.mixup or self.cutmix) and (self.class_weight or self.fixed_views):
            raise TuningError(
                "mixup and cutmix mix the pixels of two images: they need new views in every epoch (views = 0, and "
                "augment) and no class_weight"
            )

    @property
    def fixed_views(self) -> int:
        """Number of different views of an image in the whole run; 0: new ones in every epoch."""
        return 1 if self.augment == "none" else self.views

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain JSON values."""
        values = asdict(self)
        if isinstance(self.unfreeze, Sequence) and not isinstance(self.unfreeze, str):
            values["unfreeze"] = list(self.unfreeze)
        return values

    def _require(self, least: int, value: int, name: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise TuningError(f"{name}: a whole number of at least {least}, found {value!r}")

    def _choice(self, name: str, allowed: Sequence[str | None]) -> None:
        if getattr(self, name) not in allowed:
            raise TuningError(f"{name}: one of {', '.join(map(str, allowed))}; found {getattr(self, name)!r}")
