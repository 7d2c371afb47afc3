"""icecore against a plain DataLoader script, timm and thingsvision: the same photos, weights and layers, end to end.

Each side runs in a process of its own, alternating; medians are told. The clock starts after imports and ends when all
features are on disk: icecore in its store, the script in one .npy a layer. Features are compared too. icecore runs in
fp32 with its defaults, in fp32 compiled, and compiled in the precision that ``auto`` takes here. What it compiles is
kept, so that the first round, which compiles, is told apart from the others.

The script comes with 0 or 2 workers and batches of 64 or 4. timm (``features_only``, the ResNets) and thingsvision take
part where their own environments are named, in batches of 64 or 4.

Goals: features agree for every image and layer (cosine at least 0.99999 in fp32, 0.999 with auto); icecore with its
defaults is at least as fast as the best of the others, although it also hashes, records and syncs; compiled fp32 at
least 1.8 times as fast, auto 6 times (the latter is meant for processors with bf16 matrix units).

Weights: those that are at hand for mobilenet_v2 and squeezenet1_1; for the others random ones, which take as long.

    python benchmarks/race_extract.py [--model mobilenet_v2] [--images 200] [--rounds 3] [--json] [--check]
        [--timm PYTHON] [--thingsvision PYTHON]
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

MODELS = {
    "mobilenet_v2": (("features.6", "features.13", "features.18"), "mobilenet_v2_features.pth"),
    "squeezenet1_1": (("features.5", "features.8", "features.12"), "squeezenet1_1.pth"),
    "resnet18": (("layer1", "layer2", "layer3", "layer4"), None),
    "resnet50": (("layer1", "layer2", "layer3", "layer4"), None),
}
"""layers, and the file of weights where there is one"""
OURS = {
    "icecore": {},
    "icecore-compiled": {"compilation": "always"},
    "icecore-auto": {"compilation": "always", "precision": "auto"},
}
SIDES = (*OURS, "script-0-64", "script-2-64", "script-0-4", "script-2-4")
"""icecore by its options, and the script by workers and batch size"""
PEERS = ("timm", "thingsvision")
"""each by batch size, as ``peers/extract.py`` runs them"""

Run = dict[str, float]


def main() -> int:
    """Run the race and print it; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if options.side:
        print(json.dumps(_measure(options)))
        return 0
    if not (assets / "data" / "flowers").is_dir():
        print(f"skipped: real weights and photos are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    with tempfile.TemporaryDirectory() as work:
        options.weights = _weights(options.model, assets, Path(work))
        peers = [f"{peer}-{size}" for peer in PEERS if _takes_part(peer, options) for size in (64, 4)]
        runs: dict[str, list[Run]] = {side: [] for side in (*SIDES, *peers)}
        for number in range(options.rounds):
            for side in runs:
                folder = Path(work) / side
                folder.mkdir(exist_ok=True)
                if number == 0:
                    _link_photos(assets / "data" / "flowers", folder / "photos", options.images)
                runs[side].append(_spawn(side, folder, options))
        plain = Path(work) / "script-0-64"
        layers = MODELS[options.model][0]
        cosines = {side: _worst_cosine(Path(work) / side, plain, layers) for side in (*OURS, *peers)}
    return _report(runs, cosines, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=MODELS, default="mobilenet_v2")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    for peer in PEERS:
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter of an environment that has {peer}")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _link_photos(source: Path, target: Path, count: int) -> None:
    target.mkdir()
    for photo in sorted(source.rglob("*.jpg"))[:count]:
        (target / f"{photo.parent.name}-{photo.name}").symlink_to(photo)


def _weights(model: str, assets: Path, work: Path) -> Path:
    import torch
    import torchvision

    name = MODELS[model][1]
    if name is not None:
        return assets / "weights" / name
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(model, weights=None).state_dict(), work / f"{model}.pth")
    return work / f"{model}.pth"


def _takes_part(peer: str, options: argparse.Namespace) -> bool:
    return getattr(options, peer) is not None and (peer != "timm" or options.model.startswith("resnet"))


def _spawn(side: str, folder: Path, options: argparse.Namespace) -> Run:
    if side in SIDES:
        command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    else:
        peer, size = side.split("-")
        command = [getattr(options, peer), str(Path(__file__).parent / "peers" / "extract.py"), peer, str(folder)]
        command += ["--batch-size", size, "--layers", *MODELS[options.model][0]]
    command += ["--model", options.model, "--weights", str(options.weights)]
    cache = {**os.environ, "ICECORE_CACHE": str(folder / "cache")}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=cache)
    result: Run = json.loads(done.stdout.splitlines()[-1])
    return result


def _measure(options: argparse.Namespace) -> Run:
    """Extract once; give seconds, peak memory (of the process and of its largest worker) and bytes written."""
    import shutil

    import torch
    import torchvision  # noqa: F401  (imports are not timed)

    side, folder, layers = options.side, options.folder, MODELS[options.model][0]
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if side in OURS:
        from icecore.extract import extract_images, load_backbone

        load_backbone(options.model, options.weights)  # imports the rest of the room
        began = time.perf_counter()
        extract_images(
            out,
            "photos",
            folder / "photos",
            backbone_name=options.model,
            weights=options.weights,
            layers=layers,
            dtype="float32",
            **OURS[side],
        )
    else:
        began = time.perf_counter()
        with torch.inference_mode():
            _plain_script(options, out, layers, *map(int, side.split("-")[1:]))
    seconds = time.perf_counter() - began
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "seconds": seconds,
        "peak_mib": peak / 1024,
        "bytes": sum(p.stat().st_size for p in out.rglob("*") if p.is_file()),
    }


def _plain_script(
    options: argparse.Namespace, out: Path, layers: tuple[str, ...], workers: int, batch_size: int
) -> None:
    """What a good user writes: a Dataset, a DataLoader, create_feature_extractor, mean over the positions."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.models import get_model, get_model_weights
    from torchvision.models.feature_extraction import create_feature_extractor

    class Photos(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            self.paths = sorted((options.folder / "photos").iterdir())
            self.transform = get_model_weights(options.model)["IMAGENET1K_V1"].transforms()

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            tensor: torch.Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
            return tensor

    net = get_model(options.model)
    net.load_state_dict(torch.load(options.weights, weights_only=True), strict=False)
    trunk = create_feature_extractor(net.eval(), list(layers))
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    for batch in DataLoader(Photos(), batch_size=batch_size, num_workers=workers):  # (B, 3, 224, 224)
        for layer, maps in trunk(batch).items():
            found[layer].append(maps.mean((2, 3)).numpy())
    out.mkdir()
    for layer, parts in found.items():
        np.save(out / f"{layer}.npy", np.concatenate(parts))


def _worst_cosine(ours: Path, theirs: Path, layers: tuple[str, ...]) -> float:
    from icecore.store import FeatureStore

    worst = 1.0
    for layer in layers:
        if (ours / "out" / "catalog.sqlite").exists():
            with FeatureStore.open(ours / "out") as store:
                a = store["photos"].matrix(layer).X.astype(np.float64)
        else:
            a = np.load(ours / "out" / f"{layer}.npy").astype(np.float64)
        b = np.load(theirs / "out" / f"{layer}.npy")
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b.astype(np.float64), axis=1)
        worst = min(worst, float(cosines.min()))
    return worst


def _report(runs: dict[str, list[Run]], cosines: dict[str, float], options: argparse.Namespace) -> int:
    steady = {side: measured[1:] or measured for side, measured in runs.items()}  # the first round compiles
    medians = {
        side: {key: statistics.median(run[key] for run in measured) for key in measured[0]}
        for side, measured in steady.items()
    }
    best = min(m["seconds"] for side, m in medians.items() if side not in OURS)
    ratios = {side: best / medians[side]["seconds"] for side in OURS}
    goals = {
        "fp32 features agree": min(c for side, c in cosines.items() if side != "icecore-auto") >= 0.99999,
        "auto features agree": cosines["icecore-auto"] >= 0.999,
        "defaults at least as fast as the best other": ratios["icecore"] >= 1.0,
        "compiled fp32 at least 1.8 times the best other": ratios["icecore-compiled"] >= 1.8,
        "auto at least 6 times the best other": ratios["icecore-auto"] >= 6.0,
    }
    first = {side: runs[side][0]["seconds"] for side in OURS}
    if options.json:
        facts = {"model": options.model, "images": options.images, "medians": medians, "first": first}
        print(json.dumps({**facts, "ratios": ratios, "cosines": cosines, "goals": goals}))
    else:
        layers = len(MODELS[options.model][0])
        print(f"{options.model}, {layers} layers, {options.images} photos, medians of {len(steady['icecore'])}")
        for side, m in medians.items():
            rate = options.images / m["seconds"]
            sizes = f"{m['peak_mib']:7.0f} MiB {m['bytes']:12,.0f} bytes"
            told = (
                f"  {ratios[side]:.2f} x, first run {first[side]:.1f} s, cosine {cosines[side]:.7f}"
                if side in OURS
                else ""
            )
            print(f"  {side:17} {m['seconds']:7.2f} s {rate:7.1f} img/s {sizes}{told}")
        for goal, met in goals.items():
            print(f"  {'met   ' if met else 'MISSED'} {goal}")
    return 1 if options.check and not all(goals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
