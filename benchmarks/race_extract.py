"""icecore against a plain DataLoader script: the same photos, weights, layers and fp32 arithmetic, end to end.

Each side runs in a process of its own, alternating; medians are told. The clock starts after imports and ends when all
features are on disk: icecore in its store, the script in one .npy a layer. Features are compared too.

Goals: features agree (cosine at least 0.99999 for every image and layer), and icecore is at least as fast as the best
of the script with 0 or 2 workers and batches of 64 or 4, although it also hashes, records and syncs.

    python benchmarks/race_extract.py [--images 200] [--rounds 3] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LAYERS = ("features.6", "features.13", "features.18")
SIDES = ("icecore", "script-0-64", "script-2-64", "script-0-4", "script-2-4")
"""icecore with its defaults, and the script by workers and batch size"""

Run = dict[str, float]


def main() -> int:
    """Run the race and print it; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    weights = assets / "weights" / "mobilenet_v2_features.pth"
    if not weights.is_file():
        print(f"skipped: real weights and photos are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    if options.side:
        print(json.dumps(_measure(options.side, options.folder, weights)))
        return 0
    with tempfile.TemporaryDirectory() as work:
        runs: dict[str, list[Run]] = {side: [] for side in SIDES}
        for number in range(options.rounds):
            for side in SIDES:
                folder = Path(work) / side
                folder.mkdir(exist_ok=True)
                if number == 0:
                    _link_photos(assets / "data" / "flowers", folder / "photos", options.images)
                runs[side].append(_spawn(side, folder))
        cosine = _worst_cosine(Path(work) / "icecore", Path(work) / "script-0-64")
    return _report(runs, cosine, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _link_photos(source: Path, target: Path, count: int) -> None:
    target.mkdir()
    for photo in sorted(source.rglob("*.jpg"))[:count]:
        (target / f"{photo.parent.name}-{photo.name}").symlink_to(photo)


def _spawn(side: str, folder: Path) -> Run:
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(side: str, folder: Path, weights: Path) -> Run:
    """Extract once; give seconds, peak memory (of the process and of its largest worker) and bytes written."""
    import shutil

    import torch
    import torchvision  # noqa: F401  (imports are not timed)

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if side == "icecore":
        from icecore.extract import extract_images, load_backbone

        load_backbone("mobilenet_v2", weights)  # imports the rest of the room
        began = time.perf_counter()
        extract_images(
            out,
            "photos",
            folder / "photos",
            backbone_name="mobilenet_v2",
            weights=weights,
            layers=LAYERS,
            dtype="float32",
        )
    else:
        began = time.perf_counter()
        with torch.inference_mode():
            _plain_script(folder / "photos", out, weights, *map(int, side.split("-")[1:]))
    seconds = time.perf_counter() - began
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": seconds,
        "peak_mib": peak / 1024,
        "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    }


def _plain_script(photos: Path, out: Path, weights: Path, workers: int, batch_size: int) -> None:
    """What a good user writes: a Dataset, a DataLoader, create_feature_extractor, mean over the positions."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
    from torchvision.models.feature_extraction import create_feature_extractor

    class Photos(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.paths = sorted(photos.iterdir())
            self.transform = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            tensor: torch.Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
            return tensor

    net = mobilenet_v2()
    net.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    trunk = create_feature_extractor(net.eval(), list(LAYERS))
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in LAYERS}
    for batch in DataLoader(Photos(), batch_size=batch_size, num_workers=workers):  # (B, 3, 224, 224)
        for layer, maps in trunk(batch).items():
            found[layer].append(maps.mean((2, 3)).numpy())
    out.mkdir()
    for layer, parts in found.items():
        np.save(out / f"{layer}.npy", np.concatenate(parts))


def _worst_cosine(ours: Path, theirs: Path) -> float:
    from icecore.store import FeatureStore

    worst = 1.0
    with FeatureStore.open(ours / "out") as store:
        for layer in LAYERS:
            a, b = store["photos"].matrix(layer).X.astype(np.float64), np.load(theirs / "out" / f"{layer}.npy")
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b.astype(np.float64), axis=1)
            worst = min(worst, float(cosines.min()))
    return worst


def _report(runs: dict[str, list[Run]], cosine: float, options: argparse.Namespace) -> int:
    medians = {
        side: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for side, measured in runs.items()
    }
    best = min(m["seconds"] for side, m in medians.items() if side != "icecore")
    ratio = best / medians["icecore"]["seconds"]
    goals = {"features agree": cosine >= 0.99999, "at least as fast as the best script": ratio >= 1.0}
    if options.json:
        print(
            json.dumps({"images": options.images, "medians": medians, "ratio": ratio, "cosine": cosine, "goals": goals})
        )
    else:
        print(f"mobilenet_v2, {len(LAYERS)} layers, {options.images} photos, fp32, medians of {options.rounds}")
        for side, m in medians.items():
            rate = options.images / m["seconds"]
            sizes = f"{m['peak_mib']:7.0f} MiB {m['bytes']:12,.0f} bytes"
            print(f"  {side:11} {m['seconds']:7.2f} s {rate:7.1f} img/s {sizes}")
        print(f"  icecore is {ratio:.2f} times as fast as the best script; worst cosine {cosine:.7f}")
        for goal, met in goals.items():
            print(f"  {'met   ' if met else 'MISSED'} {goal}")
    return 1 if options.check and not all(goals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
