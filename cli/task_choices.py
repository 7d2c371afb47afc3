"""Models and metrics of each task, known here without loading a library that trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

__all__ = ["TASK_CHOICES", "AnyModelName", "MetricName", "ModelName", "check_choices"]

ModelName = Literal["logistic_regression", "linear_svm", "ridge", "nearest_mean", "knn", "rbf_svm", "mlp", "xgboost"]

AnyModelName = Literal[ModelName, "linear_svr", "rbf_svr"]
_ClassMetric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
_LabelMetric = Literal["macro_f1", "micro_f1", "subset_accuracy", "hamming_loss", "mean_average_precision"]
_NumberMetric = Literal["rmse", "mae", "r2"]
MetricName = Literal[_ClassMetric, _LabelMetric, _NumberMetric]
TASK_CHOICES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "classification": (get_args(ModelName), get_args(_ClassMetric)),
    "multilabel": (get_args(ModelName), get_args(_LabelMetric)),
    "regression": (("ridge", "linear_svr", "knn", "rbf_svr", "xgboost"), get_args(_NumberMetric)),
}
"""Models and metrics of each task."""


def check_choices(task: str, *, models: Iterable[str], grids: Iterable[str], metric: str | None) -> None:
    """Refuse a model or metric that a task does not have, naming those that it has."""
    known, metrics = TASK_CHOICES[task]
    named = [*(("models", name) for name in models), *(("grids", name) for name in grids)]
    for key, name in named:
        if name not in known:
            raise ValueError(f"{key}: {name!r} is not for {task}, which has {', '.join(known)}")
    if metric is not None and metric not in metrics:
        raise ValueError(f"metric: {metric!r} is not for {task}, which has {', '.join(metrics)}")
