"""Decoding: images a second from file to resized crop, exact and fast, and what fast does to features and scores.

Speed: the bytes are in memory; each side gives the 3 x 224 x 224 pixels. Sides alternate, medians are told, with one
thread and with two. At 500x375 the photos are those of hymenoptera; at 12 megapixels they are collages of 64 flowers
side by side at their own size (real detail in every pixel), JPEG of quality 92 with 4:2:0 chroma.

- ``script``: Pillow and torchvision's transforms on the image, as a user writes it; the same pixels as exact
- ``simplejpeg``: decoded by it (where installed: ``pip install simplejpeg``), resized by Pillow; the same pixels
- ``tensor``: decoded by Pillow, resized as a uint8 tensor by torchvision; other pixels, see
  tests/extract/test_official_transforms.py

Features: the cosine to exact, on large photos: collages from 3x3 to 8x8, and single photos enlarged to 12 megapixels.
Scores: a logistic regression on hymenoptera as it is, of which few photos are large enough for fast to touch them, and
on every other one enlarged three times, two thirds of which it touches. Of flowers it touches none, which is told.

Goals: exact 0.9 of the script or more at both sizes, simplejpeg under 1.1 of exact (else take it), fast 1.5 of exact
at 12 megapixels and 0.9 at 500x375; worst cosine 0.999; no accuracy moves by more than 1.5 points.

    python benchmarks/decode_speed.py [--photos 60] [--large 6] [--rounds 5] [--part speed] [--json] [--check]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from icecore.extract import Preprocess, extract_images
from icecore.extract.decoding import decoder_versions
from icecore.extract.images import load_image
from icecore.extract.preprocess import LEAST_SCALE
from icecore.store import FeatureStore
from PIL import Image
from torchvision.transforms import functional
from torchvision.transforms.v2 import functional as tensors

NETWORKS = {
    "squeezenet1_1": ("squeezenet1_1.pth", "features.12"),
    "mobilenet_v2": ("mobilenet_v2_features.pth", "features.18"),
}
"""weights, and the layer whose average is compared"""
PARTS = ("speed", "cosines", "accuracy")
CELL = (500, 375)
GRIDS = (3, 4, 5, 6, 8)
EXACT, FAST = Preprocess(), Preprocess(decode="fast")

Side = Callable[[bytes], Any]


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if not (assets / "data" / "flowers").is_dir():
        print(f"skipped: real weights and photos are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    flowers = sorted((assets / "data" / "flowers").rglob("*.jpg"))
    np.random.default_rng(0).shuffle(flowers)
    facts: dict[str, Any] = {"decoder": decoder_versions()}
    if "speed" in options.part:
        facts["speed"] = _speed(assets, flowers, options)
    torch.set_num_threads(cores)
    with tempfile.TemporaryDirectory() as work:
        if "cosines" in options.part:
            facts["cosines"] = _cosines(Path(work), flowers, assets, options.large)
        if "accuracy" in options.part:
            facts["accuracy"] = _accuracy(Path(work), assets)
    return _report(facts, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=int, default=60, help="photos of 500x375")
    parser.add_argument("--large", type=int, default=6, help="photos of 12 megapixels, and of each kind of collage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append", help="what to measure; by default all")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    options.part = options.part or PARTS
    return options


# --- photos -----------------------------------------------------------------------------------------------------


def _collage(photos: list[Path], side: int, number: int) -> Image.Image:
    """Put ``side`` times ``side`` photos beside each other, hardly resized; each number takes others."""
    whole = Image.new("RGB", (side * CELL[0], side * CELL[1]))
    for place in range(side * side):
        with Image.open(photos[(number * side * side + place) % len(photos)]) as photo:
            scale = max(CELL[0] / photo.width, CELL[1] / photo.height)
            size = (max(CELL[0], round(photo.width * scale)), max(CELL[1], round(photo.height * scale)))
            cell = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS).crop((0, 0, *CELL))
        whole.paste(cell, (place % side * CELL[0], place // side * CELL[1]))
    return whole


def _size(photo: Path) -> tuple[int, int]:
    with Image.open(photo) as image:
        return image.size


def _enlarged(photo: Path, factor: float) -> Image.Image:
    with Image.open(photo) as image:
        size = (round(image.width * factor), round(image.height * factor))
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


# --- speed ------------------------------------------------------------------------------------------------------


def _script(data: bytes) -> torch.Tensor:
    image = functional.resize(Image.open(io.BytesIO(data)).convert("RGB"), [256])
    return functional.pil_to_tensor(functional.center_crop(image, [224]))


def _simplejpeg(data: bytes) -> torch.Tensor:
    import simplejpeg

    image = functional.resize(Image.fromarray(simplejpeg.decode_jpeg(data)), [256])
    return functional.pil_to_tensor(functional.center_crop(image, [224]))


def _tensor(data: bytes) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))  # (H, W, 3)
    resized = tensors.resize(pixels.permute(2, 0, 1), [256], antialias=True)
    return tensors.center_crop(resized, [224]).contiguous()


def _sides() -> dict[str, Side]:
    sides: dict[str, Side] = {
        "exact": lambda data: load_image(data, EXACT),
        "script": _script,
        "fast": lambda data: load_image(data, FAST),
        "tensor": _tensor,
    }
    return {**sides, "simplejpeg": _simplejpeg} if find_spec("simplejpeg") else sides


def _speed(assets: Path, flowers: list[Path], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    usual = [path for path in sorted((assets / "data" / "hymenoptera").rglob("*.jpg")) if _size(path) == CELL]
    files = {
        "500x375": [path.read_bytes() for path in usual[: options.photos]],
        "12 MP": [_jpeg(_collage(flowers, 8, n)) for n in range(options.large)],
    }
    pairs = itertools.product(files, (1, 2))
    return {f"{size}, {n} threads": _race(files[size], n, options.rounds) for size, n in pairs}


def _race(files: list[bytes], threads: int, rounds: int) -> dict[str, float]:
    """Give images a second of each side; the exact ones are held against each other first."""
    sides = _sides()
    for side in ("script", "simplejpeg"):
        if side in sides:
            assert all((np.asarray(sides[side](data)) == sides["exact"](data)).all() for data in files), side
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            for side, load in sides.items():
                began = time.perf_counter()
                for _ in pool.map(load, files):
                    pass
                seconds[side].append(time.perf_counter() - began)
    return {side: len(files) / statistics.median(measured) for side, measured in seconds.items()}


# --- features and scores ----------------------------------------------------------------------------------------


def _features(photos: Path, store: Path, network: str, assets: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """Give ids and features (n, D) as extraction gives them, exact, then fast."""
    weights, layer = NETWORKS[network]
    for decode in ("exact", "fast"):
        report = extract_images(
            store,
            f"{network}-{decode}",
            photos,
            backbone_name=network,
            weights=assets / "weights" / weights,
            layers=[layer],
            dtype="float32",
            device="cpu",
            compilation="never",
            extensions=[".jpg"],
            decode=decode,
        )
        assert not report.failures, report.failures
        with FeatureStore.open(store) as opened:
            ids, X = opened[report.set_name].matrix(layer)
            yield ids, np.array(X, np.float64)


def _write(folder: Path, images: Iterable[Image.Image]) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number:03}.jpg").write_bytes(_jpeg(image))
    return folder


def _cosines(work: Path, flowers: list[Path], assets: Path, count: int) -> dict[str, dict[str, float]]:
    found = {}
    for grid in (*GRIDS, None):
        kind = f"collage {grid}x{grid}" if grid else "enlarged to 12 MP"
        images = (_collage(flowers, grid, k) if grid else _enlarged(flowers[k], 8) for k in range(count))
        photos = _write(work / f"large-{grid}", images)
        for network in NETWORKS:
            (_, a), (_, b) = _features(photos, work / f"store-{grid}", network, assets)
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            found[f"{kind}, {network}"] = {"worst": float(cosines.min()), "median": float(np.median(cosines))}
    return found


def _accuracy(work: Path, assets: Path) -> dict[str, dict[str, float]]:
    folder, enlarged = assets / "data" / "hymenoptera", work / "enlarged"
    for path in sorted(folder.rglob("*.jpg"))[::2]:
        target = enlarged / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_jpeg(_enlarged(path, min(3.0, 4000 / max(_size(path))))))
    found = {}
    for name, photos in {"hymenoptera": folder, "enlarged": enlarged, "flowers": assets / "data" / "flowers"}.items():
        large = [min(_size(path)) >= 2 * LEAST_SCALE * FAST.resize for path in photos.rglob("*.jpg")]
        if not any(large):
            found[name] = {"touched": 0.0}
            continue
        for network in NETWORKS:
            (ids, exact), (_, fast) = _features(photos, work / f"store-{name}", network, assets)
            scores = {"exact": _score(ids, exact), "fast": _score(ids, fast), "crossed": _score(ids, exact, fast)}
            found[f"{name}, {network}"] = {**scores, "touched": float((exact != fast).any(axis=1).mean())}
    return found


def _score(ids: list[str], X: np.ndarray, held_out: np.ndarray | None = None) -> float:
    """Give the accuracy on ``val`` of a logistic regression learnt on ``train``, ids being SPLIT/LABEL/FILE.

    ``held_out`` gives the rows of ``val`` instead of ``X``: learnt on exact, asked for fast.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    split, labels = np.array([image_id.split("/")[:2] for image_id in ids]).T
    train, val = split == "train", split == "val"
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    model.fit(X[train], labels[train])
    return float(model.score((X if held_out is None else held_out)[val], labels[val]))


# --- report -----------------------------------------------------------------------------------------------------


def _goals(facts: dict[str, Any]) -> dict[str, bool]:
    goals = {}
    if "speed" in facts:
        small, large = (facts["speed"][f"{size}, 1 threads"] for size in ("500x375", "12 MP"))
        goals |= {
            "exact at 0.9 of the script or more": all(one["exact"] >= 0.9 * one["script"] for one in (small, large)),
            "simplejpeg under 1.1 of exact": all(
                one.get("simplejpeg", 0) < 1.1 * one["exact"] for one in (small, large)
            ),
            "fast at 1.5 of exact or more, 12 MP": large["fast"] >= 1.5 * large["exact"],
            "fast at 0.9 of exact or more, 500x375": small["fast"] >= 0.9 * small["exact"],
        }
    if "cosines" in facts:
        goals["worst cosine 0.999 or more"] = min(one["worst"] for one in facts["cosines"].values()) >= 0.999
    if "accuracy" in facts:
        scores = [one for one in facts["accuracy"].values() if "exact" in one]
        moved = max(abs(one["exact"] - one[way]) for one in scores for way in ("fast", "crossed"))
        goals["no accuracy moves by more than 1.5 points"] = moved <= 0.015
    return goals


def _report(facts: dict[str, Any], options: argparse.Namespace) -> int:
    goals = _goals(facts)
    if options.json:
        print(json.dumps({**facts, "goals": goals}))
        return 1 if options.check and not all(goals.values()) else 0
    print(", ".join(f"{name} {version}" for name, version in facts["decoder"].items()))
    for name, rates in facts.get("speed", {}).items():
        told = ", ".join(f"{side} {rate:.1f} ({rate / rates['exact']:.2f})" for side, rate in rates.items())
        print(f"  {name}, images/s (of exact): {told}")
    for name, cosines in facts.get("cosines", {}).items():
        print(f"  {name}: cosine worst {cosines['worst']:.5f}, median {cosines['median']:.5f}")
    for name, scores in facts.get("accuracy", {}).items():
        told = ", ".join(f"{way} {scores[way]:.4f}" for way in ("exact", "fast", "crossed") if way in scores)
        print(f"  {name}: fast touches {scores['touched']:.1%} of the photos; accuracy {told or 'the same'}")
    for goal, met in goals.items():
        print(f"  {'met   ' if met else 'MISSED'} {goal}")
    return 1 if options.check and not all(goals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
