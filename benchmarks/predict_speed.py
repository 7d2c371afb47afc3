"""Images a second of `icecore predict` from files, beside `icecore extract` of the same files; and of a second run.

Extraction is what a prediction cannot do without: reading, decoding, the network. What predict adds (scoring, keeping
what was scored, the file) must hide behind it. Each run is a process of its own; extraction and prediction take turns,
and what a run of few photos takes is taken off both, so that imports do not count. Processor time is told too: it says
the same on a machine that others use. The second prediction has nothing to do.

Goals: predict reaches 0.9 of extract's images a second; a run with nothing to do takes less than one of few photos.

    python benchmarks/predict_speed.py [--copies 2] [--rounds 2] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = """
store = "{store}"
set = "photos"
[source]
folder = "{photos}"
[backbone]
name = "squeezenet1_1"
weights = "{weights}"
layers = ["features.12"]
[compute]
device = "cpu"
batch_size = 4
compilation = "auto"
[train]
models = ["logistic_regression"]
folds = 3
report = false
"""


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--copies", type=int, default=2, help="of each of 398 photos, each another file")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if not (assets / "weights" / "squeezenet1_1.pth").is_file():
        print(f"skipped: real weights are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    with tempfile.TemporaryDirectory() as work:
        found = _measure(Path(work), assets, copies=options.copies, rounds=options.rounds)
    goals = {
        "at_least_0.9_of_extract": found["ratio"] >= 0.9,
        "no_op_below_few_photos": found["no_op_s"] < found["few_s"],
    }
    if options.json:
        print(json.dumps({**found, "goals": goals}))
    else:
        print(f"{found['images']} photos, squeezenet1_1, medians of {options.rounds} rounds, start-up left out")
        print(f"extract        {found['extract']:7.1f} images/s")
        print(f"predict        {found['predict']:7.1f} images/s   {found['ratio']:.2f} of extract")
        print(f"  with start-up: extract {found['extract_s']:.1f} s, predict {found['predict_s']:.1f} s")
        print(f"  processor time a photo: {found['cpu_ratio']:.2f} of extract's images for the same time")
        print(f"nothing to do  {found['no_op_s']:7.1f} s; few photos {found['few_s']:.1f} s")
        for name, met in goals.items():
            print(f"{'met   ' if met else 'MISSED'} {name}")
    return 1 if options.check and not all(goals.values()) else 0


def _measure(work: Path, assets: Path, *, copies: int, rounds: int) -> dict[str, float]:
    images = _copy_photos(assets / "data" / "hymenoptera", work / "photos", copies)
    few = work / "few"
    for folder in sorted((work / "photos").glob("*/*")):  # what start-up costs is measured on these
        (few / folder.relative_to(work / "photos")).mkdir(parents=True)
        for photo in sorted(folder.iterdir())[:8]:
            shutil.copy(photo, few / photo.relative_to(work / "photos"))
    config = _config(work / "train.toml", work / "trained", work / "photos", assets)
    _run("extract", config)  # also compiles the network, where that pays
    _run("train", config)
    (bundle,) = (work / "trained" / "models" / "default").iterdir()
    names = ("extract", "predict", "extract_few", "predict_few", "no_op")
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for kind, photos in (("_few", few), ("", work / "photos")):
            fresh = _config(work / f"{number}{kind}.toml", work / f"store-{number}{kind}", photos, assets)
            times[f"extract{kind}"].append(_run("extract", fresh))
            out = work / f"{number}{kind}.csv"
            words = ("predict", bundle, photos, "--out", out, "--device", "cpu", "--batch-size", "4")
            times[f"predict{kind}"].append(_run(*words))
        times["no_op"].append(_run(*words))
    median = {name: statistics.median(wall for wall, _ in values) for name, values in times.items()}
    work_of = {name: statistics.median(cpu for _, cpu in values) for name, values in times.items()}
    done = images - sum(1 for _ in few.rglob("*.jpg"))
    rate = {name: done / (median[name] - median[f"{name}_few"]) for name in ("extract", "predict")}
    cpu = {name: work_of[name] - work_of[f"{name}_few"] for name in ("extract", "predict")}
    return {
        "images": images,
        **rate,
        "ratio": rate["predict"] / rate["extract"],
        "extract_s": median["extract"],
        "predict_s": median["predict"],
        "no_op_s": median["no_op"],
        "few_s": median["predict_few"],
        "cpu_ratio": cpu["extract"] / cpu["predict"],
    }


def _config(path: Path, store: Path, photos: Path, assets: Path) -> Path:
    path.write_text(CONFIG.format(store=store, photos=photos, weights=assets / "weights" / "squeezenet1_1.pth"))
    return path


def _copy_photos(source: Path, target: Path, copies: int) -> int:
    count = 0
    for photo in sorted(source.glob("*/*/*.jpg")):
        folder = target / photo.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(copies):  # what follows the end of a JPEG is not looked at
            (folder / f"{photo.stem}-{number}.jpg").write_bytes(photo.read_bytes() + bytes([number]))
            count += 1
    return count


def _run(*words: object) -> tuple[float, float]:
    """Run a command; give its wall time and its processor time, seconds."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-m", "icecore.cli", *map(str, words)], check=True, capture_output=True)
    took, after = time.perf_counter() - began, os.times()
    return took, after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    sys.exit(main())
