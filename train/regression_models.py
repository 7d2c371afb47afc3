"""The regressors on offer: how each is built, which setting is searched, and how simple it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .models import MODELS, BuildOptions, ModelSpec
from .settings import Setting

if TYPE_CHECKING:
    from .out_of_fold import Solver

__all__ = ["REGRESSORS"]


def _ridge_solver() -> Solver:
    from . import ridge_regression

    return ridge_regression


def _svr_solver() -> Solver:
    from . import svr

    return svr


def _neighbors_solver() -> Solver:
    from . import neighbors_regression

    return neighbors_regression


def _boosting_solver() -> Solver:
    from . import boosting

    return boosting


def _ridge(options: BuildOptions) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(random_state=options.seed)


def _linear_svr(options: BuildOptions) -> Any:
    """Squared errors beyond epsilon, as the linear SVM squares its hinge."""
    from sklearn.svm import LinearSVR

    return LinearSVR(
        loss="squared_epsilon_insensitive", dual="auto", tol=1e-4, max_iter=5_000, random_state=options.seed
    )


def _rbf_svr(options: BuildOptions) -> Any:
    from sklearn.svm import SVR

    return SVR(cache_size=200)


def _knn(options: BuildOptions) -> Any:
    from sklearn.neighbors import KNeighborsRegressor

    return KNeighborsRegressor(weights="distance", algorithm="brute", metric="cosine")


def _xgboost(options: BuildOptions) -> Any:
    """As the classifier is built."""
    from .number_booster import NumberBooster

    return NumberBooster(
        tree_method="hist",
        max_bin=32,
        subsample=0.8,
        n_jobs=1,
        random_state=options.seed,
    )


def _spec(name: str, title: str, **fields: Any) -> ModelSpec:
    return ModelSpec(
        name=name, title=title, has_probabilities=True, takes_class_weight=False, task="regression", **fields
    )


_TABLE = (
    _spec(
        "ridge",
        "Ridge regression",
        setting="alpha",
        kind=float,
        grid=(1e6, 1e5, 1e4, 1e3, 1e2, 10.0, 1.0),
        build=_ridge,
        solver=_ridge_solver,
    ),
    _spec(
        "linear_svr",
        "Linear SVR",
        setting="C",
        kind=float,
        grid=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        build=_linear_svr,
        solver=_svr_solver,
        also=(Setting("epsilon", float, (0.1,), 0.1),),
    ),
    _spec(
        "knn",
        "k nearest neighbours",
        setting="n_neighbors",
        kind=int,
        grid=(40, 20, 10, 5, 3),
        build=_knn,
        solver=_neighbors_solver,
    ),
    _spec(
        "rbf_svr",
        "RBF SVR",
        setting="C",
        kind=float,
        grid=(0.1, 1.0, 10.0, 100.0),
        build=_rbf_svr,
        solver=_svr_solver,
        also=(Setting("gamma_scale", float, (0.1, 0.3, 1.0), 1.0), Setting("epsilon", float, (0.3, 0.1), 0.1)),
    ),
    _spec(
        "xgboost",
        "XGBoost",
        setting="max_depth",
        kind=int,
        grid=MODELS["xgboost"].grid,
        build=_xgboost,
        solver=_boosting_solver,
        also=MODELS["xgboost"].also,
    ),
)
REGRESSORS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _TABLE})
"""Every regressor by name, the simplest first: it wins ties."""
