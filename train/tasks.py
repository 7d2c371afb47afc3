"""What a training run learns: classes, yes-or-no labels, or a number. Each is one object with all that differs.

The rest of the room asks the task and never looks at its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from .errors import UnknownModelError

if TYPE_CHECKING:
    from .doubts import Doubt
    from .folds import Fold
    from .labels import Labels
    from .models import BuildOptions, ModelSpec
    from .resampling import Disagreement, Resampled

__all__ = ["TASKS", "Scores", "Targets", "Task", "TaskName", "task_of"]

TaskName = Literal["classification", "multilabel", "regression"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""Every task; each is the object ``TASK`` of the module of its name."""

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Targets:
    """What a model is to learn of some rows."""

    y: NDArray[Any]
    """(n,) int64 positions of classes; (n, L) int64, 1 where a row has a label; or (n,) float64 numbers"""
    names: tuple[str, ...]
    """names of the classes, or of the labels, or of the one number"""


class Scores(Protocol):
    """All scores of some outputs on some rows; each metric of the task is an attribute."""

    @property
    def n(self) -> int:
        """Rows."""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as plain JSON values."""


class Task(Protocol):
    """What differs between tasks.

    ``outputs`` are what models give for rows, and what everything is scored by: (n, k) probabilities of the classes,
    (n, L) probabilities of the labels, or (n,) numbers in the unit of the targets.
    """

    @property
    def name(self) -> TaskName:
        """What it is called in configs and cards."""

    @property
    def models(self) -> Mapping[str, ModelSpec]:
        """Its models by name, the simplest first: it wins ties."""

    def quick(self, n: int) -> tuple[str, ...]:
        """Give the models by which a sweep ranks layers before the costly ones run, cheap on n training rows."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What a model may be chosen by, the default first."""

    @property
    def headlines(self) -> tuple[str, ...]:
        """Scores that get an interval; the first one is told in one line."""

    @property
    def baseline_title(self) -> str:
        """What is known without any feature, in words."""

    @property
    def weighs_classes(self) -> bool:
        """Whether it has classes that can be weighed alike."""

    @property
    def has_probabilities(self) -> bool:
        """Whether its outputs are probabilities."""

    @property
    def has_curves(self) -> bool:
        """Whether its probabilities may come from calibration curves."""

    def targets(self, labels: Labels, ids: Sequence[str]) -> Targets:
        """Turn the labels of these images into targets; raises LabelError naming the lines that do not fit."""

    def check(self, targets: Targets, train: NDArray[np.bool_], source: str) -> None:
        """Raise DatasetError where nothing can be learned from the training rows."""

    def notes(self, targets: Targets, train: NDArray[np.bool_]) -> tuple[str, ...]:
        """Say what scores of the held-out rows cannot tell."""

    def make_folds(
        self, y: NDArray[Any], *, names: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None
    ) -> tuple[Fold, ...]:
        """Divide training rows into folds that resemble each other; raises FoldError."""

    def strata(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Give a number to each row, (n,): a part of the rows keeps some of each number."""

    def responses(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Give what least squares are fitted to, (n, k), free of the unit of the targets."""

    def extent(self, y: NDArray[Any], names: Sequence[str]) -> str:
        """Say in short what there is to learn."""

    def is_learnable(self, y: NDArray[Any]) -> bool:
        """Say whether models can be fitted to targets that fewer rows have."""

    def fold_scores(
        self,
        spec: ModelSpec,
        scores: NDArray[Any],
        y: NDArray[Any],
        folds: Sequence[Fold],
        metric: str,
        options: BuildOptions,
    ) -> NDArray[np.float64]:
        """Score the out-of-fold scores of one setting on each fold, (folds,), larger is better."""

    def calibrate(self, model: Any, scores: NDArray[Any], y: NDArray[Any]) -> Any:
        """Give a fitted model that has scores only with probabilities, by its out-of-fold scores (n, columns)."""

    def out_of_fold(
        self, spec: ModelSpec, scores: NDArray[Any], y: NDArray[Any], options: BuildOptions
    ) -> NDArray[np.float64]:
        """Turn out-of-fold scores into outputs, as the calibrated model does."""

    def outputs(self, model: Any, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give a finished model's outputs for prepared features."""

    def calls(self, outputs: Floats, names: Sequence[str]) -> list[Any]:
        """Give what each row is called: a class, a list of labels, or a number."""

    def evaluate(self, y: NDArray[Any], outputs: Floats, names: Sequence[str]) -> Any:
        """Score outputs; the result is ``Scores``."""

    def baseline(self, y_train: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> Any:
        """Score what is known without any feature; the result is ``Scores``."""

    def resampled(self, y: NDArray[Any], outputs: Floats) -> Resampled:
        """Give the headline scores under any weights of the rows."""

    def disagreement(self, y: NDArray[Any], first: Floats, second: Floats) -> Disagreement | None:
        """Test how often each of two models alone is right; None where rows are not right or wrong."""

    def doubts(self, outputs: Floats, y: NDArray[Any], ids: Sequence[str], names: Sequence[str]) -> tuple[Doubt, ...]:
        """Give training rows whose targets their out-of-fold outputs speak against, the surest first."""

    def small(self, y: NDArray[Any], names: Sequence[str], folds: int) -> tuple[tuple[str, int], ...]:
        """Give classes or labels with fewer than two training rows a fold, and how many they have."""


def task_of(name: str) -> Task:
    """Give the task of this name.

    Raises
    ------
    UnknownModelError
        When there is none; the message lists them.
    """
    if name not in TASKS:
        raise UnknownModelError("task", name, TASKS)
    task: Task = importlib.import_module(f"{__package__}.{name}").TASK
    return task
