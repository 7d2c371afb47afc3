"""What a comparison of two generations found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from icecore.store.tunings import Tuning

from .data import Provenance
from .metrics import Metric
from .resampling import Comparison, Interval
from .result import Cell, Predictions, intervals_to_json, rows_to_json
from .rows import LabelledRows
from .tasks import Task
from .verdict import Verdict

__all__ = ["ClassChange", "Costs", "GenerationComparison", "PairedCell", "Side", "TuningCost"]


@dataclass(frozen=True)
class TuningCost:
    """What one fine-tuning took."""

    weights: str
    """hash of the weights that came out"""
    seconds: float
    """time of the run"""
    epochs: int
    """passes over its training images"""
    best_epoch: int
    """the one whose weights were kept"""
    images: int
    """images that training and early stopping saw"""
    trained_parameters: int
    """numbers trained, without the head's"""
    bytes: int
    """bytes of the weights' file; 0 where it is gone"""
    device: str
    """where it ran"""


@dataclass(frozen=True)
class Costs:
    """What the features of one side took, and take."""

    images: int
    """images with features, each forwarded once"""
    bytes: int
    """bytes of the features that are compared, as stored"""
    training_seconds: float
    """time of search, fit and scoring of all cells"""
    tunings: tuple[TuningCost, ...]
    """fine-tunings behind the backbone, the latest first"""


@dataclass(frozen=True)
class Side:
    """One of the two generations."""

    name: str
    """``SET@VERSION``"""
    provenance: Provenance
    """where its features came from"""
    tunings: tuple[Tuning, ...]
    """fine-tunings behind its backbone, the latest first; empty where it is as published"""
    winner: Cell
    """its cell with the best cross-validated score"""
    predictions: Predictions
    """the winner's outputs for the held-out rows"""
    intervals: Mapping[str, Interval | None]
    """95 % bootstrap intervals of the winner's held-out scores"""
    costs: Costs
    """what it took"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        found = self.provenance
        return {
            "name": self.name,
            "set": found.set_name,
            "version": found.version,
            "generation": found.generation,
            "architecture": found.contract.architecture,
            "weights": found.contract.weights,
            "tuned": bool(self.tunings),
            "winner": self.winner.to_json(),
            "winner_intervals": intervals_to_json(self.intervals),
            "costs": asdict(self.costs),
            "epochs": [dict(epoch) for epoch in self.tunings[0].epochs] if self.tunings else [],
        }


@dataclass(frozen=True)
class PairedCell:
    """One model on the layers of each side, searched apart on the same folds."""

    a: Cell
    """of the first side"""
    b: Cell
    """of the second side"""
    comparison: Comparison
    """on the held-out rows: the second side first, so that gaps are its scores minus the first side's"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {"a": self.a.to_json(), "b": self.b.to_json(), "comparison": comparison_to_json(self.comparison)}


@dataclass(frozen=True)
class ClassChange:
    """How one class, or label, fares on each side, by the sides' winners."""

    label: str
    """its name"""
    support: int
    """held-out images of it"""
    recall_a: float
    """part of them that the first side finds"""
    recall_b: float
    """part of them that the second side finds"""
    only_a: int
    """images that the first side alone finds"""
    only_b: int
    """images that the second side alone finds"""

    @property
    def change(self) -> float:
        """The second side's recall minus the first side's."""
        return self.recall_b - self.recall_a


@dataclass(frozen=True)
class GenerationComparison:
    """Outcome of ``compare_generations``."""

    a: Side
    """the first side, such as the frozen backbone"""
    b: Side
    """the second side, such as the fine-tuned one"""
    pairs: tuple[PairedCell, ...]
    """every model on every selection of layers, in the order asked for"""
    winners: PairedCell
    """each side's own winner by cross-validation, beside each other"""
    classes: tuple[ClassChange, ...]
    """by class or label, the largest loss first; empty where numbers are learned"""
    baseline: Any
    """``tasks.Scores`` of what is known without features"""
    verdict: Verdict
    """what the winners' held-out scores say"""
    rows: LabelledRows
    """the rows of both sides"""
    left_out: tuple[str, ...]
    """training images that are not on both sides alike"""
    metric: Metric
    """what settings and winners were chosen by"""
    folds: int
    """folds of the cross-validation"""
    repeats: int
    """divisions into folds"""
    seed: int
    """seed of folds, models and draws"""
    notes: tuple[str, ...]
    """what a reader should know"""

    @property
    def task(self) -> Task:
        """What was learned."""
        return self.rows.task

    @property
    def headline(self) -> str:
        """Score that the verdict is about."""
        return self.task.headlines[0]

    def to_json(self) -> dict[str, Any]:
        """Give what a caller prints or keeps, as plain JSON values."""
        return {
            "task": self.task.name,
            "verdict": self.verdict.to_json(),
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "winners": comparison_to_json(self.winners.comparison),
            "pairs": [pair.to_json() for pair in self.pairs],
            "classes": [{**asdict(change), "change": change.change} for change in self.classes],
            "baseline": self.baseline.to_json(),
            "rows": rows_to_json(self.rows),
            "left_out": list(self.left_out),
            "metric": self.metric,
            "folds": self.folds,
            "repeats": self.repeats,
            "seed": self.seed,
            "notes": list(self.notes),
        }


def comparison_to_json(found: Comparison) -> dict[str, Any]:
    """Give a comparison whose gaps are the second side's scores minus the first side's."""
    gaps = found.to_json()["gaps"]
    test = {"only_a": found.only_second, "only_b": found.only_first, "mcnemar_p": found.p_value}
    return {"n": found.n, **(test if found.p_value is not None else {}), "gaps": gaps}
