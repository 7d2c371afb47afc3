"""Whether a loaded kernel machine is whole: libsvm reads its arrays by their lengths and checks none of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["check_machines"]


def check_machines(model: Any) -> None:
    """Look at every kernel machine inside a loaded model.

    Raises
    ------
    ValueError
        When its arrays do not belong together; predicting would read memory that is not its own.
    """
    for machine in _machines(model):
        if reason := _fault(machine):
            raise ValueError(f"a {type(machine).__name__} whose {reason}")


def _machines(model: Any) -> Iterator[Any]:
    """Give the machines among a model and the models that it is made of."""
    from sklearn.svm import SVC, SVR

    if isinstance(model, SVC | SVR):
        yield model
        return
    for name in ("model", "models", "regressor_"):
        inner = getattr(model, name, None)
        for each in inner if isinstance(inner, list | tuple) else [inner]:
            if each is not None and each is not model:
                yield from _machines(each)


def _fault(machine: Any) -> str:
    """Say what of a machine does not fit the rest; empty where all does."""
    found = vars(machine)
    vectors, coef = found.get("support_vectors_"), found.get("_dual_coef_")
    if not (isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype == np.float64):
        return "support vectors are no matrix of float64"
    n, width = vectors.shape
    classes = found.get("classes_")
    k = 2 if classes is None else len(classes)
    pairs = k * (k - 1) // 2
    wanted = {
        "support_": ((n,), np.int32),
        "_dual_coef_": ((k - 1, n), np.float64),
        "_intercept_": ((pairs,), np.float64),
        "_n_support": ((k,), np.int32),
    }
    for name, (shape, dtype) in wanted.items():
        array = found.get(name)
        if not (isinstance(array, np.ndarray) and array.shape == shape and array.dtype == dtype):
            return f"{name} is not of shape {shape} and {np.dtype(dtype).name}"
    counts = found["_n_support"].tolist()
    if min(counts) < 0 or (sum(counts) != n if classes is not None else counts[0] != n):
        return f"_n_support does not count its {n} support vectors"
    if not (vectors.flags.c_contiguous and coef.flags.c_contiguous):
        return "arrays do not lie row by row"
    if found.get("_sparse") is not False or found.get("n_features_in_") != width or machine.kernel not in KERNELS:
        return "features or kernel are not those of its support vectors"
    return "" if all(np.size(found.get(name, ())) == 0 for name in ("_probA", "_probB")) else "probabilities are odd"


KERNELS = ("rbf", "linear")
"""Kernels of our machines."""
