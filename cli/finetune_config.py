"""What a config file says of fine-tuning; ``config`` holds the other sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .config_types import Count, Section

__all__ = ["Finetune"]


def _choice(value: Any) -> Any:
    names = isinstance(value, (list, tuple)) and value and all(isinstance(name, str) for name in value)
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not (names or number or value == "all"):
        raise ValueError('expected a number of layers, "all", or a list of names and globs')
    return tuple(value) if names else value


Unfreeze = Annotated[int | str | tuple[str, ...], BeforeValidator(_choice)]
Rate = Annotated[float, Field(gt=0, le=10)]
Part = Annotated[float, Field(ge=0, lt=1)]
Least = Annotated[float, Field(ge=0)]


class Finetune(Section):
    """How the backbone is fine-tuned; without any key: the head for an epoch, then the last four layers with it."""

    unfreeze: Unfreeze = 4
    """what learns beside the head: the last so many layers with weights, "all", or names and globs of modules"""
    epochs: int = Field(10, ge=1, le=10_000)
    """passes over the training images at most"""
    head_epochs: Count = 1
    """first epochs in which the head alone learns"""
    gradual: Count = 0
    """epochs after which the next block, nearer to the input, begins to learn; 0: all at once"""
    start: Literal["logistic_regression", "random"] = "logistic_regression"
    """where the head starts: from a logistic regression on the frozen features, or from random numbers"""
    learning_rate: Rate = 3e-4
    """of the unfrozen block next to the head, at its peak"""
    head_learning_rate: Rate = 1e-3
    """of the head, at its peak"""
    layer_decay: Rate = 0.7
    """each block's learning rate as a multiple of that of the next, nearer to the head"""
    warmup: Part = 0.1
    """share of the steps in which rates rise; then they fall to zero by a cosine"""
    weight_decay: Least = 0.01
    """AdamW's, not of biases and norms"""
    batch_size: int = Field(32, ge=1, le=65_536)
    """images of a step; where memory is short, it is taken in parts"""
    label_smoothing: Part = 0.1
    """part of the target that is spread over all classes"""
    class_weight: Literal["none", "balanced"] = "none"
    """balanced weighs classes alike, none images"""
    clip: Least = 1.0
    """longest gradient; 0: any"""
    average: Part = 0.0
    """decay of an average over the weights of past steps that is taken in their place, 0.99 say; 0: none"""
    augment: Literal["none", "shift", "light", "colour", "rand"] = "light"
    """light: random crops of half the area or more, and flips; colour, rand: more than that; shift: by an eighth of the
    side, no flips; none: as it is"""
    views: Count = 0
    """random views of each image, made once; 0: new ones in every epoch"""
    mixup: Least = 0.0
    """alpha of MixUp; 0: none"""
    cutmix: Least = 0.0
    """alpha of CutMix; 0: none"""
    validation: float = Field(0.15, gt=0, lt=1)
    """share of the training images by which the best epoch is chosen; held-out images are never read"""
    patience: Count = 4
    """epochs without a better validation loss after which it stops; 0: never"""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """whether unfrozen batch norms keep their statistics"""
    recompute: bool = False
    """gradient checkpointing: less memory, some more time"""
    keep_prefix: Literal["auto", "always", "never"] = "auto"
    """keep what the frozen part gives, where views are fixed (augment = "none", or views) and there is room; always
    refuses to run where it cannot"""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """arithmetic while training; features are extracted in compute.precision"""
    seed: int = Field(0, ge=0, lt=2**32)
    """of validation part, order, views, dropout and head"""
    workers: int | None = Field(None, ge=0, le=256)
    """processes that make random views; by default one for four cores, with CUDA as many as cores, at most 8"""

    def options(self) -> dict[str, Any]:
        """Give what ``TuningOptions`` takes."""
        values = self.model_dump(exclude={"workers"})
        return {**values, "class_weight": None if self.class_weight == "none" else self.class_weight}

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        from icecore.extract import TuningOptions

        TuningOptions(**self.options())
        return self
