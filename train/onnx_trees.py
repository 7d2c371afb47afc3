"""The trees of an XGBoost booster as the attributes of ONNX's tree ensemble."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ExportError

__all__ = ["Trees", "tree_attributes"]

OBJECTIVES = ("multi:softprob", "binary:logistic", "reg:squarederror")
ROOT_CHILDREN_NONE = -1


@dataclass(frozen=True)
class Trees:
    """What an ensemble is made of."""

    attributes: dict[str, Any]
    """of ``TreeEnsembleRegressor``: sums of leaves by class, or of one target"""
    base: NDArray[np.float64]
    """(k,) or (1,): what the sums begin from"""
    objective: str
    """what the margins mean"""


def tree_attributes(booster: Any) -> Trees:
    """Read a booster's JSON.

    Raises
    ------
    ExportError
        When it has another objective than ours, or splits of categories.
    """
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = learner["objective"]["name"]
    if objective not in OBJECTIVES:
        raise ExportError(f"XGBoost: objective {objective!r} has no form in ONNX here; {', '.join(OBJECTIVES)} have")
    model = learner["gradient_booster"]["model"]
    if any(any(tree["split_type"]) for tree in model["trees"]):
        raise ExportError("XGBoost: a tree that splits by categories has no form in ONNX here")
    targets = max(1, int(learner["learner_model_param"]["num_class"]))
    keys = ("nodeids", "treeids", "featureids", "values", "modes", "truenodeids", "falsenodeids",
            "missing_value_tracks_true")  # fmt: skip
    nodes: dict[str, list[Any]] = {f"nodes_{key}": [] for key in keys}
    leaves: dict[str, list[Any]] = {f"target_{key}": [] for key in ("treeids", "nodeids", "ids", "weights")}
    for number, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        _add_tree(nodes, leaves, tree, number, target)
    base = np.atleast_1d(np.float64(json.loads(_as_list(learner["learner_model_param"]["base_score"]))))
    if objective == "binary:logistic":
        base = np.log(base / (1 - base))
    return Trees({**nodes, **leaves, "n_targets": targets, "aggregate_function": "SUM"}, base, objective)


def _add_tree(nodes: dict[str, list[Any]], leaves: dict[str, list[Any]], tree: Any, number: int, target: int) -> None:
    rows = zip(
        *(tree["left_children"], tree["right_children"], tree["split_indices"]),
        *(tree["split_conditions"], tree["default_left"]),
        strict=True,
    )
    for node, (left, right, feature, value, default_left) in enumerate(rows):
        is_leaf = left == ROOT_CHILDREN_NONE
        row = (node, number, feature, 0.0 if is_leaf else float(value), "LEAF" if is_leaf else "BRANCH_LT",
               max(left, 0), max(right, 0), int(default_left))  # fmt: skip
        for key, cell in zip(nodes, row, strict=True):
            nodes[key].append(cell)
        if is_leaf:
            for key, cell in zip(leaves, (number, node, target, float(value)), strict=True):
                leaves[key].append(cell)


def _as_list(text: str) -> str:
    """Give a base score as JSON, which older releases write as a bare number."""
    return text if text.startswith("[") else f"[{text}]"
