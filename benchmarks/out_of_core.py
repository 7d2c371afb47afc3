"""Training out of core against training in memory: a matrix four times the memory limit, 60,000 rows x 2,048 float32.

The rows are made up: ten classes, noise with a falling spectrum, no negative values, as pooled maps have. Each run is a
process of its own that first trains on a small set, so that libraries are loaded; the peak is the largest resident
memory less what was resident then, file pages included. Out of core that is with the report, in memory without.

Goals, for logistic regression, the linear SVM and XGBoost: the peak out of core stays under the limit, and the held-out
accuracy is within 0.2 points of that in memory. The time ratio is told, and has no goal.

    python benchmarks/out_of_core.py [--rows 60000] [--width 2048] [--only xgboost] [--json] [--check]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, TIMES, POINTS = 10, 4, 0.002
GRIDS = {
    "logistic_regression": [0.01, 0.1, 1.0],
    "linear_svm": [1e-5, 1e-4],
    "xgboost": {"max_depth": [3], "n_estimators": [30]},
}


COMPONENTS = 256
"""Of XGBoost, on both sides: bins and histograms of 2,048 columns alone would not fit."""


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=2_048)
    parser.add_argument("--only", action="append", choices=list(GRIDS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        folder, model, limit = options.side
        print(json.dumps(_train(Path(folder), model, int(limit))))
        return 0
    size = options.rows * options.width * 4
    limit = size // TIMES
    found: dict[str, Any] = {"matrix_bytes": size, "limit_bytes": limit, "models": {}}
    missed = False
    with tempfile.TemporaryDirectory(prefix="out-of-core-") as work:
        write_rows(Path(work) / "small", 2_000, 64)
        write_rows(Path(work) / "large", options.rows, options.width)
        for model in options.only or GRIDS:
            inside, outside = (_spawn(Path(work), model, bytes_) for bytes_ in (0, limit))
            apart = abs(inside["accuracy"] - outside["accuracy"])
            found["models"][model] = {"in_memory": inside, "out_of_core": outside, "apart": apart}
            missed |= outside["peak_bytes"] >= limit or apart > POINTS
            if not options.json:
                _tell(model, inside, outside, limit)
    print(json.dumps(found) if options.json else f"matrix {size / 2**20:.0f} MiB, limit {limit / 2**20:.0f} MiB")
    return 1 if options.check and missed else 0


def write_rows(path: Path, rows: int, width: int) -> None:
    """Write a store of made-up rows, a fifth of them held out."""
    from icecore.store import Column, Contract, FeatureStore, Pooling, SourceImage

    rng = np.random.default_rng(0)
    spread = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((width, width), dtype=np.float32))[0]
    means = (0.12 * rng.standard_normal((CLASSES, width), dtype=np.float32) * spread) @ turn
    ids = sorted(f"{'val' if i % 5 == 0 else 'train'}/c{i // 5 % CLASSES}/{i:07}.jpg" for i in range(rows))
    contract = Contract(
        architecture="torchvision.models.resnet50",
        arguments={},
        weights="ab" * 32,
        preprocess=({"op": "resize", "size": 256},),
        decoder="pillow",
        views=("full",),
        precision="fp32",
    )
    column = Column("layer4", Pooling("avg"), width, "float32")
    with FeatureStore.create(path) as store, store.writer("made", contract, [column], source={}) as writer:
        for start in range(0, rows, 4_096):
            part = ids[start : start + 4_096]
            y = np.array([int(image.split("/")[1][1:]) for image in part])
            X = means[y] + (rng.standard_normal((len(part), width), dtype=np.float32) * spread) @ turn
            writer.append(
                [SourceImage(image, Path(image), 1, 1, 1) for image in part],
                [hashlib.sha256(image.encode()).digest() for image in part],
                {column: np.maximum(0.5 * X + 0.45, 0).astype(np.float32)},
            )


def _spawn(work: Path, model: str, limit: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", str(work), model, str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _train(work: Path, model: str, limit: int) -> dict[str, float]:
    """Train in this process and give what it took; a limit of 0 is none."""
    from icecore.train import Steps, train_models

    def train(name: str, memory: int | None) -> Any:
        steps = Steps(pca=COMPONENTS) if model == "xgboost" else Steps()
        return train_models(
            *(work / name, "made"),
            layers=["layer4"],
            models=[model],
            grids=GRIDS,
            steps=steps,
            memory=memory,
            report=memory is not None,
        )

    train("small", None)
    before = _resident()
    result = train("large", limit or None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cell = result.winner
    assert bool(limit) == any("out of core" in note for note in cell.notes)
    return {
        "peak_bytes": peak - before,
        "seconds": cell.seconds,
        "accuracy": cell.evaluation.accuracy,
        "cross_validated": cell.best.mean,
        "setting": cell.best.value,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * resource.getpagesize()


def _tell(model: str, inside: dict[str, float], outside: dict[str, float], limit: int) -> None:
    for side, run in (("in memory", inside), ("out of core", outside)):
        print(
            f"{model:20} {side:12} {run['seconds']:7.1f} s {run['peak_bytes'] / 2**20:7.0f} MiB "
            f"accuracy {run['accuracy']:.4f}, cross-validated {run['cross_validated']:.4f} at {run['setting']:g}"
        )
    apart = abs(inside["accuracy"] - outside["accuracy"])
    print(f"{'met   ' if outside['peak_bytes'] < limit else 'MISSED'} the peak is under {limit / 2**20:.0f} MiB")
    print(f"{'met   ' if apart <= POINTS else 'MISSED'} accuracies are {100 * apart:.2f} points apart")
    print(f"time: {outside['seconds'] / inside['seconds']:.1f} times that in memory", flush=True)


if __name__ == "__main__":
    sys.exit(main())
