"""What surrounds every fit: threads that never outnumber the cores, and warnings turned into notes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import joblib

__all__ = ["convergence_notes", "folds_in_threads", "usable_threads"]


def usable_threads() -> int:
    """Give the number of cores that this process may use (affinity and container limits honoured)."""
    return int(joblib.cpu_count())


@contextmanager
def folds_in_threads() -> Iterator[None]:
    """Fit folds side by side, one thread each, as many as there are cores.

    The solvers let go of the interpreter's lock. Linear algebra inside a fold keeps to its thread: there are never
    more threads than cores, and the sums do not depend on how many cores there are.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), joblib.parallel_config("threading", n_jobs=usable_threads()):
        yield


@contextmanager
def convergence_notes() -> Iterator[list[str]]:
    """Turn ConvergenceWarnings into notes, one for each different text, and pass other warnings on."""
    from sklearn.exceptions import ConvergenceWarning

    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # The labels are classes, however few images each has: scikit-learn may not guess otherwise.
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
        yield notes
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            text = f"did not converge: {str(warning.message).splitlines()[0]}"
            notes += [text] if text not in notes else []
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
