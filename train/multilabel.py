"""The task of labels: each image has any number of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration import Calibrated, fit_temperature, scaled_softmax
from .errors import DatasetError, LabelError, first_few
from .folds import Fold
from .label_models import LabelModels
from .labels import Labels
from .labels_csv import refuse_rows
from .models import BuildOptions, ModelSpec
from .multilabel_folds import make_label_folds
from .multilabel_metrics import MULTILABEL_METRICS, MultilabelEvaluation, WeightedLabels, evaluate_labels, label_score
from .multilabel_search import LABELLERS
from .resampling import Disagreement
from .tasks import Targets, TaskName

__all__ = ["TASK", "Multilabel"]

Floats = NDArray[np.floating[Any]]
WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}
"""What a label's column may say, in any case."""


class Multilabel:
    """Each image has some of several labels; see ``tasks.Task``."""

    name: TaskName = "multilabel"
    models: Mapping[str, ModelSpec] = LABELLERS
    metrics: tuple[str, ...] = MULTILABEL_METRICS
    headlines: tuple[str, ...] = MULTILABEL_METRICS
    baseline_title = "label shares"
    weighs_classes = True
    has_probabilities = True
    has_curves = False

    def quick(self, n: int) -> tuple[str, ...]:
        """Give ridge and the nearest mean of each label's two sides."""
        return ("ridge", "nearest_mean")

    def targets(self, labels: Labels, ids: Sequence[str]) -> Targets:
        """Read the columns of labels."""
        if not labels.columns:
            raise LabelError(
                f"{labels.source}: folders give one class an image, and labels need a column each; "
                'give a CSV and name its columns (labels.csv, labels.columns = ["red", "round"])'
            )
        found = {
            name: {i: WORDS.get(text.lower()) for i, text in texts.items()} for name, texts in labels.columns.items()
        }
        refuse_rows(
            labels.source,
            [
                f"line {line}: {name} of {image!r} must be 0 or 1, true or false, yes or no, found "
                f"{labels.columns[name][image]!r}"
                for image, line in labels.line.items()
                for name, values in found.items()
                if values[image] is None
            ],
        )
        y = np.array([[values[image] for values in found.values()] for image in ids], dtype=np.int64)
        return Targets(y, tuple(found))

    def check(self, targets: Targets, train: NDArray[np.bool_], source: str) -> None:
        """Refuse labels that every training row has, or none."""
        shares: list[float] = targets.y[train].mean(axis=0).tolist()
        for name, share in zip(targets.names, shares, strict=True):
            if share in (0, 1):
                raise DatasetError(
                    f"{source}: {'every' if share else 'no'} training image has the label {name!r}, so nothing can be "
                    "learned of it; add images, or leave the label out (labels.columns)"
                )

    def notes(self, targets: Targets, train: NDArray[np.bool_]) -> tuple[str, ...]:
        """Name labels without a held-out row that has them."""
        counts = targets.y[~train].sum(axis=0).tolist()
        absent = [name for name, count in zip(targets.names, counts, strict=True) if not count]
        return (f"no held-out image has the label {first_few(absent)}: the scores say little of it",) if absent else ()

    def make_folds(
        self, y: NDArray[Any], *, names: Sequence[str], folds: int, seed: int, groups: Sequence[str] | None
    ) -> tuple[Fold, ...]:
        """Divide rows by their rarest labels."""
        return make_label_folds(y, names=names, folds=folds, seed=seed, groups=groups)

    def strata(self, y: NDArray[Any]) -> NDArray[np.int64]:
        """Give the rarest label that a row has, or one more for none."""
        order = np.argsort(y.sum(axis=0), kind="stable")
        return np.asarray(np.where(y.any(axis=1), order[y[:, order].argmax(axis=1)], y.shape[1]))

    def responses(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Give the indicator of each label."""
        return y.astype(np.float64)

    def extent(self, y: NDArray[Any], names: Sequence[str]) -> str:
        """Count the labels."""
        return f"{len(names)} labels"

    def is_learnable(self, y: NDArray[Any]) -> bool:
        """Say whether each label is had by some rows and not by others."""
        return bool((y.any(axis=0) & ~y.all(axis=0)).all())

    def fold_scores(
        self,
        spec: ModelSpec,
        scores: NDArray[np.float32],
        y: NDArray[Any],
        folds: Sequence[Fold],
        metric: str,
        options: BuildOptions,
    ) -> NDArray[np.float64]:
        """Score the called labels, or the order of the scores; no temperature changes either."""
        return np.array([label_score(metric, y[test], scores[test] > 0, scores[test]) for _, test in folds])

    def calibrate(self, model: Any, scores: NDArray[np.float32], y: NDArray[Any]) -> LabelModels:
        """Calibrate each label by a temperature of its own."""
        betas = [fit_temperature(_margin(margin), has) for margin, has in zip(scores.T, y.T, strict=True)]
        return LabelModels(tuple(Calibrated(one, beta) for one, beta in zip(model.models, betas, strict=True)))

    def out_of_fold(
        self, spec: ModelSpec, scores: NDArray[np.float32], y: NDArray[Any], options: BuildOptions
    ) -> NDArray[np.float64]:
        """Give the probability of each label."""
        found = []
        for margin, has in zip(scores.T, y.T, strict=True):
            beta = 0.5 if spec.has_probabilities else fit_temperature(_margin(margin), has)
            found.append(scaled_softmax(_margin(margin), beta)[:, 1])  # a margin counts twice there
        return np.column_stack(found)

    def outputs(self, model: Any, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give probabilities, (n, L)."""
        return np.asarray(model.predict_proba(X), dtype=np.float64)

    def calls(self, outputs: Floats, names: Sequence[str]) -> list[Any]:
        """Give the labels above one half, in their order."""
        return [[name for name, p in zip(names, row, strict=True) if p > 0.5] for row in outputs.tolist()]

    def evaluate(self, y: NDArray[Any], outputs: Floats, names: Sequence[str]) -> MultilabelEvaluation:
        """Score probabilities."""
        return evaluate_labels(y, outputs, names)

    def baseline(self, y_train: NDArray[Any], y: NDArray[Any], names: Sequence[str]) -> MultilabelEvaluation:
        """Score the training rows' share of each label."""
        return evaluate_labels(y, np.tile(y_train.mean(axis=0), (len(y), 1)), names)

    def resampled(self, y: NDArray[Any], outputs: Floats) -> WeightedLabels:
        """Give the headline scores under any weights of the rows."""
        return WeightedLabels(y, outputs)

    def disagreement(self, y: NDArray[Any], first: Floats, second: Floats) -> Disagreement | None:
        """Give nothing: a row may be partly right."""
        return None

    def doubts(self, outputs: Floats, y: NDArray[Any], ids: Sequence[str], names: Sequence[str]) -> tuple[()]:
        """Give nothing: confident learning is about classes."""
        return ()

    def small(self, y: NDArray[Any], names: Sequence[str], folds: int) -> tuple[tuple[str, int], ...]:
        """Count the rows that have each label."""
        counts = zip(names, y.sum(axis=0).tolist(), strict=True)
        return tuple((name, count) for name, count in counts if count < 2 * folds)


def _margin(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    return scores.astype(np.float64)


TASK = Multilabel()
