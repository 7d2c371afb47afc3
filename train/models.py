"""The models on offer: how each is built, which setting is searched, and how simple it is.

This knows estimators and nothing of rows, folds or stores. Classes are the integers 0 to k - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .calibration_curves import CurveMethod
from .errors import UnknownModelError
from .settings import Setting
from .steps import STANDARD, Steps
from .tasks import TaskName

if TYPE_CHECKING:
    from .out_of_fold import Solver

__all__ = ["MODELS", "BuildOptions", "ClassWeight", "ModelSpec", "model_spec"]

ClassWeight = Literal["balanced"] | None


@dataclass(frozen=True)
class BuildOptions:
    """What every model is built with, beside its searched setting."""

    seed: int = 0
    """seed of whatever is drawn at random"""
    class_weight: ClassWeight = None
    """``balanced`` weighs every class alike, None every row"""
    steps: Steps = STANDARD
    """what is done to the features before"""
    calibration: CurveMethod | None = None
    """curves that turn scores into probabilities; None: a temperature where the model has none of its own"""


@dataclass(frozen=True)
class ModelSpec:
    """One kind of model."""

    name: str
    """what it is called in configs"""
    title: str
    """what it is called in reports"""
    setting: str
    """the searched hyper-parameter, a parameter of what ``build`` gives"""
    kind: type[int] | type[float]
    """type of its values"""
    grid: tuple[float, ...]
    """values tried by default, the simplest first: it wins ties"""
    build: Callable[[BuildOptions], Any]
    """makes the unfitted estimator"""
    has_probabilities: bool
    """false for estimators whose scores must be calibrated first; regressors need no calibration"""
    takes_class_weight: bool
    """false for estimators that are weighted by row instead"""
    solver: Callable[[], Solver] | None = None
    """gives the module that searches and fits it; by default each fold and value is fitted plainly"""
    also: tuple[Setting, ...] = ()
    """settings searched beside the main one"""
    task: TaskName = "classification"
    """what it learns; see ``tasks``"""


def model_spec(name: str) -> ModelSpec:
    """Give the classifier of this name; those of other tasks are in ``Task.models``.

    Raises
    ------
    UnknownModelError
        When there is none; the message lists them.
    """
    if name not in MODELS:
        raise UnknownModelError("model", name, tuple(MODELS))
    return MODELS[name]


def _linear() -> Solver:
    from . import linear_search

    return linear_search


def _kernel() -> Solver:
    from . import kernel_search

    return kernel_search


def _nearest() -> Solver:
    from . import nearest_search

    return nearest_search


def _mlp_solver() -> Solver:
    from . import mlp_search

    return mlp_search


def _boosting() -> Solver:
    from . import boosting

    return boosting


def _logistic_regression(options: BuildOptions) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(
        max_iter=5_000, class_weight=options.class_weight, random_state=options.seed
    )  # lbfgs: multinomial newton-cholesky needs gigabytes at 2,048 features


def _linear_svm(options: BuildOptions) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(dual="auto", max_iter=20_000, class_weight=options.class_weight, random_state=options.seed)


def _ridge(options: BuildOptions) -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier(class_weight=options.class_weight, random_state=options.seed)


def _nearest_mean(options: BuildOptions) -> Any:
    from .nearest import NearestMean

    return NearestMean(priors="uniform" if options.class_weight else "empirical")


def _knn(options: BuildOptions) -> Any:
    from .nearest import SmoothedNeighbors

    return SmoothedNeighbors(priors="uniform" if options.class_weight else "empirical")


def _rbf_svm(options: BuildOptions) -> Any:
    from .pairwise import PairwiseSVC

    return PairwiseSVC(gamma="scale", decision_function_shape="ovo", cache_size=500, class_weight=options.class_weight)


def _mlp(options: BuildOptions) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(random_state=options.seed)


def _xgboost(options: BuildOptions) -> Any:
    """Coarse bins, and a part of the rows and columns for each tree.

    One thread, always: folds run beside each other instead. Several threads wait for each other after every
    node by spinning, and took 20 s for 3 s of work beside another busy process on two cores.
    """
    from xgboost import XGBClassifier

    return XGBClassifier(
        tree_method="hist",
        max_bin=32,
        subsample=0.8,
        n_jobs=1,
        random_state=options.seed,
    )


_TABLE = (
    ModelSpec(
        name="logistic_regression",
        title="Logistic regression",
        setting="C",
        kind=float,
        grid=(1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        build=_logistic_regression,
        has_probabilities=True,
        takes_class_weight=True,
        solver=_linear,
    ),
    ModelSpec(
        name="linear_svm",
        title="Linear SVM",
        setting="C",
        kind=float,
        grid=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        build=_linear_svm,
        has_probabilities=False,
        takes_class_weight=True,
        solver=_linear,
    ),
    ModelSpec(
        name="ridge",
        title="Ridge classifier",
        setting="alpha",
        kind=float,
        grid=(1e5, 1e4, 1e3, 1e2, 10.0, 1.0),
        build=_ridge,
        has_probabilities=False,
        takes_class_weight=True,
        solver=_linear,
    ),
    ModelSpec(
        name="nearest_mean",
        title="Nearest class mean",
        setting="shrink_threshold",
        kind=float,
        grid=(4.0, 2.0, 1.0, 0.5, 0.01),
        build=_nearest_mean,
        has_probabilities=False,
        takes_class_weight=True,
        solver=_nearest,
    ),
    ModelSpec(
        name="knn",
        title="k nearest neighbours",
        setting="n_neighbors",
        kind=int,
        grid=(40, 20, 10, 5, 3),
        build=_knn,
        has_probabilities=False,
        takes_class_weight=True,
        solver=_nearest,
    ),
    ModelSpec(
        name="rbf_svm",
        title="RBF SVM",
        setting="C",
        kind=float,
        grid=(0.1, 1.0, 10.0, 100.0),
        build=_rbf_svm,
        has_probabilities=False,
        takes_class_weight=True,
        solver=_kernel,
        also=(Setting("gamma_scale", float, (0.1, 0.3, 1.0), 1.0),),
    ),
    ModelSpec(
        name="mlp",
        title="MLP head",
        setting="epochs",
        kind=int,
        grid=(5, 10, 20),
        build=_mlp,
        has_probabilities=True,
        takes_class_weight=False,
        solver=_mlp_solver,
        also=(
            Setting("hidden", int, (256,), 256),
            Setting("alpha", float, (10.0, 1.0), 1.0),
        ),
    ),
    ModelSpec(
        name="xgboost",
        title="XGBoost",
        setting="max_depth",
        kind=int,
        grid=(3, 6),
        build=_xgboost,
        has_probabilities=True,
        takes_class_weight=False,
        solver=_boosting,
        also=(
            Setting("learning_rate", float, (0.2,), 0.2),
            Setting("n_estimators", int, (30, 60, 120), 60),
        ),
    ),
)
MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _TABLE})
"""Every model by name, the simplest first: it wins ties."""
