"""The section ``retrain`` of a config: which model is kept up to date, and what replaces it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from .config_types import Count, Positive, Section, Share
from .task_choices import MetricName, check_choices

if TYPE_CHECKING:
    from icecore.train import GateLimits

__all__ = ["Retrain"]

NotNegative = Annotated[float, Field(ge=0)]


class Retrain(Section):
    """What a challenger must fulfil to replace the champion."""

    name: str | None = Field(None, pattern=r"^\w[\w.-]{0,127}$")
    """name of the model, under which bundles, champion and decisions are kept; that of train by default"""
    metric: MetricName | None = None
    """score that is compared on held-out rows; what the cross-validation chooses by, by default"""
    min_gain: NotNegative = 0.0
    """what the challenger must have more than the champion, in the unit of the metric; of a loss, less"""
    level: float = Field(0.05, gt=0, lt=1)
    """how likely so large a gain may be where the challenger is no better: a one-sided test on the same rows"""
    max_class_drop: Share = 0.05
    """most that the recall of a class may fall; 1.0: as far as it will"""
    class_rows: Count = 20
    """held-out rows that a class must have to be looked at by itself"""
    min_rows: Count = 50
    """held-out rows that a comparison needs"""
    max_champion_drop: NotNegative = 0.05
    """most that the champion's score may have fallen on its own held-out rows since it was trained: beyond it, labels
    are suspect and nothing is decided. A share of the score for rmse, mae and log_loss"""
    max_calibration_error: Share | None = None
    """most expected calibration error of the challenger; no limit by default"""
    max_latency_ms: Positive | None = None
    """most milliseconds an image, from features to probabilities; no limit by default"""
    max_megabytes: Positive | None = None
    """most size of the model's files, in 10**6 bytes; no limit by default"""

    def check_task(self, task: str) -> None:
        """Refuse a metric that the task does not have."""
        try:
            check_choices(task, models=(), grids=(), metric=self.metric)
        except ValueError as exc:
            raise ValueError(f"retrain.{exc}") from exc

    def limits(self) -> GateLimits:
        """Give what the gate takes."""
        from icecore.train import GateLimits

        return GateLimits(**self.model_dump(exclude={"name", "metric"}))
