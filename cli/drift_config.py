"""The config section ``[drift]``: which model's training images new ones are held against."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["DriftConfig"]


class DriftConfig(BaseModel):
    """Compare the images that a run adds with those that the champion was trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    name: str = Field("default", pattern=r"^\w[\w.-]{0,127}$")
    """name of the model whose champion is meant; without one nothing is compared"""
    max_drift: float = Field(0.3, ge=0)
    """distance from which drift is told, in standard deviations of the training rows"""
    fail: bool = False
    """end with code 8 where new images have drifted"""
