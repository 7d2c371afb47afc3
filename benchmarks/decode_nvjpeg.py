"""Decoding on a GPU: images a second from file to resized crop, nvJPEG against exact with all processors.

The bytes are in memory; each side gives the 3 x 224 x 224 pixels to as many threads as a run has by default. Sides
alternate, medians are told. The photos are those of ``decode_speed.py``: 500x375, and collages of 12 megapixels. It
also tells how many files the device decoded itself. Without a CUDA device there is nothing to measure, and it says so.

Goal: nvJPEG as fast as exact or faster at both sizes (with many processors beside a slow GPU it need not be).

    python benchmarks/decode_nvjpeg.py [--photos 400] [--large 24] [--rounds 5] [--json] [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode_speed import CELL, EXACT, _collage, _jpeg, _size
from icecore.extract import DeviceError, Preprocess
from icecore.extract.images import load_image
from icecore.extract.loaders import decoder_words, open_loader
from icecore.extract.pipeline import default_threads

NVJPEG = Preprocess(decode="nvjpeg")


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=int, default=400, help="photos of 500x375, some of them more than once")
    parser.add_argument("--large", type=int, default=24, help="photos of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if not torch.cuda.is_available():
        print("skipped: torch finds no CUDA device here, and nvJPEG decodes on one")
        return 0
    if not (assets / "data" / "flowers").is_dir():
        print(f"skipped: real photos are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    flowers = sorted((assets / "data" / "flowers").rglob("*.jpg"))
    np.random.default_rng(0).shuffle(flowers)
    usual = [
        path.read_bytes() for path in sorted((assets / "data" / "hymenoptera").rglob("*.jpg")) if _size(path) == CELL
    ]
    files = {
        "500x375": list(islice(cycle(usual), options.photos)),
        "12 MP": [_jpeg(_collage(flowers, 8, n)) for n in range(options.large)],
    }
    try:
        found = {size: _race(data, options.rounds) for size, data in files.items()}
    except DeviceError as exc:
        print(f"failed: {exc}")
        return 1
    goal = all(one["nvjpeg"] >= one["exact"] for one in found.values())
    if options.json:
        print(
            json.dumps({"decoder": decoder_words(NVJPEG), "speed": found, "goals": {"nvjpeg as fast as exact": goal}})
        )
        return 1 if options.check and not goal else 0
    print(f"{decoder_words(NVJPEG)}, {torch.cuda.get_device_name()}")
    for size, one in found.items():
        threads = f"{default_threads()} and {default_threads('nvjpeg')} threads"
        rates = f"exact {one['exact']:.0f} images/s, nvjpeg {one['nvjpeg']:.0f} ({one['nvjpeg'] / one['exact']:.2f})"
        print(f"  {size}, {threads}: {rates}; {one['by_device']:.1%} of the files decoded by the device")
    print(f"  {'met   ' if goal else 'MISSED'} nvjpeg as fast as exact or faster")
    return 1 if options.check and not goal else 0


def _race(files: list[bytes], rounds: int) -> dict[str, float]:
    """Give images a second of each side, after a round that does not count, and what share the device decoded."""
    seconds: dict[str, list[float]] = {"exact": [], "nvjpeg": []}
    with closing(open_loader(NVJPEG, device="cuda:0")) as loader:
        sides: dict[str, tuple[int, Callable[[bytes], Any]]] = {
            "exact": (default_threads(), lambda data: load_image(data, EXACT)),
            "nvjpeg": (default_threads("nvjpeg"), loader.load),
        }
        for _ in range(rounds + 1):
            for side, (threads, load) in sides.items():
                with ThreadPoolExecutor(threads) as pool:
                    began = time.perf_counter()
                    for _ in pool.map(load, files):
                        pass
                    seconds[side].append(time.perf_counter() - began)
        counts = loader.counts
    rates = {side: len(files) / statistics.median(measured[1:]) for side, measured in seconds.items()}
    return {**rates, "by_device": counts["device"] / sum(counts.values())}


if __name__ == "__main__":
    sys.exit(main())
