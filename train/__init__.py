"""icecore.train: labels and classical models over stored features, bundles and reports. No torch, ever.

Examples
--------
>>> from icecore.train import load_bundle, train_models
>>> result = train_models("features", "photos", layers=["layer3", "layer4"])  # doctest: +SKIP
>>> load_bundle(result.bundles[0]).classes  # doctest: +SKIP
('ants', 'bees')
"""

from .advice import Advice, advise
from .advice_facts import Facts
from .advice_measure import measure_facts
from .bundle import Bundle, load_bundle
from .compare import compare_generations
from .comparison import GenerationComparison
from .data import Dataset, load_dataset
from .errors import (
    BundleError,
    ComparisonError,
    DatasetError,
    DriftError,
    FeatureMismatchError,
    FoldError,
    HeldOutDiffersError,
    HeldOutSeenError,
    LabelError,
    MemoryLimitError,
    MissingExtraError,
    ReportError,
    SplitError,
    TrainError,
    UnknownModelError,
    UntrustedTypeError,
)
from .gate import GateLimits
from .job import train_models
from .labels import CsvLabels, FolderLabels, Labels, labels_from_csv, labels_from_folders
from .linear_head import fit_head
from .metrics import METRICS, Evaluation
from .models import MODELS
from .probe import Probe, probe_features
from .progress import Progress
from .result import Cell, TrainResult
from .retrain import retrain_model
from .retraining import Retrained
from .rows import LabelledRows
from .splits import GivenSplit, HashSplit, split_rows
from .steps import Steps, every_combination
from .sweep import sweep_models
from .sweep_result import LayerScore, SweepCell, SweepResult
from .sweep_search import SweepProgress
from .sweep_winner import SweepWinner
from .tasks import TASKS, task_of

__all__ = [
    "METRICS",
    "MODELS",
    "TASKS",
    "Advice",
    "Bundle",
    "BundleError",
    "Cell",
    "ComparisonError",
    "CsvLabels",
    "Dataset",
    "DatasetError",
    "DriftError",
    "Evaluation",
    "Facts",
    "FeatureMismatchError",
    "FoldError",
    "FolderLabels",
    "GateLimits",
    "GenerationComparison",
    "GivenSplit",
    "HashSplit",
    "HeldOutDiffersError",
    "HeldOutSeenError",
    "LabelError",
    "LabelledRows",
    "Labels",
    "LayerScore",
    "MemoryLimitError",
    "MissingExtraError",
    "Probe",
    "Progress",
    "ReportError",
    "Retrained",
    "SplitError",
    "Steps",
    "SweepCell",
    "SweepProgress",
    "SweepResult",
    "SweepWinner",
    "TrainError",
    "TrainResult",
    "UnknownModelError",
    "UntrustedTypeError",
    "advise",
    "compare_generations",
    "every_combination",
    "fit_head",
    "labels_from_csv",
    "labels_from_folders",
    "load_bundle",
    "load_dataset",
    "measure_facts",
    "probe_features",
    "retrain_model",
    "split_rows",
    "sweep_models",
    "task_of",
    "train_models",
]
