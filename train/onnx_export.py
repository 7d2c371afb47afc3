"""A bundle as an ONNX file: features in, the bundle's classes and probabilities out, checked before it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from icecore.store.durable import write_bytes
from numpy.typing import NDArray

from .bundle import Bundle
from .calibration_curves import scores_of
from .errors import ExportError, MissingExtraError
from .onnx_graph import Graph, add_calibration, add_model, add_steps, step_list
from .tasks import task_of

__all__ = ["OnnxExport", "export_onnx"]

TOLERANCE = 1e-5
"""Most difference of a probability, or of a prediction by its size, between the file and the bundle; beside what the
bundle's own single precision makes, which a steep temperature may enlarge."""
ROWS = 256
"""Random rows that both are asked for."""
OPSET, ML_OPSET, IR = 18, 3, 9
"""Versions of the operators and of the file, which runtimes of 2023 read."""


@dataclass(frozen=True)
class OnnxExport:
    """What was written."""

    path: Path
    """the file"""
    size: int
    """its bytes"""
    rows: int
    """rows on which it was held against the bundle"""
    difference: float
    """largest difference of a probability, or of a prediction by its size"""


def export_onnx(bundle: Bundle, out: Path | str, *, features: NDArray[np.float32] | None = None) -> OnnxExport:
    """Write a bundle as an ONNX file, and hold it against the bundle before it appears.

    The file takes ``features``, (n, D) float32, the columns of the bundle side by side. It gives ``label``, (n,) text,
    and ``probabilities``, (n, k) float32, in the order of the classes; of several labels ``labels``, (n, L) true or
    false, and their ``probabilities``; of a regression ``prediction``, (n,) double. Its metadata name the columns, the
    classes and the contract by which features must be made.

    Parameters
    ----------
    bundle
        As ``load_bundle`` gives it.
    out
        The file; replaced in one piece.
    features
        Real features, (m, D), to hold it against, beside random ones.

    Raises
    ------
    ExportError
        When the model has no form in ONNX, or the file would not give what the bundle gives.
    MissingExtraError
        When onnx or onnxruntime is not installed.
    """
    onnx = _require("onnx")
    _require("onnxruntime")
    try:
        model = _build(onnx, bundle)
    except ExportError as exc:
        raise ExportError(f"{bundle.path}: {exc}") from exc
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    X = _random_rows(bundle)
    if features is not None and len(features):
        X = np.vstack([X, np.asarray(features, np.float32)])
    difference = _check(bundle, data, X)
    write_bytes(Path(out), data)
    return OnnxExport(Path(out), len(data), len(X), difference)


def _require(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as exc:
        raise MissingExtraError("an export as ONNX", name, "onnx") from exc


def _build(onnx: Any, bundle: Bundle) -> Any:
    kinds, helper = onnx.TensorProto, onnx.helper
    _refuse_rounded_trees(bundle)
    graph = Graph()
    x = add_steps(graph, "features", bundle.steps)
    if bundle.curves is not None:
        found = add_calibration(graph, x, bundle.model, bundle.curves)
    else:
        found = add_model(graph, x, bundle.model)
    k = len(bundle.classes)
    outputs: dict[str, tuple[str, int, list[Any]]]
    if bundle.task == "regression":
        outputs = {"prediction": (graph.add("Squeeze", found, np.array([1])), kinds.DOUBLE, ["n"])}
    else:
        outputs = {"probabilities": (graph.add("Cast", found, to=kinds.FLOAT), kinds.FLOAT, ["n", k])}
        if bundle.task == "classification":
            names = np.array([name.encode("utf-8", "surrogateescape") for name in bundle.classes], dtype=object)
            called = graph.add("Gather", names, graph.add("ArgMax", found, axis=1, keepdims=0), axis=0)
            outputs = {"label": (called, kinds.STRING, ["n"]), **outputs}
        else:
            outputs = {"labels": (graph.add("Greater", found, 0.5), kinds.BOOL, ["n", k]), **outputs}
    nodes = [*graph.nodes, *(helper.make_node("Identity", [value], [name]) for name, (value, _, _) in outputs.items())]
    made = helper.make_graph(
        nodes,
        "icecore",
        [helper.make_tensor_value_info("features", kinds.FLOAT, ["n", bundle.width])],
        [helper.make_tensor_value_info(name, kind, shape) for name, (_, kind, shape) in outputs.items()],
        graph.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR, producer_name="icecore")
    helper.set_model_props(model, _facts(bundle))
    return model


def _refuse_rounded_trees(bundle: Bundle) -> None:
    """Thresholds of trees are values of training rows: what a sum of another order rounds falls on their other side."""
    models = getattr(bundle.model, "models", [bundle.model])
    sums = [type(step).__name__ for step in step_list(bundle.steps) if type(step).__name__ in ("PCA", "Normalizer")]
    if sums and any(type(model).__name__ == "XGBoostModel" for model in models):
        raise ExportError(
            f"trees after {' and '.join(sums)} would not give the same in a runtime that sums in another order; "
            "train XGBoost without L2 norm and components"
        )


def _facts(bundle: Bundle) -> dict[str, str]:
    columns = [{"name": column.name, "width": column.width} for column in bundle.columns]
    return {
        "icecore.bundle": str(bundle.card.get("id", bundle.path.name)),
        "icecore.card_sha256": str(bundle.card["card_sha256"]),
        "icecore.task": bundle.task,
        "icecore.classes": json.dumps(list(bundle.classes)),
        "icecore.columns": json.dumps(columns),
        "icecore.contract": json.dumps(bundle.contract.to_json()),
    }


def _random_rows(bundle: Bundle) -> NDArray[np.float32]:
    """Draw rows as the scaler has met them, where there is one, and others that are nothing like them."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, bundle.width))
    steps = step_list(bundle.steps)
    scaler = steps[0] if steps and type(steps[0]).__name__ == "StandardScaler" else None
    usual = X if scaler is None else X * scaler.scale_ + scaler.mean_
    others = np.maximum(0, 3 * X[: ROWS // 4])
    return np.vstack([usual, others, np.zeros((1, bundle.width))]).astype(np.float32)


def _check(bundle: Bundle, data: bytes, X: NDArray[np.float32]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"features": X}), strict=True))
    expected, exact = bundle.outputs(X), _in_doubles(bundle, X)
    if not task_of(bundle.task).has_probabilities:
        size = np.maximum(np.abs(expected), np.abs(expected).mean())
        difference, own = np.abs(found["prediction"] - expected) / size, np.abs(exact - expected) / size
        same = np.ones(len(X), dtype=bool)
    else:
        difference = np.abs(found["probabilities"] - expected).max(axis=1)
        own = np.abs(exact - expected).max(axis=1)
        if bundle.task == "classification":
            best = np.sort(expected, axis=1)
            tie = best[:, -1] - best[:, -2] <= 2 * (TOLERANCE + own)  # there rounding may choose
            same = tie | (np.asarray(bundle.calls(expected), dtype=object) == found["label"])
        else:
            tie = np.abs(expected - 0.5) <= TOLERANCE + own[:, None]
            same = (tie | ((expected > 0.5) == found["labels"])).all(axis=1)
    worst = float(difference.max())
    if not ((difference <= TOLERANCE + own).all() and same.all()):
        raise ExportError(
            f"{bundle.path}: the ONNX file would not give what the bundle gives: of {len(X):,} rows "
            f"{int((~same).sum()):,} are called otherwise, and numbers differ by {worst:.2g} at most, where "
            f"{TOLERANCE:g} is allowed; nothing was written"
        )
    return worst


def _in_doubles(bundle: Bundle, X: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give the bundle's numbers as they would be if the model itself were given doubles."""
    A = np.asarray(bundle.steps.transform(X), np.float64)
    if bundle.curves is not None:
        return bundle.curves.proba(scores_of(bundle.model, A))
    return task_of(bundle.task).outputs(bundle.model, cast("Any", A))
