"""The task of numbers: each image has one, in a unit of its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .doubts import Outlier, find_outliers
from .errors import DatasetError, LabelError
from .folds import Fold
from .labels import Labels
from .labels_csv import refuse_rows
from .models import BuildOptions, ModelSpec
from .regression_folds import make_number_folds, quantile_bins
from .regression_metrics import REGRESSION_METRICS, RegressionEvaluation, WeightedErrors, error_score, evaluate_numbers
from .regression_models import REGRESSORS
from .resampling import Disagreement
from .tasks import Targets, TaskName

__all__ = ["TASK", "Regression"]

Floats = NDArray[np.floating[Any]]
MOST_NEIGHBOURS = 10_000
"""Training rows up to which nearest neighbours rank layers beside ridge."""
STRATA = 5
"""Bins of the targets that a learning curve's parts keep some of."""


class Regression:
    """Each image has one number; see ``tasks.Task``."""

    name: TaskName = "regression"
    models: Mapping[str, ModelSpec] = REGRESSORS
    metrics: tuple[str, ...] = REGRESSION_METRICS
    headlines: tuple[str, ...] = REGRESSION_METRICS
    baseline_title = "training mean"
    weighs_classes = False
    has_probabilities = False
    has_curves = False

    def quick(self, n: int) -> tuple[str, ...]:
        """Give ridge, and nearest neighbours while their time, which grows with the square of the rows, is short."""
        return ("ridge", "knn") if n <= MOST_NEIGHBOURS else ("ridge",)

    def targets(self, labels: Labels, ids: Sequence[str]) -> Targets:
        """Read the numbers of the one column of labels."""
        if len(labels.columns) != 1:
            found = f"{len(labels.columns)} columns" if labels.columns else "labels that are folder names"
            raise LabelError(
                f"{labels.source}: a regression takes one column of numbers, found {found}; give a CSV and name its "
                'column (labels.csv, labels.columns = ["age"])'
            )
        [(name, texts)] = labels.columns.items()
        numbers = {image: _number(text) for image, text in texts.items()}
        refuse_rows(
            labels.source,
            [
                f"line {labels.line[image]}: {name} of {image!r} must be a finite number, found {texts[image]!r}"
                for image, number in numbers.items()
                if not math.isfinite(number)
            ],
        )
        return Targets(np.array([numbers[image] for image in ids], dtype=np.float64), (name,))

    def check(self, targets: Targets, train: NDArray[np.bool_], source: str) -> None:
        """Refuse training rows that all have the same number."""
        y = targets.y[train]
        if (y == y[0]).all():
            raise DatasetError(
                f"{source}: every training image has {targets.names[0]} {y[0]:g}, so nothing can be learned from it; "
                "add images with other numbers, or name another column"
            )

    def notes(self, targets: Targets, train: NDArray[np.bool_]) -> tuple[str, ...]:
        """Tell of held-out rows beyond the range of the training rows."""
        seen, held_out = targets.y[train], targets.y[~train]
        beyond = int(((held_out < seen.min()) | (held_out > seen.max())).sum())
        what = f"held-out images with {targets.names[0]} beyond the training images' ({seen.min():g} to {seen.max():g})"
        return (f"{what}: {beyond:,}",) if beyond else ()

    def make_folds(
        self, y: NDArray[Any], *, names: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None
    ) -> tuple[Fold, ...]:
        """Divide rows by quantile bins."""
        return make_number_folds(y, name=names[0], folds=folds, seed=seed, groups=groups)

    def strata(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Give quantile bins."""
        return quantile_bins(y, STRATA)

    def responses(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Give the standardised numbers, in one column."""
        return np.asarray((y - y.mean()) / y.std())[:, None]

    def extent(self, y: NDArray[Any], names: Sequence[str]) -> str:
        """Give the range of the numbers."""
        return f"{names[0]} from {y.min():g} to {y.max():g}"

    def is_learnable(self, y: NDArray[Any]) -> bool:
        """Say whether the numbers differ."""
        return bool((y != y[0]).any())

    def fold_scores(
        self,
        spec: ModelSpec,
        scores: NDArray[Any],
        y: NDArray[Any],
        folds: Sequence[Fold],
        metric: str,
        options: BuildOptions,
    ) -> NDArray[np.float64]:
        """Score the predictions of each fold."""
        predicted = scores[:, 0].astype(np.float64)
        return np.array([error_score(metric, y[test], predicted[test]) for _, test in folds])

    def calibrate(self, model: Any, scores: NDArray[Any], y: NDArray[Any]) -> Any:
        """Give the model as it is."""
        return model

    def out_of_fold(
        self, spec: ModelSpec, scores: NDArray[Any], y: NDArray[Any], options: BuildOptions
    ) -> NDArray[np.float64]:
        """Give the predictions."""
        return scores[:, 0].astype(np.float64)

    def outputs(self, model: Any, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give predictions, (n,), in the unit of the targets."""
        return np.asarray(model.predict(X), dtype=np.float64)

    def calls(self, outputs: Floats, names: Sequence[str]) -> list[Any]:
        """Give the predictions as plain numbers."""
        return [float(value) for value in outputs]

    def evaluate(self, y: NDArray[Any], outputs: Floats, names: Sequence[str]) -> RegressionEvaluation:
        """Score predictions."""
        return evaluate_numbers(y, outputs)

    def baseline(self, y_train: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> RegressionEvaluation:
        """Score the mean of the training rows."""
        return evaluate_numbers(y, np.full(len(y), y_train.mean()))

    def resampled(self, y: NDArray[Any], outputs: Floats) -> WeightedErrors:
        """Give the scores under any weights of the rows."""
        return WeightedErrors(y, outputs)

    def disagreement(self, y: NDArray[Any], first: Floats, second: Floats) -> Disagreement | None:
        """Give nothing: a number is more or less right."""
        return None

    def doubts(self, outputs: Floats, y: NDArray[Any], ids: Sequence[str], names: Sequence[str]) -> tuple[Outlier, ...]:
        """Find numbers that are far from what models that never saw them predict."""
        return find_outliers(outputs, y, ids)

    def small(self, y: NDArray[Any], names: Sequence[str], folds: int) -> tuple[tuple[str, int], ...]:
        """Give nothing: there are no classes."""
        return ()


def _number(text: str) -> float:
    """Read a decimal number; Python would also take 1_000 and the digits of other scripts."""
    return float(text) if _DECIMAL.fullmatch(text) else math.nan


_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


TASK = Regression()
