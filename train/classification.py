"""The task of classes: each image has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibrated, fit_temperature
from .doubts import Suspect, find_suspects
from .errors import DatasetError, LabelError, first_few
from .folds import Fold, make_folds
from .labels import Labels
from .metrics import METRICS, ClassMetric, Evaluation, as_probabilities, evaluate, majority_baseline
from .models import MODELS, BuildOptions, ModelSpec
from .resampling import HEADLINES, Disagreement, WeightedClasses, disagreement_of
from .scoring import as_decided, class_scores, probabilities_by
from .tasks import Targets, TaskName

__all__ = ["TASK", "Classification"]

Floats = NDArray[np.floating[Any]]


class Classification:
    """Each image has one of several classes; see ``tasks.Task``."""

    name: TaskName = "classification"
    models: Mapping[str, ModelSpec] = MODELS
    metrics: tuple[str, ...] = METRICS
    headlines: tuple[str, ...] = HEADLINES
    baseline_title = "majority class"
    weighs_classes = True
    has_probabilities = True
    has_curves = True

    def quick(self, n: int) -> tuple[str, ...]:
        """Give ridge and the nearest class mean: each takes one pass of sums."""
        return ("ridge", "nearest_mean")

    def targets(self, labels: Labels, ids: Sequence[str]) -> Targets:
        """Give classes as positions among their sorted names."""
        if len(labels.columns) > 1:
            raise LabelError(
                f"{labels.source}: {len(labels.columns)} columns of labels, where classes have one; name one, or set "
                'task = "multilabel"'
            )
        names = tuple(sorted({labels.label[image] for image in ids}))
        position = {label: i for i, label in enumerate(names)}
        return Targets(np.array([position[labels.label[image]] for image in ids], dtype=np.int64), names)

    def check(self, targets: Targets, train: NDArray[np.bool_], source: str) -> None:
        """Refuse fewer than two classes, and classes without a training row."""
        names = targets.names
        if len(names) < 2:
            raise DatasetError(f"{source}: all images have the label {names[0]!r}; a classifier needs two or more")
        untrained = [label for i, label in enumerate(names) if not (train & (targets.y == i)).any()]
        if untrained:
            raise DatasetError(
                f"{source}: class {first_few(untrained)} has held-out rows but no training row; "
                "add some, move some to the training side, or remove the class"
            )

    def notes(self, targets: Targets, train: NDArray[np.bool_]) -> tuple[str, ...]:
        """Name classes without a held-out row."""
        present = set(np.unique(targets.y[~train]).tolist())
        absent = [label for i, label in enumerate(targets.names) if i not in present]
        return (f"no held-out image of class {first_few(absent)}: the scores say nothing about it",) if absent else ()

    def make_folds(
        self, y: NDArray[Any], *, names: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None
    ) -> tuple[Fold, ...]:
        """Divide rows class by class."""
        return make_folds(y, classes=names, folds=folds, seed=seed, groups=groups)

    def strata(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Give the classes."""
        return y

    def responses(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Give the indicator of each class."""
        return np.asarray(y[:, None] == np.arange(int(y.max()) + 1), dtype=np.float64)

    def extent(self, y: NDArray[Any], names: Sequence[str]) -> str:
        """Count the classes."""
        return f"{len(names)} classes"

    def is_learnable(self, y: NDArray[Any]) -> bool:
        """Say yes: parts keep rows of every class."""
        return True

    def fold_scores(
        self,
        spec: ModelSpec,
        scores: NDArray[Any],
        y: NDArray[Any],
        folds: Sequence[Fold],
        metric: str,
        options: BuildOptions,
    ) -> NDArray[np.float64]:
        """Score the called classes, or probabilities by what the other folds' scores tell."""
        return class_scores(spec, scores, y, folds, cast("ClassMetric", metric), options)

    def calibrate(self, model: Any, scores: NDArray[Any], y: NDArray[Any]) -> Calibrated:
        """Calibrate all classes by one temperature."""
        return Calibrated(model, fit_temperature(as_decided(scores), y))

    def out_of_fold(
        self, spec: ModelSpec, scores: NDArray[Any], y: NDArray[Any], options: BuildOptions
    ) -> NDArray[np.float64]:
        """Give probabilities, (n, k)."""
        return probabilities_by(spec, scores, y, options)(scores)

    def outputs(self, model: Any, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give probabilities, (n, k)."""
        return as_probabilities(model.predict_proba(X))

    def calls(self, outputs: Floats, names: Sequence[str]) -> list[Any]:
        """Give the class of the largest probability, the first one on ties."""
        return [names[i] for i in outputs.argmax(axis=1)]

    def evaluate(self, y: NDArray[Any], outputs: Floats, names: Sequence[str]) -> Evaluation:
        """Score probabilities."""
        return evaluate(y, outputs, names)

    def baseline(self, y_train: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> Evaluation:
        """Score the training rows' class shares."""
        return majority_baseline(y_train, y, names)

    def resampled(self, y: NDArray[Any], outputs: Floats) -> WeightedClasses:
        """Give the headline scores under any weights of the rows."""
        return WeightedClasses(y, outputs)

    def disagreement(self, y: NDArray[Any], first: Floats, second: Floats) -> Disagreement | None:
        """Count rows that one model alone calls right."""
        return disagreement_of(y, first, second)

    def doubts(self, outputs: Floats, y: NDArray[Any], ids: Sequence[str], names: Sequence[str]) -> tuple[Suspect, ...]:
        """Find labels that are likely wrong."""
        return find_suspects(outputs, y, ids, names)

    def small(self, y: NDArray[Any], names: Sequence[str], folds: int) -> tuple[tuple[str, int], ...]:
        """Count the rows of each class."""
        counts = np.bincount(y, minlength=len(names)).tolist()
        return tuple((label, count) for label, count in zip(names, counts, strict=True) if count < 2 * folds)


TASK = Classification()
