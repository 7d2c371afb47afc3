"""The sweep's leaderboard from cached features: two sets of photos, two networks, three layers each, every model.

The features are extracted to a temporary store before the clock starts. Then `icecore sweep` runs from the shell, one
process for each pair of photos and network, imports, winner, bundle and pages included: once with nothing kept, then
again, then with the quick pass deciding which one layer goes on. --plain also times what a script does for the linear
models alone: one GridSearchCV a layer and model, over the same settings and folds.

Goals: all leaderboards together in under two minutes on two cores; the second run computes no cell and gives the same
leaderboards, in under half the time of the first.

Needs folders SPLIT/LABEL/IMAGE below ASSETS/data, and weights in ASSETS/weights.

    python benchmarks/sweep.py [--assets FOLDER] [--plain] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_SECONDS, MOST_AGAIN = 120.0, 0.5
FOLDS = 5
NETWORKS = {
    "mobilenet_v2": ("mobilenet_v2_features.pth", ["features.6", "features.13", "features.18"]),
    "squeezenet1_1": ("squeezenet1_1.pth", ["features.5", "features.8", "features.12"]),
}
DATA = ("hymenoptera", "flowers")
PLAIN = ("logistic_regression", "linear_svm", "ridge")
"""Models that the plain side searches."""


def main() -> int:
    """Measure, print, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    assets = os.environ.get("ICECORE_TEST_ASSETS", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--assets", type=Path, default=Path(assets))
    parser.add_argument("--plain", action="store_true", help="also time GridSearchCV over the linear models")
    parser.add_argument("--check", action="store_true", help="end with 1 unless the goals are met")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.assets / "weights").is_dir():
        print(f"skipped: no weights and photos in {options.assets}; name their folder with --assets", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="sweep-") as name:
        folder = Path(name)
        pairs = [_extract(folder, options.assets, data, network) for data in DATA for network in NETWORKS]
        rows = [_row(folder, pair, plain=options.plain) for pair in pairs]
    total = {side: sum(row[side]["seconds"] for row in rows) for side in ("first", "again", "keep")}
    cpu = sum(row["first"]["cpu_seconds"] for row in rows)
    same = all(row["same"] and row["again"]["computed"] == 0 for row in rows)
    met = total["first"] <= MOST_SECONDS and total["again"] <= MOST_AGAIN * total["first"] and same
    if options.json:
        goals = {"seconds": MOST_SECONDS, "again": MOST_AGAIN}
        print(
            json.dumps(
                {
                    "goals": goals,
                    "met": met,
                    "total": total,
                    "cpu_seconds": cpu,
                    "load": os.getloadavg()[0],
                    "rows": rows,
                }
            )
        )
    else:
        for row in rows:
            print(_line(row))
        print(
            f"all: {total['first']:.1f} s ({cpu:.0f} s of processor time), again {total['again']:.1f} s, "
            f"with one layer kept {total['keep']:.1f} s; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {'goals met' if met else 'goals missed'}"
        )
    return int(options.check and not met)


def _extract(folder: Path, assets: Path, data: str, network: str) -> str:
    from icecore.extract import extract_images

    weights, layers = NETWORKS[network]
    name = f"{data}-{network}"
    extract_images(
        *(folder / "features", name, assets / "data" / data),
        backbone_name=network,
        weights=assets / "weights" / weights,
        layers=layers,
    )
    (folder / f"{name}.toml").write_text(f'store = "features"\nset = "{name}"\n[train]\nname = "{name}"\n')
    return name


def _row(folder: Path, pair: str, *, plain: bool) -> dict[str, Any]:
    first, again = (_sweep(folder, pair) for _ in range(2))
    keep = _sweep(folder, pair, f"train.name={pair}-keep", "sweep.keep=1")
    row = {"pair": pair, "first": _told(first), "again": _told(again), "keep": _told(keep)}
    row["same"] = all(first[key] == again[key] for key in ("cells", "quick"))
    row["same_winner"] = all(first["winner"][key] == keep["winner"][key] for key in ("columns", "model"))
    return {**row, "plain": _search_plainly(folder, pair) if plain else None}


def _sweep(folder: Path, pair: str, *overrides: str) -> dict[str, Any]:
    words = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-m", "icecore.cli", "sweep", f"{pair}.toml", "--json", *words]
    start, cpu = time.perf_counter(), _cpu_of_children()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    return {**json.loads(done.stdout.splitlines()[-1]), "wall": seconds, "cpu": _cpu_of_children() - cpu}


def _cpu_of_children() -> float:
    """Give the processor time of all that was run so far: it says how a busy machine would have done alone."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _told(outcome: dict[str, Any]) -> dict[str, Any]:
    winner = outcome["winner"]
    return {
        "seconds": outcome["wall"],
        "cpu_seconds": outcome["cpu"],
        "cells": len(outcome["cells"]),
        "computed": outcome["computed"],
        "searching": sum(cell["seconds"] for cell in outcome["cells"]) if outcome["computed"] else 0.0,
        "winner": f"{winner['model']} on {' + '.join(winner['columns'])}",
        "cv": winner["cv"]["mean"],
        "held_out": winner["held_out"]["accuracy"],
    }


def _search_plainly(folder: Path, pair: str) -> dict[str, Any]:
    """Time GridSearchCV over the linear models, as a script has it, all cores at work."""
    from icecore.store import FeatureStore
    from icecore.train import load_dataset
    from icecore.train.models import BuildOptions, model_spec
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seconds = 0.0
    with FeatureStore.open(folder / "features") as store:
        for column in store[pair].columns:
            X, y = load_dataset(store, pair, column.name).training()
            for model in PLAIN:
                spec = model_spec(model)
                estimator = make_pipeline(StandardScaler(), spec.build(BuildOptions()))
                grid = {f"{estimator.steps[-1][0]}__{spec.setting}": list(spec.grid)}
                folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
                start = time.perf_counter()
                GridSearchCV(estimator, grid, cv=folds, n_jobs=os.cpu_count()).fit(X, y)
                seconds += time.perf_counter() - start
    return {"seconds": seconds, "models": list(PLAIN)}


def _line(row: dict[str, Any]) -> str:
    first, again, keep = row["first"], row["again"], row["keep"]
    plain = f"; GridSearchCV, {len(PLAIN)} models alone: {row['plain']['seconds']:.1f} s" if row["plain"] else ""
    return (
        f"{row['pair']}: {first['cells']} cells in {first['seconds']:.1f} s ({first['searching']:.1f} s of searching), "
        f"again {again['seconds']:.1f} s, one layer kept {keep['seconds']:.1f} s "
        f"({'the same' if row['same_winner'] else 'another'} winner); "
        f"{first['winner']}: cv {first['cv']:.4f}, held-out {first['held_out']:.4f}{plain}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
