"""What the room offers, pinned."""

from __future__ import annotations

import icecore.train


def test_the_offer_is_this() -> None:
    assert sorted(icecore.train.__all__) == [
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
        "METRICS",
        "MODELS",
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
        "TASKS",
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
    assert all(hasattr(icecore.train, name) for name in icecore.train.__all__)


def test_errors_are_also_the_builtins_that_callers_expect() -> None:
    offered = {name: getattr(icecore.train, name) for name in icecore.train.__all__ if name.endswith("Error")}
    assert all(issubclass(error, icecore.train.TrainError) for error in offered.values())
    assert issubclass(icecore.train.LabelError, ValueError)
    assert issubclass(icecore.train.UnknownModelError, LookupError)
    assert issubclass(icecore.train.MissingExtraError, ImportError)
