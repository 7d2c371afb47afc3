"""How near an extraction comes to the limit that decoding and forwarding set: 1 / (1 / forward + 1 / decode).

On a CPU both share the cores, so that the time of the whole is at least the sum of theirs. All three are measured in
turn, in one process, on the same photos: decoding alone (files read, hashed, decoded, in batches), forwarding alone
(the same number of batches from memory), and the whole job from the plan to the last commit: a second of it, in which
canaries are forwarded and what was compiled is loaded, does not depend on the number of images. Medians are told. There
are 1,396 photos at hand; more are the same with other bytes behind their end.

Goals: the job, in the best precision of the machine and in fp32, reaches at least 0.95 of the limit. With 1 % of the
files unreadable it takes no more than 1.05 times as long for each image as without.

    python benchmarks/extract_limit.py [--model squeezenet1_1] [--images 400] [--rounds 3] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

MODELS = {
    "mobilenet_v2": (("features.6", "features.13", "features.18"), "mobilenet_v2_features.pth"),
    "squeezenet1_1": (("features.5", "features.8", "features.12"), "squeezenet1_1.pth"),
}
"""layers, and the file of weights"""
EVERY = 100
"""One file in so many cannot be read."""


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and a goal is missed."""
    options = _options()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if not (assets / "data" / "flowers").is_dir():
        print(f"skipped: real weights and photos are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    layers, weights = MODELS[options.model]
    with tempfile.TemporaryDirectory() as work:
        photos = _link_photos(assets / "data", Path(work), options.images)
        measured = _measure(options, Path(work), photos, assets / "weights" / weights, layers)
    return _report(measured, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=MODELS, default="squeezenet1_1")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    return parser.parse_args()


def _link_photos(data: Path, work: Path, count: int) -> tuple[Path, Path]:
    """Give a folder of photos, and one in which some of as many files cannot be read."""
    sound, spoilt = work / "sound", work / "spoilt"
    sound.mkdir()
    spoilt.mkdir()
    every = sorted(data.rglob("*.jpg"))
    for number in range(count):
        name, photo = f"{number:05}.jpg", every[number % len(every)]
        if number < len(every):
            (sound / name).symlink_to(photo)
        else:  # the same pixels under another hash: what follows the end of a JPEG file is not looked at
            (sound / name).write_bytes(photo.read_bytes() + f"{number}".encode())
        if number % EVERY == EVERY - 1:
            (spoilt / name).write_bytes(photo.read_bytes()[:500] + f"{number}".encode())
        else:
            (spoilt / name).symlink_to(sound / name)
    return sound, spoilt


def _measure(
    options: argparse.Namespace, work: Path, photos: tuple[Path, Path], weights: Path, layers: tuple[str, ...]
) -> dict[str, Any]:
    from icecore.extract import extract_images

    sound, spoilt = photos
    words: dict[str, Any] = {"backbone_name": options.model, "weights": weights, "layers": layers}
    store = work / "features"
    first = extract_images(store, "photos", sound, **words, precision=options.precision, compilation="always")
    rates: dict[str, list[float]] = {"decode": [], "forward": [], "whole": [], "spoilt": []}
    for _ in range(options.rounds):
        rates["decode"].append(_decode_only(sound, options.model, weights))
        rates["forward"].append(_forward_only(first, options, weights))
        for name, folder in (("whole", sound), ("spoilt", spoilt)):
            shutil.rmtree(store)
            report = extract_images(store, "photos", folder, **words, precision=first.precision, compilation="always")
            rates[name].append((report.forwarded + len(report.failures)) / report.seconds)
    return {"precision": first.precision, **{name: statistics.median(values) for name, values in rates.items()}}


def _decode_only(folder: Path, model: str, weights: Path) -> float:
    from icecore.extract import load_backbone
    from icecore.extract.devices import choose_device, default_batch_size
    from icecore.extract.pipeline import default_threads, read_batches
    from icecore.store import scan_folder

    preprocess = load_backbone(model, weights).preprocess
    size = default_batch_size(choose_device("cpu"))
    began, images = time.perf_counter(), 0
    for batch in read_batches(
        scan_folder(folder).images(), preprocess=preprocess, batch_size=size, threads=default_threads()
    ):
        images += len(batch.rows)
    return images / (time.perf_counter() - began)


def _forward_only(first: Any, options: argparse.Namespace, weights: Path) -> float:
    import numpy as np
    from icecore.extract import load_backbone
    from icecore.extract.devices import choose_device, default_batch_size
    from icecore.extract.trunk import Trunk

    backbone = load_backbone(options.model, weights)
    size = default_batch_size(choose_device("cpu"))
    trunk = Trunk(backbone, first.columns, precision=first.precision, batch_size=size, compilation="always")
    crop = backbone.preprocess.crop
    pixels = np.random.default_rng(0).integers(0, 256, (size, 3, crop, crop), dtype=np.uint8)
    passes = max(1, options.images // size)
    with closing(trunk):
        began = time.perf_counter()
        waiting = deque[Any]()
        for _ in range(passes):
            waiting.append(trunk.start(pixels))
            if len(waiting) > trunk.at_once:
                waiting.popleft()()
        for wait in waiting:
            wait()
        return passes * size / (time.perf_counter() - began)


def _report(measured: dict[str, Any], options: argparse.Namespace) -> int:
    limit = 1 / (1 / measured["forward"] + 1 / measured["decode"])
    share, slower = measured["whole"] / limit, measured["whole"] / measured["spoilt"]
    goals = {
        "at least 0.95 of the limit": share >= 0.95,
        "with 1 % unreadable at most 1.05 times as long": slower <= 1.05,
    }
    if options.json:
        print(json.dumps({"model": options.model, **measured, "limit": limit, "share": share, "goals": goals}))
    else:
        print(f"{options.model}, {measured['precision']}, {options.images} photos, medians of {options.rounds}, img/s:")
        told = {**{name: measured[name] for name in ("decode", "forward")}, "limit": limit, "whole": measured["whole"]}
        print("  " + " · ".join(f"{name} {rate:.1f}" for name, rate in told.items()), f"· share {share:.2f}")
        print(f"  with 1 % unreadable {measured['spoilt']:.1f}, {slower:.3f} of the time")
        for goal, met in goals.items():
            print(f"  {'met   ' if met else 'MISSED'} {goal}")
    return 1 if options.check and not all(goals.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
