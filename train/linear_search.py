"""Search and fit linear models, all classes and values at once, and end in scikit-learn's own estimators.

Logistic regression, the linear SVM and ridge minimise what ``LogisticRegression``, ``LinearSVC`` and
``RidgeClassifier`` do. A fold's model knows nothing of the rows that it is validated on: no mean, no scale and no
start of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .folds import Fold
from .inputs import Inputs, fit_steps, inputs_of
from .linear_losses import Floats
from .linear_path import Kind, Rows, Solution, solve_path
from .linear_ridge import Moments, System, direct_system, fold_system, moments
from .models import BuildOptions, ModelSpec
from .out_of_fold import OutOfFold
from .solving import folds_in_threads

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = [
    "class_weights",
    "fill_model",
    "fit_pipeline",
    "kind_of",
    "limits_of",
    "mean_solution",
    "score_folds",
    "solver_notes",
]

KINDS: dict[str, Kind] = {"LogisticRegression": "logistic", "LinearSVC": "squared_hinge"}
"""What each of scikit-learn's estimators minimises."""


def score_folds(
    spec: ModelSpec,
    X: Floats,
    y: NDArray[np.int64],
    *,
    values: Sequence[float],
    folds: Sequence[Fold],
    options: BuildOptions,
) -> OutOfFold:
    """Score as ``out_of_fold.score_folds`` does, in one descent a fold, as many side by side as there are cores."""
    task = _Task(spec.build(options), inputs_of(X, options), y, int(y.max()) + 1, options)
    scores = np.empty((len(values), len(y), 1 if task.k == 2 else task.k), dtype=np.float32)
    with folds_in_threads():
        if isinstance(task.model, _ridge()):
            return OutOfFold(scores, starts=_ridge_scores(task, values, folds, scores))
        by_value = _path_scores(task, values, folds, scores)
    notes = dict.fromkeys(note for found in by_value for note in solver_notes(found, task.model))
    starts = None if options.steps.pca else tuple(map(mean_solution, by_value))  # folds have components of their own
    return OutOfFold(scores, tuple(notes), starts)


def fit_pipeline(
    spec: ModelSpec, X: Floats, y: NDArray[np.int64], *, value: float, options: BuildOptions, start: Any = None
) -> tuple[Pipeline, tuple[str, ...]]:
    """Fit as ``out_of_fold.fit_pipeline`` does, from the mean of the folds' models where there is one."""
    from sklearn.pipeline import Pipeline
    from threadpoolctl import threadpool_limits

    k = int(y.max()) + 1
    model = spec.build(options).set_params(**{spec.setting: value})
    with threadpool_limits(1):
        steps, A = fit_steps(X, options)
        if isinstance(start, System):
            found = start.solve(value)
        elif isinstance(model, _ridge()):
            found = direct_system(Rows(A, y, class_weights(y, k, options))).solve(value)
        else:
            rows = Rows(A, y, class_weights(y, k, options))
            [(_, found)] = solve_path(rows, kind_of(model), [value], start=start, **limits_of(model))
    fill_model(model, found, k)
    return Pipeline([*steps, ("model", model)]), solver_notes([found], model)


@dataclass(frozen=True)
class _Task:
    """What all folds share."""

    model: Any
    inputs: Inputs
    y: NDArray[np.int64]
    k: int
    options: BuildOptions

    @property
    def scaled_only(self) -> bool:
        """Whether a fold's inputs are its rows, standardised."""
        return self.inputs.steps.scale == "standard" and not self.inputs.steps.pca

    def standardised(self, train: NDArray[np.intp], test: NDArray[np.intp]) -> tuple[Rows, Floats]:
        """Give the rows to learn from and the features to score."""
        A, held_out = self.inputs.fold(train, test)
        return Rows(A, self.y[train], class_weights(self.y[train], self.k, self.options)), held_out


def _path_scores(
    task: _Task, values: Sequence[float], folds: Sequence[Fold], scores: Floats
) -> list[tuple[Solution, ...]]:
    """Fill in the scores and give the solutions of the folds for each value."""
    from joblib import Parallel, delayed

    def search_fold(train: NDArray[np.intp], test: NDArray[np.intp]) -> list[Solution]:
        rows, held_out = task.standardised(train, test)
        found = dict(solve_path(rows, kind_of(task.model), values, **limits_of(task.model)))
        for i, solution in found.items():
            scores[i, test] = solution.scores(held_out)
        return [found[i] for i in range(len(values))]

    return list(zip(*Parallel()(delayed(search_fold)(*fold) for fold in folds), strict=True))


def _ridge_scores(
    task: _Task, values: Sequence[float], folds: Sequence[Fold], scores: Floats
) -> tuple[System, ...] | None:
    """Fill in the scores and give the system of all rows, once a value, where it costs nothing.

    Every fold and value is solved by itself, so that all cores have work to the end.
    """
    from joblib import Parallel, delayed

    parallel = Parallel()
    X, y = task.inputs.centred.X, task.y
    few = min(len(train) for train, _ in folds) < X.shape[1]
    partial = any(len(train) + len(test) < len(y) for train, test in folds)  # as a learning curve asks
    if few or partial or task.options.class_weight is not None or not task.scaled_only:
        prepared, system = parallel(delayed(_prepare_rows)(task, *fold) for fold in folds), None
    else:
        rest = np.setdiff1d(np.arange(len(y)), np.concatenate([test for _, test in folds]))
        parts = parallel(delayed(moments)(X[rows], y[rows], task.k) for rows in (*(test for _, test in folds), rest))
        total = reduce(Moments.plus, parts)
        prepared = parallel(
            delayed(_prepare_sums)(task, total, part, *fold) for part, fold in zip(parts, folds, strict=False)
        )
        spread = total.gram.diagonal() / total.rows
        system, _ = fold_system(total, spread, task.inputs.centred, np.arange(len(y)), y)

    def solve(i: int, test: NDArray[np.intp], system: System, held_out: Floats) -> None:
        scores[i, test] = system.solve(values[i]).scores(held_out)

    parallel(
        delayed(solve)(i, test, *ready)
        for i in range(len(values))
        for (_, test), ready in zip(folds, prepared, strict=True)
    )
    return None if system is None else (system,) * len(values)


def _prepare_rows(task: _Task, train: NDArray[np.intp], test: NDArray[np.intp]) -> tuple[System, Floats]:
    rows, held_out = task.standardised(train, test)
    return direct_system(rows), held_out


def _prepare_sums(
    task: _Task, total: Moments, part: Moments, train: NDArray[np.intp], test: NDArray[np.intp]
) -> tuple[System, Floats]:
    spread = total.gram.diagonal() / total.rows
    system, standard = fold_system(total.less(part), spread, task.inputs.centred, train, task.y)
    return system, standard.apply(task.inputs.centred.X[test])


def _ridge() -> type[Any]:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier  # type: ignore[no-any-return]  # scikit-learn is untyped


def kind_of(model: Any) -> Kind:
    """Say what an estimator of scikit-learn minimises."""
    return KINDS[type(model).__name__]


def limits_of(model: Any) -> dict[str, Any]:
    """Give an estimator's tolerance and most iterations, as ``solve_path`` takes them."""
    return {"tol": model.tol, "max_iter": model.max_iter}


def class_weights(y: NDArray[np.int64], k: int, options: BuildOptions) -> NDArray[np.float64]:
    """Weigh classes as scikit-learn's ``compute_class_weight`` does, (k,)."""
    if options.class_weight is None:
        return np.ones(k)
    return np.asarray(len(y) / (k * np.bincount(y, minlength=k)))


def mean_solution(found: Sequence[Solution]) -> Solution:
    """Give the mean of the folds' models: each is of features standardised by nearly the same means and scales."""
    coef = np.mean([solution.coef for solution in found], axis=0)
    return Solution(coef, np.mean([solution.intercept for solution in found], axis=0), 0, converged=True)


def solver_notes(found: Sequence[Solution], model: Any) -> tuple[str, ...]:
    """Say whether a solver was stopped before it converged."""
    if all(solution.converged for solution in found):
        return ()
    return (f"did not converge: {type(model).__name__} was stopped after {model.max_iter} iterations",)


def fill_model(model: Any, found: Solution, k: int) -> None:
    """Give an unfitted estimator of scikit-learn what its ``fit`` would have given it."""
    model.coef_ = np.ascontiguousarray(found.coef.T)
    model.intercept_ = found.intercept.copy()
    model.n_features_in_ = found.coef.shape[0]
    if not isinstance(getattr(type(model), "classes_", None), property):  # RidgeClassifier's own, up to 1.8
        model.classes_ = np.arange(k)
    if isinstance(model, _ridge()):
        _fill_ridge(model, k)
        return
    is_svm = kind_of(model) == "squared_hinge"
    model.n_iter_ = found.iterations if is_svm else np.array([found.iterations], dtype=np.int32)


def _fill_ridge(model: Any, k: int) -> None:
    from sklearn.preprocessing import LabelBinarizer

    binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(np.arange(k))
    model._label_binarizer = binarizer  # noqa: SLF001  # where scikit-learn's predict finds the classes
    model.n_iter_, model.solver_ = None, "cholesky"
    if k == 2:
        model.coef_ = model.coef_[0]
