"""Peak memory of an extraction of few and of many images; and a photo of 12 megapixels beside an icon of 32 pixels.

Each size runs in a process of its own. Images are small (48 pixels, a file each), so that 20,000 take half a minute and
what grows with their number is not hidden behind what one image takes.

Goal: the peak of 20,000 images is less than 1.05 times that of 1,000.

    python benchmarks/extract_memory.py [--few 1000] [--many 20000] [--json] [--check]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WEIGHTS = "squeezenet1_1.pth"


def main() -> int:
    """Measure and print; 1 when ``--check`` is given and the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=20_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    assets = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
    if not (assets / "weights" / WEIGHTS).is_file():
        print(f"skipped: real weights are not at {assets}; set ICECORE_TEST_ASSETS")
        return 0
    if options.folder:
        print(json.dumps(_extract(options.folder, assets / "weights" / WEIGHTS)))
        return 0
    with tempfile.TemporaryDirectory() as work:
        found = {count: _spawn(Path(work) / str(count), count) for count in (options.few, options.many)}
        mixed = _spawn(Path(work) / "mixed", 0)
    growth = found[options.many]["peak_mib"] / found[options.few]["peak_mib"]
    if options.json:
        print(json.dumps({"growth": growth, "mixed": mixed, **{str(count): run for count, run in found.items()}}))
    else:
        for name, run in (
            *((f"{count:,} images", run) for count, run in found.items()),
            ("12 MP and 32 pixels", mixed),
        ):
            print(f"{name:20} {run['forwarded']:6.0f} forwarded {run['seconds']:7.1f} s {run['peak_mib']:7.0f} MiB")
        print(f"{'met   ' if growth < 1.05 else 'MISSED'} the peak grows by less than 5 %: {growth:.3f}")
    return 1 if options.check and growth >= 1.05 else 0


def _spawn(folder: Path, count: int) -> dict[str, float]:
    (folder / "photos").mkdir(parents=True)
    noise = np.random.default_rng(0)
    if count == 0:
        for side, size in (("large", (4000, 3000)), ("icon", (32, 32))):
            Image.fromarray(noise.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(
                folder / "photos" / f"{side}.jpg"
            )
    plain = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(plain, "JPEG")
    for number in range(count):  # what follows the end of a JPEG is not looked at
        (folder / "photos" / f"{number:06}.jpg").write_bytes(plain.getvalue() + number.to_bytes(4, "big"))
    command = [sys.executable, __file__, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _extract(folder: Path, weights: Path) -> dict[str, float]:
    from icecore.extract import extract_images

    small = {"resize": 48, "crop": 48} if len(list((folder / "photos").iterdir())) > 2 else {}
    began = time.perf_counter()
    report = extract_images(
        folder / "features",
        "photos",
        folder / "photos",
        backbone_name="squeezenet1_1",
        weights=weights,
        layers=["features.5", "features.12"],
        preprocess_changes=small,
        compilation="never",
    )
    return {
        "forwarded": report.forwarded,
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    sys.exit(main())
