"""Fitted models as ONNX nodes: preprocessing, linear models, kernel machines, networks, trees, calibration.

Preprocessing rounds to single precision after each step, as scikit-learn does, so that trees meet the same side of
their thresholds; models are computed in double precision, so that no order of sums shows. Operators are those of opset
18 and of ``ai.onnx.ml`` 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from .errors import ExportError
from .onnx_trees import tree_attributes

__all__ = ["Graph", "add_calibration", "add_model", "add_steps", "step_list"]

_TINY = float(np.finfo(np.float32).tiny)


class Graph:
    """Nodes and constants, added one after the other; values are named by what gives them."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any) -> str:
        """Add a constant; a number as a double."""
        from onnx import numpy_helper

        array = np.asarray(value)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Add a node of one output; inputs are names, or numbers and arrays that become constants."""
        from onnx import helper

        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def linear(self, x: str, coef: Any, intercept: Any) -> str:
        """Give ``x @ coef.T + intercept``."""
        return self.add("Add", self.add("MatMul", x, np.float64(coef).T), np.float64(intercept))

    def cast(self, x: str, kind: str) -> str:
        """Give ``x`` as ``FLOAT`` or ``DOUBLE``."""
        from onnx import TensorProto

        return self.add("Cast", x, to=getattr(TensorProto, kind))

    def columns(self, parts: Sequence[str]) -> str:
        """Put columns side by side."""
        return self.add("Concat", *parts, axis=1)

    def column(self, x: str, at: int) -> str:
        """Give one column, (n, 1)."""
        return self.add("Gather", x, np.array([at]), axis=1)


def add_steps(graph: Graph, x: str, steps: Any) -> str:
    """Add fitted preprocessing, a pipeline of our steps or one of them: from single precision to doubles."""
    for step in step_list(steps):
        x = _STEPS[_kind(step, _STEPS)](graph, x, step)
    return graph.cast(x, "DOUBLE")


def step_list(steps: Any) -> list[Any]:
    """Give the steps of a pipeline; of one step, it alone."""
    return [step for _, step in steps.steps] if hasattr(steps, "steps") else [steps]


def add_model(graph: Graph, x: str, model: Any) -> str:
    """Add a fitted model: probabilities (n, k), of several labels (n, L), or the numbers (n, 1) of a regression.

    Raises
    ------
    ExportError
        When there is no form of it in ONNX; names those that there are.
    """
    return _MODELS[_kind(model, _MODELS)](graph, x, model)


def add_calibration(graph: Graph, x: str, model: Any, curves: Any) -> str:
    """Add a model and the curves that make probabilities (n, k) of its scores."""
    if hasattr(model, "decision_function"):
        scores = _scores(graph, x, model)
    else:
        scores = graph.add("Log", graph.add("Max", add_model(graph, x, model), _TINY))
        if len(curves.curves) == 1:
            scores = graph.add("Sub", graph.column(scores, 1), graph.column(scores, 0))
    if curves.are_logits and len(curves.curves) > 1:
        scores = graph.add("LogSoftmax", scores, axis=1)
    found = [_curve(graph, graph.column(scores, at), curve) for at, curve in enumerate(curves.curves)]
    if len(found) == 1:
        return graph.columns([graph.add("Sub", 1.0, found[0]), found[0]])
    joined = graph.columns(found)
    sums = graph.add("ReduceSum", joined, np.array([1]), keepdims=1)
    share = graph.add("Div", joined, graph.add("Where", graph.add("Equal", sums, 0.0), 1.0, sums))
    return graph.add("Where", graph.add("Equal", sums, 0.0), 1.0 / len(found), share)


def _kind(value: Any, known: dict[str, Any]) -> str:
    for kind in type(value).__mro__:
        if kind.__name__ in known:
            return kind.__name__
    names = ", ".join(sorted({*_MODELS, *_SCORES, *_STEPS} - {"str", "Calibrated", "LabelModels"}))
    raise ExportError(f"no form in ONNX is known of {type(value).__name__}; there is one of {names}")


# --- preprocessing ----------------------------------------------------------------------------------------------------


def _identity(graph: Graph, x: str, step: Any) -> str:
    return x


def _signed_root(graph: Graph, x: str, step: Any) -> str:
    return graph.add("Mul", graph.add("Sign", x), graph.add("Sqrt", graph.add("Abs", x)))


def _norm(graph: Graph, x: str, step: Any) -> str:
    x = graph.cast(x, "DOUBLE")
    squares = graph.add("ReduceSum", graph.add("Mul", x, x), np.array([1]), keepdims=1)
    length = graph.add("Sqrt", squares)
    unit = graph.add("Where", graph.add("Equal", length, 0.0), 1.0, length)
    return graph.cast(graph.add("Div", x, unit), "FLOAT")


def _scaler(graph: Graph, x: str, step: Any) -> str:
    x = graph.add("Sub", x, np.float32(step.mean_)) if step.with_mean else x
    return graph.add("Div", x, np.float32(step.scale_)) if step.with_std else x


def _pca(graph: Graph, x: str, step: Any) -> str:
    centred = graph.add("Sub", graph.cast(x, "DOUBLE"), np.float64(step.mean_))
    x = graph.add("MatMul", centred, np.float64(step.components_).T)
    if step.whiten:
        deviation = np.sqrt(np.float64(step.explained_variance_))
        x = graph.add("Div", x, np.maximum(deviation, np.finfo(step.explained_variance_.dtype).eps))
    return graph.cast(x, "FLOAT")


# --- models -----------------------------------------------------------------------------------------------------------


def _scores(graph: Graph, x: str, model: Any) -> str:
    """Give what ``decision_function`` gives: (n, k), or (n, 1) of two classes."""
    return _SCORES[_kind(model, _SCORES)](graph, x, model)


def _linear_scores(graph: Graph, x: str, model: Any) -> str:
    coef, intercept = np.asarray(model.coef_, np.float64), np.atleast_1d(np.float64(model.intercept_))
    if len(coef) == 2 and len(model.classes_) == 2:  # a row for each of two classes
        coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return graph.linear(x, np.atleast_2d(coef), intercept)


def _kernel(graph: Graph, x: str, machine: Any) -> str:
    """Give exp(-gamma * squared distance) to each support vector, or the products with them: (n, vectors)."""
    vectors = np.asarray(machine.support_vectors_, np.float64)
    products = graph.add("MatMul", x, vectors.T)
    if machine.kernel == "linear":
        return products
    squares = graph.add("ReduceSum", graph.add("Mul", x, x), np.array([1]), keepdims=1)
    apart = graph.add("Sub", graph.add("Add", squares, np.square(vectors).sum(axis=1)), graph.add("Mul", products, 2.0))
    return graph.add("Exp", graph.add("Mul", graph.add("Max", apart, 0.0), -float(machine._gamma)))  # noqa: SLF001


def _pairwise_scores(graph: Graph, x: str, machine: Any) -> str:
    """Margins of the pairs, each of the vectors of its two classes; of several classes decoded as it does."""
    k, kernel = len(machine.classes_), _kernel(graph, x, machine)
    if k == 2:
        return graph.linear(kernel, machine.dual_coef_, machine.intercept_)
    ends = np.concatenate([[0], np.cumsum(machine._n_support)])  # noqa: SLF001
    pairs = list(combinations(range(k), 2))
    weights = np.zeros((len(pairs), len(machine.support_vectors_)))
    first, second = np.zeros((len(pairs), k)), np.zeros((len(pairs), k))
    for at, (i, j) in enumerate(pairs):
        weights[at, ends[i] : ends[i + 1]] = machine._dual_coef_[j - 1, ends[i] : ends[i + 1]]
        weights[at, ends[j] : ends[j + 1]] = machine._dual_coef_[i, ends[j] : ends[j + 1]]
        first[at, i] = second[at, j] = -1.0
    margins = graph.linear(kernel, weights, machine._intercept_)
    won = graph.add("MatMul", _softplus(graph, margins, -machine.SLOPE), first)
    return graph.add("Add", won, graph.add("MatMul", _softplus(graph, margins, machine.SLOPE), second))


def _softplus(graph: Graph, x: str, slope: float) -> str:
    """Give log(1 + exp(slope * x)) without overflow; the operator of this name knows no doubles everywhere."""
    x = graph.add("Mul", x, slope)
    rest = graph.add("Log", graph.add("Add", graph.add("Exp", graph.add("Neg", graph.add("Abs", x))), 1.0))
    return graph.add("Add", graph.add("Max", x, 0.0), rest)


def _logits(graph: Graph, scores: str, classes: int) -> str:
    return graph.columns([graph.add("Neg", scores), scores]) if classes == 2 else scores


def _calibrated(graph: Graph, x: str, model: Any) -> str:
    logits = _logits(graph, _scores(graph, x, model.model), len(model.model.classes_))
    return graph.add("Softmax", graph.add("Mul", logits, float(model.inverse_temperature)), axis=1)


def _logistic(graph: Graph, x: str, model: Any) -> str:
    scores = graph.linear(x, model.coef_, model.intercept_)
    return _both(graph, scores) if len(model.classes_) == 2 else graph.add("Softmax", scores, axis=1)


def _both(graph: Graph, score: str) -> str:
    """Give the probabilities of two classes by the logit of the second."""
    second = graph.add("Sigmoid", score)
    return graph.columns([graph.add("Sub", 1.0, second), second])


def _network(graph: Graph, x: str, model: Any) -> str:
    layers = list(zip(model.coefs_, model.intercepts_, strict=True))
    for coef, intercept in layers[:-1]:
        x = graph.add("Relu", graph.linear(x, coef.T, intercept))
    x = graph.linear(x, layers[-1][0].T, layers[-1][1])
    return _both(graph, x) if len(model.classes_) == 2 else graph.add("Softmax", x, axis=1)


def _trees(graph: Graph, x: str, model: Any) -> str:
    found = tree_attributes(model.booster)
    sums = graph.add("TreeEnsembleRegressor", graph.cast(x, "FLOAT"), domain="ai.onnx.ml", **found.attributes)
    margins = graph.add("Add", graph.cast(sums, "DOUBLE"), found.base)
    if found.objective == "multi:softprob":
        return graph.add("Softmax", margins, axis=1)
    if found.objective == "binary:logistic":
        return _both(graph, margins)
    return graph.add("Add", graph.add("Mul", margins, model.unit.scale), model.unit.mean)


def _labels(graph: Graph, x: str, model: Any) -> str:
    return graph.columns([graph.column(add_model(graph, x, each), 1) for each in model.models])


def _linear_number(graph: Graph, x: str, model: Any) -> str:
    return graph.linear(x, np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))


def _kernel_number(graph: Graph, x: str, model: Any) -> str:
    return graph.linear(_kernel(graph, x, model), model.dual_coef_, model.intercept_)


def _curve(graph: Graph, scores: str, curve: Any) -> str:
    if hasattr(curve, "slope"):
        return graph.add("Sigmoid", graph.add("Add", graph.add("Mul", scores, curve.slope), curve.offset))
    at, proba = np.asarray(curve.scores, np.float64), np.asarray(curve.proba, np.float64)
    if len(at) == 1:
        return graph.add("Add", graph.add("Mul", scores, 0.0), float(proba[0]))
    part = graph.add("Div", graph.add("Sub", scores, at[:-1]), np.diff(at))  # (n, m - 1): how far along each piece
    inside = graph.add("Min", graph.add("Max", part, 0.0), 1.0)
    return graph.linear(inside, np.diff(proba)[None], proba[:1])


_Adder = Callable[[Graph, str, Any], str]
_STEPS: dict[str, _Adder] = {
    "SignedSquareRoot": _signed_root,
    "Normalizer": _norm,
    "StandardScaler": _scaler,
    "PCA": _pca,
    "str": _identity,  # "passthrough"
}
_SCORES: dict[str, _Adder] = {
    "PairwiseSVC": _pairwise_scores,
    "LogisticRegression": _linear_scores,
    "LinearSVC": _linear_scores,
    "RidgeClassifier": _linear_scores,
    "NearestMean": _linear_scores,
}
_MODELS: dict[str, _Adder] = {
    "Calibrated": _calibrated,
    "LogisticRegression": _logistic,
    "MLPClassifier": _network,
    "XGBoostModel": _trees,
    "LabelModels": _labels,
    "Ridge": _linear_number,
    "LinearSVR": _linear_number,
    "SVR": _kernel_number,
}
