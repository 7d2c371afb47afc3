"""Models on disk: skops or XGBoost's JSON in, nothing but known types out.

No pickle is written or read. Before anything is loaded, every type and function that a skops file names is held
against a list of ours; skops then checks again. XGBoost's JSON is data only, read by its own parser.
"""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, UntrustedTypeError
from .target_unit import TargetUnit

__all__ = ["TRUSTED_TYPES", "load_skops", "load_xgboost", "save_skops", "save_xgboost"]

TRUSTED_TYPES = frozenset(
    {
        "builtins.bool",
        "builtins.dict",
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "builtins.str",
        "builtins.tuple",
        "icecore.train.calibration.Calibrated",
        "icecore.train.calibration_curves.Curves",
        "icecore.train.calibration_curves.SigmoidCurve",
        "icecore.train.calibration_curves.StepCurve",
        "icecore.train.label_models.LabelModels",
        "icecore.train.nearest.NearestMean",
        "icecore.train.nearest.SmoothedNeighbors",
        "icecore.train.pairwise.PairwiseSVC",
        "icecore.train.transforms.SignedSquareRoot",
        "numpy.bool",
        "numpy.float32",
        "numpy.float64",
        "numpy.int32",
        "numpy.int64",
        "numpy.ndarray",
        "sklearn.decomposition._pca.PCA",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.linear_model._ridge.RidgeClassifier",
        "sklearn.neighbors._regression.KNeighborsRegressor",
        "sklearn.neural_network._multilayer_perceptron.MLPClassifier",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.Normalizer",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._label.LabelBinarizer",
        "sklearn.svm._classes.LinearSVC",
        "sklearn.svm._classes.LinearSVR",
        "sklearn.svm._classes.SVR",
    }
)
"""All that the models of this room are made of; a file that names anything else is refused."""
TRUSTED_NODES = frozenset(
    {"CachedNode", "DictNode", "JsonNode", "ListNode", "NdArrayNode", "ObjectNode", "TupleNode", "TypeNode"}
)
"""The kinds of skops node that they need; none imports a function or unpickles."""
_SHIM = "sklearn.externals.array_api_compat.torch"


def save_skops(value: Any, path: Path) -> None:
    """Write a fitted scikit-learn object as skops."""
    _skops().dump(value, path)


def load_skops(path: Path) -> Any:
    """Read a fitted scikit-learn object.

    Raises
    ------
    UntrustedTypeError
        When the file names a type or function outside ``TRUSTED_TYPES``; nothing was loaded.
    BundleError
        When it is no skops file, or a damaged one.
    """
    skops = _skops()
    try:
        _check_types(path, _named(_read_schema(path)))
        untrusted = skops.get_untrusted_types(file=path)
        _check_types(path, untrusted)
        return skops.load(path, trusted=untrusted)
    except UntrustedTypeError:
        raise
    except Exception as exc:  # a crafted schema makes skops raise anything: TypeError, KeyError, RecursionError, ...
        raise BundleError(
            f"{path}: not a skops file, damaged, or of a scikit-learn that this one cannot read "
            f"({type(exc).__name__}: {exc})"
        ) from exc


def save_xgboost(model: Any, path: Path) -> None:
    """Write a fitted XGBClassifier in XGBoost's own JSON."""
    model.save_model(path)


def load_xgboost(path: Path) -> XGBoostModel:
    """Read a classifier from XGBoost's own JSON.

    Raises
    ------
    BundleError
        When XGBoost cannot read it.
    """
    import xgboost

    from .number_booster import unit_of

    booster = xgboost.Booster()
    try:
        json.loads(path.read_bytes())  # refuses bottomless nesting, on which XGBoost's own parser crashes the process
        booster.load_model(path)
        unit = unit_of(booster)
    except RecursionError as exc:
        raise BundleError(f"{path}: XGBoost cannot read this model (nested too deeply)") from exc
    except (OSError, TypeError, ValueError, xgboost.core.XGBoostError) as exc:
        raise BundleError(f"{path}: XGBoost cannot read this model ({str(exc).splitlines()[0]})") from exc
    return XGBoostModel(booster, unit)


class XGBoostModel:
    """A loaded XGBoost model."""

    def __init__(self, booster: Any, unit: TargetUnit) -> None:
        self.booster, self.unit = booster, unit

    def predict_proba(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give the probability of each class, (n, k) float32; two columns where the model gives only the second."""
        proba = np.asarray(self.booster.inplace_predict(X))
        return proba if proba.ndim == 2 else np.vstack((1.0 - proba, proba)).transpose()

    def predict(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give a regressor's numbers, (n,)."""
        return self.unit.restore(self.booster.inplace_predict(X))


def _skops() -> Any:
    """Import skops without torch.

    skops walks all of scikit-learn when imported, and so the shim by which scikit-learn would use torch: with
    torch installed that took a second longer and loaded it. A None in its place makes the walk pass it over.
    """
    if "skops.io" in sys.modules:
        return sys.modules["skops.io"]
    with _without(_SHIM):
        return importlib.import_module("skops.io")


@contextmanager
def _without(module: str) -> Iterator[None]:
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def _check_types(path: Path, named: Iterable[str]) -> None:
    known = TRUSTED_TYPES | {f"skops node {node}" for node in TRUSTED_NODES}
    if odd := sorted(set(named) - known):
        raise UntrustedTypeError(path, odd)


def _read_schema(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("schema.json"))


def _named(node: Any) -> Iterator[str]:
    """Walk a skops schema and give every type, function and kind of node that it names."""
    pending = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            if "__loader__" in node:
                yield f"skops node {node['__loader__']}"
                yield f"{node.get('__module__')}.{node.get('__class__')}"
            pending += node.values()
        elif isinstance(node, list):
            pending += node
