"""What training and bundles refuse, each with the facts as fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from icecore.store.errors import suggest

if TYPE_CHECKING:
    from .result import TrainResult

__all__ = [
    "BundleError",
    "ComparisonError",
    "DatasetError",
    "DriftError",
    "ExportError",
    "FeatureMismatchError",
    "FoldError",
    "HeldOutDiffersError",
    "HeldOutSeenError",
    "LabelError",
    "MemoryLimitError",
    "MissingExtraError",
    "ReportError",
    "SplitError",
    "TrainError",
    "UnknownModelError",
    "UntrustedTypeError",
    "first_few",
]

_SHOWN = 5


class TrainError(Exception):
    """Anything that this room refuses or finds wrong."""


class LabelError(TrainError, ValueError):
    """The labels cannot be read, or do not fit the images of the store."""


class SplitError(TrainError, ValueError):
    """The rows cannot be divided into training and held-out rows as asked."""


class DatasetError(TrainError, ValueError):
    """Features and labels do not make a data set that can be learned from."""


class DriftError(TrainError, ValueError):
    """New images cannot be compared with those that a model was trained on."""


class ExportError(TrainError, ValueError):
    """A bundle cannot be written in another format."""


class FoldError(TrainError, ValueError):
    """A class has too few training rows, or groups, for the cross-validation asked for."""

    def __init__(self, message: str, *, label: str, count: int, folds: int) -> None:
        self.label, self.count, self.folds = label, count, folds
        super().__init__(message)


class ComparisonError(TrainError, ValueError):
    """Two generations cannot be compared."""


class HeldOutDiffersError(ComparisonError):
    """The held-out images of two generations are not the same ones."""

    def __init__(self, message: str, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        super().__init__(message)


class HeldOutSeenError(ComparisonError):
    """Fine-tuning saw held-out images: their score would say nothing about images that it did not see."""

    def __init__(self, message: str, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        super().__init__(message)


class BundleError(TrainError, ValueError):
    """A bundle is incomplete, altered, of an unknown format, or holds what it must not."""


class UntrustedTypeError(BundleError):
    """A bundle's model names types or functions that no bundle of ours contains; nothing was loaded."""

    def __init__(self, path: object, types: Iterable[str]) -> None:
        self.types = tuple(types)
        super().__init__(
            f"{path}: refused, because it holds {', '.join(self.types)}, which no icecore bundle contains; "
            "nothing in it was run. Get the bundle again from where it was trained"
        )


class FeatureMismatchError(BundleError):
    """Features given for prediction are not the ones that the bundle was trained on."""


class UnknownModelError(TrainError, LookupError):
    """There is no model, or metric, of this name."""

    def __init__(self, what: str, name: str, known: Sequence[str], purpose: str = "") -> None:
        self.name, self.known = name, tuple(known)
        there = f" for {purpose}" if purpose else ""
        super().__init__(f"no {what} {name!r}{there}; there are {', '.join(known)}{suggest(name, known)}")


class MemoryLimitError(TrainError, ValueError):
    """No model can train within the memory limit."""


class MissingExtraError(TrainError, ImportError):
    """A library of an optional extra is not installed."""

    def __init__(self, purpose: str, library: str, extra: str) -> None:
        self.library, self.extra = library, extra
        super().__init__(f"{purpose} needs {library}: pip install 'icecore[{extra}]'")


class ReportError(TrainError, RuntimeError):
    """The models are trained and saved, but their report could not be made."""

    def __init__(self, result: TrainResult, reason: str) -> None:
        self.result = result
        places = ", ".join(str(path) for path in result.bundles)
        super().__init__(f"{reason}; all else is done, the models are in {places}")


def first_few(names: Sequence[str]) -> str:
    """Give at most five names, quoted, and how many more there are."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
