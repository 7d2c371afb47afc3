"""Search and fit support vector regression: scikit-learn's ``LinearSVR`` and ``SVR`` on shared features and distances.

Targets are standardised inside each fold, so that ``C`` and ``epsilon`` mean the same for every unit: epsilon counts
standard deviations of the targets. The fitted model gives numbers in the unit of the targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import fit_steps, inputs_of
from .kernel_svm import squared_distances
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .settings import params_of
from .solving import convergence_notes, folds_in_threads
from .target_unit import target_unit

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["fit_pipeline", "score_folds"]

Floats = NDArray[np.float32]
Point = Mapping[str, float]


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.float64],
    *,
    values: Sequence[Any],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does: predictions, (values, n, 1), in the unit of the targets.

    Memory: for each fold at work its rows, and for the RBF kernel 16 bytes for each pair of its training rows.
    """
    from joblib import Parallel, delayed

    inputs, points = inputs_of(X, options), [params_of(spec, value) for value in values]
    scores = np.empty((len(values), len(y), 1))
    predict = _kernel_predictions if "gamma_scale" in points[0] else _linear_predictions

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> None:
        unit = target_unit(y[train])
        A, held_out = inputs.fold(train, test)
        for i, found in predict(spec, options, points, A, unit.standardise(y[train]), held_out):
            scores[i, test, 0] = unit.restore(found)

    with convergence_notes() as notes, folds_in_threads():
        Parallel()(delayed(search_fold)(*fold) for fold in folds)
    return OutOfFold(scores, tuple(notes))


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.float64], *, value: Any, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does; the search leaves nothing to start from."""
    from sklearn.pipeline import Pipeline

    unit, point = target_unit(y), params_of(spec, value)
    with convergence_notes() as notes, folds_in_threads():
        steps, A = fit_steps(X, options)
        fit = _fit_kernel if "gamma_scale" in point else _fit_linear
        model = fit(spec, options, point, A, unit.standardise(y))
    is_kernel = "gamma_scale" in point
    for name in ("dual_coef_", "_dual_coef_") if is_kernel else ("coef_",):
        setattr(model, name, getattr(model, name) * unit.scale)
    for name in ("intercept_", "_intercept_") if is_kernel else ("intercept_",):
        setattr(model, name, unit.restore(getattr(model, name)))
    return Pipeline([*steps, ("model", model)]), tuple(notes)


def _linear_predictions(
    spec: ModelSpec, options: BuildOptions, points: Sequence[Point], A: Floats, t: NDArray[np.float64], held_out: Floats
) -> Iterator[tuple[int, NDArray[Any]]]:
    wide = A.astype(np.float64)  # once, not at every fit
    for i, point in enumerate(points):
        yield i, _fit_linear(spec, options, point, wide, t).predict(held_out)


def _fit_linear(spec: ModelSpec, options: BuildOptions, point: Point, A: NDArray[Any], t: NDArray[np.float64]) -> Any:
    return spec.build(options).set_params(**point).fit(A, t)


def _kernel_predictions(
    spec: ModelSpec, options: BuildOptions, points: Sequence[Point], A: Floats, t: NDArray[np.float64], held_out: Floats
) -> Iterator[tuple[int, NDArray[Any]]]:
    across, spread = squared_distances(held_out, A), _spread(A)
    for gamma, found in _machines(spec, options, points, squared_distances(A, A), t, spread):
        kernel = np.exp(across * np.float32(-gamma))
        for i, machine in found:
            support = machine.support_
            yield i, kernel[:, support] @ machine.dual_coef_[0].astype(np.float32) + machine.intercept_[0]


def _fit_kernel(spec: ModelSpec, options: BuildOptions, point: Point, A: Floats, t: NDArray[np.float64]) -> Any:
    """Fit libsvm on a kernel that is there, and fill what ``SVR`` keeps of it.

    It is first fitted on two rows, which leaves all that this version of scikit-learn wants to find.
    """
    [(gamma, found)] = _machines(spec, options, [point], squared_distances(A, A), t, _spread(A))
    [(_, machine)] = found
    model = spec.build(options).set_params(C=point["C"], epsilon=point["epsilon"], gamma=gamma)
    model.fit(A[:2].astype(np.float64), np.array([0.0, 2 * point["epsilon"] + 1]))
    model.shape_fit_ = A.shape
    model.support_ = machine.support_
    model.support_vectors_ = A[machine.support_].astype(np.float64)
    model._n_support = machine._n_support  # noqa: SLF001  # where scikit-learn's predict finds them
    model.dual_coef_ = model._dual_coef_ = machine.dual_coef_
    model.intercept_ = model._intercept_ = machine.intercept_
    model.n_iter_ = model._num_iter = machine.n_iter_  # noqa: SLF001
    return model


def _machines(
    spec: ModelSpec,
    options: BuildOptions,
    points: Sequence[Point],
    distances: Floats,
    t: NDArray[np.float64],
    spread: float,
) -> Iterator[tuple[float, list[tuple[int, Any]]]]:
    """Give for each gamma the fitted machine of each point that has it, by its position.

    A machine none of whose rows is held back by C is the machine of every larger C.
    """
    from sklearn import config_context

    order = sorted(range(len(points)), key=lambda i: (points[i]["gamma_scale"], points[i]["epsilon"], points[i]["C"]))
    for gamma_scale, same in groupby(order, key=lambda i: points[i]["gamma_scale"]):
        gamma = gamma_scale / spread
        kernel = np.exp(distances * np.float32(-gamma)).astype(np.float64)
        found: list[tuple[int, Any]] = []
        for i in same:
            last = found[-1][1] if found and found[-1][1].epsilon == points[i]["epsilon"] else None
            if last is None or (np.abs(last.dual_coef_) >= last.C * (1 - 1e-9)).any():
                last = spec.build(options)
                last.set_params(kernel="precomputed", C=points[i]["C"], epsilon=points[i]["epsilon"])
                with config_context(assume_finite=True, skip_parameter_validation=True):
                    last.fit(kernel, t)
            found.append((i, last))
        yield gamma, found


def _spread(A: Floats) -> float:
    """Give the sum of the variances: scikit-learn's ``gamma="scale"`` is one over it."""
    means = A.mean(axis=0, dtype=np.float64)
    total = float(np.einsum("ij,ij->", A, A, dtype=np.float64)) / len(A) - float(means @ means)
    return total if total > 0 else 1.0
