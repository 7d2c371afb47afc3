"""Our search of a model's setting against scikit-learn's: the same features, folds and grid, alternating.

The plain side is GridSearchCV(make_pipeline(StandardScaler(), model), n_jobs=cores), which ends in a fit on all
training rows; ours is search_setting and fit_model, which also calibrate where the model has no probabilities. Each
run is a process of its own. Its time is that of the search alone: imports are done and the plain side's workers are
there. Its peak memory is that of the process with its workers, shared pages counted once.

The grid is the model's own, but for two whose plain side would take hours: see GRIDS. XGBoost's plain side is
XGBClassifier with histograms of its own 256 bins, one thread a fit and as many fits as there are cores.

Features are made: pooled maps after a ReLU, non-negative, with a falling spectrum and a mean for each class.

Goals: each model at least 5 times as fast, 10 times in the geometric mean; accuracy of the best setting, in the
cross-validation and on held-out rows, at most 0.2 points below the plain side's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEAST_TIMES, LEAST_MEAN, MOST_LOST = 5.0, 10.0, 0.002
FOLDS = 5
HELD_OUT = 2_000


class Size(NamedTuple):
    """Made features."""

    rows: int
    width: int
    classes: int
    signal: float
    """how far the classes are apart"""


SIZES = {
    "classes": Size(4_000, 1_280, 102, 0.25),
    "rows": Size(20_000, 512, 10, 0.2),
    "small": Size(1_000, 128, 10, 0.5),
}


def _logistic_regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=5_000)


def _linear_svm() -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(max_iter=20_000)


def _ridge() -> Any:
    from sklearn.linear_model import RidgeClassifier

    return RidgeClassifier()


def _rbf_svm() -> Any:
    from sklearn.svm import SVC

    return SVC(cache_size=500)


def _xgboost() -> Any:
    from xgboost import XGBClassifier

    return XGBClassifier(tree_method="hist", n_jobs=1, learning_rate=0.2)


PLAIN: dict[str, Callable[[], Any]] = {
    "logistic_regression": _logistic_regression,
    "linear_svm": _linear_svm,
    "ridge": _ridge,
    "rbf_svm": _rbf_svm,
    "xgboost": _xgboost,
}
"""The plain estimator of each model in the race."""
GRIDS: dict[str, dict[str, list[float]]] = {
    "rbf_svm": {"C": [1.0, 10.0, 100.0], "gamma_scale": [0.3, 1.0]},
    "xgboost": {"max_depth": [3], "n_estimators": [10, 20]},
}
"""What both sides search instead of the model's own grid: a part of it, and few rounds."""


def main() -> int:
    """Race, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["classes", "rows"], help="small: a quick look")
    parser.add_argument("--models", nargs="+", choices=PLAIN, default=list(PLAIN))
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side; the median counts")
    parser.add_argument("--check", action="store_true", help="end with 1 unless the goals are met")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.models[0], SIZES[options.size[0]])))
        return 0
    rows = []
    for size in options.size:
        for model in options.models:
            rows.append(race(model, size, options.rounds))
            if not options.json:
                print(_line(rows[-1]), flush=True)
    mean = math.exp(statistics.fmean(math.log(row["times"]) for row in rows))
    met = mean >= LEAST_MEAN and all(row["met"] for row in rows)
    if options.json:
        goals = {"times": LEAST_TIMES, "mean": LEAST_MEAN, "lost": MOST_LOST}
        print(json.dumps({"goals": goals, "met": met, "mean": mean, "rows": rows}))
    else:
        print(f"geometric mean: {mean:.1f} times; {'goals met' if met else 'goals missed'}")
    return int(options.check and not met)


def race(model: str, size: str, rounds: int) -> dict[str, Any]:
    """Run both sides by turns and give the medians."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, done in runs.items():
            done.append(_spawn(side, model, size))
    found = {}
    for side, done in runs.items():
        middle = {key: statistics.median(run[key] for run in done) for key in ("seconds", "peak_mib")}
        found[side] = done[0] | middle
    ours, plain = found["ours"], found["plain"]
    times = plain["seconds"] / ours["seconds"]
    lost = max(plain[key] - ours[key] for key in ("cv", "held_out"))
    met = times >= LEAST_TIMES and lost <= MOST_LOST
    return {"model": model, "size": size, **SIZES[size]._asdict(), **found, "times": times, "met": met}


def made_features(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Give features and classes, the held-out rows last."""
    rng = np.random.default_rng(0)
    n, D, k = size.rows + HELD_OUT, size.width, size.classes
    y = np.concatenate([rng.permutation(np.arange(m) % k) for m in (size.rows, HELD_OUT)])
    spectrum = np.arange(1, D + 1) ** -0.55
    centres = rng.normal(size=(k, D))
    latent = (rng.normal(size=(n, D)) + size.signal * centres[y]) * spectrum / np.sqrt((spectrum**2).mean())
    maps = latent @ rng.normal(size=(D, D)) / np.sqrt(D) + 1 + 0.5 * rng.normal(size=D)
    return (np.maximum(maps, 0) * np.exp(0.5 * rng.normal(size=D))).astype(np.float32), y


def run_plain(model: str, size: Size) -> dict[str, Any]:
    """Search as a script with scikit-learn would."""
    import joblib
    from icecore.train.models import model_spec
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = made_features(size)
    spec, n = model_spec(model), size.rows
    estimator = make_pipeline(StandardScaler(), PLAIN[model]())
    step = estimator.steps[-1][0]
    values = GRIDS.get(model, {spec.setting: spec.grid})
    grid = {f"{step}__{name}": list(given) for name, given in values.items()}
    if factors := grid.pop(f"{step}__gamma_scale", None):  # scikit-learn's "scale" is 1 / width of scaled features
        grid[f"{step}__gamma"] = [factor / size.width for factor in factors]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(estimator, grid, cv=folds, n_jobs=joblib.cpu_count())
    search.fit(*_few(X, y))  # the workers are started and have imported scikit-learn
    start = time.perf_counter()
    search.fit(X[:n], y[:n])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "best": [float(value) for value in search.best_params_.values()],
        "cv": float(search.best_score_),
        "held_out": float((search.predict(X[n:]) == y[n:]).mean()),
        "grid": search.cv_results_["mean_test_score"].round(4).tolist(),
    }


def run_ours(model: str, size: Size) -> dict[str, Any]:
    """Search as ``icecore train`` does."""
    from icecore.train.folds import make_folds
    from icecore.train.models import BuildOptions, model_spec
    from icecore.train.search import fit_model, search_setting

    X, y = made_features(size)
    spec, n, options = model_spec(model), size.rows, BuildOptions()

    def run(X: np.ndarray, y: np.ndarray) -> tuple[Any, Any]:
        folds = make_folds(y, classes=[str(c) for c in range(size.classes)], folds=FOLDS, seed=0)
        grid = GRIDS.get(model)
        search = search_setting(spec, X, y, folds=folds, metric="accuracy", options=options, grid=grid)
        best = search.best.point
        return search, fit_model(spec, X, y, value=best, folds=folds, options=options, found=search.found)

    run(*_few(X, y))  # everything is imported
    start = time.perf_counter()
    search, fitted = run(X[:n], y[:n])
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "best": [search.best.value, *search.best.others.values()],
        "cv": search.best.mean,
        "held_out": float((fitted.predict_proba(X[n:]).argmax(axis=1) == y[n:]).mean()),
        "grid": [round(point.mean, 4) for point in search.grid],
    }


SIDES = {"plain": run_plain, "ours": run_ours}


def _few(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give some 20 rows of each class and 8 features."""
    rows = np.argsort(y, kind="stable")[:: max(1, len(y) // (20 * int(y.max() + 1)))]
    return X[rows, :8], y[rows]


def _spawn(side: str, model: str, size: str) -> dict[str, Any]:
    """Run one side in a process of its own and watch its memory."""
    command = [sys.executable, "-W", "ignore", __file__, "--side", side, "--models", model, "--size", size]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            peak[0] = max(peak[0], _memory_of(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the {side} side of {model} ended with {process.returncode}")
    return {**json.loads(out.splitlines()[-1]), "peak_mib": peak[0]}


def _memory_of(pid: int) -> float:
    """Give the proportional memory of a process and all its descendants, MiB; those that have just ended count 0."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    family, total = {pid}, 0.0
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    for member in family:
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _line(row: dict[str, Any]) -> str:
    plain, ours = row["plain"], row["ours"]
    return (
        f"{row['model']}, {row['rows']:,} x {row['width']:,}, {row['classes']} classes, {os.cpu_count()} cores: "
        f"{plain['seconds']:.2f} s -> {ours['seconds']:.2f} s, {row['times']:.1f} times; "
        f"peak {plain['peak_mib']:.0f} -> {ours['peak_mib']:.0f} MiB; best {_best(plain)} -> {_best(ours)}; "
        f"cv {plain['cv']:.4f} -> {ours['cv']:.4f}, held-out {plain['held_out']:.4f} -> {ours['held_out']:.4f}"
        f"{'' if row['met'] else ' MISSED'}"
    )


def _best(side: dict[str, Any]) -> str:
    return ", ".join(f"{value:g}" for value in side["best"])


if __name__ == "__main__":
    raise SystemExit(main())
