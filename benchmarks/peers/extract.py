"""One side of ``race_extract.py`` in an environment of its own: timm or thingsvision. Knows nothing of icecore.

Both get the photos, weights, preprocessing and layers of the race, keep a batch in memory, and write one .npy a layer.

    PYTHON peers/extract.py timm FOLDER --model resnet18 --weights FILE --layers layer1 layer2 --batch-size 4
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Photos(Dataset[torch.Tensor]):
    """Photos of a folder in the order of their names, as the weights' transforms make them."""

    def __init__(self, folder: Path, transform: Any) -> None:
        self.paths, self.transform = sorted(folder.iterdir()), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return tensor


def main() -> int:
    """Extract once; print seconds, peak memory in MiB and bytes written as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--layers", nargs="+", required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()
    list(PEERS[options.peer](options, warm=True))  # imports are not timed
    out = options.folder / "out"
    out.mkdir(exist_ok=True)
    began = time.perf_counter()
    found: dict[str, list[np.ndarray]] = {layer: [] for layer in options.layers}
    with torch.inference_mode(), redirect_stdout(StringIO()):  # thingsvision tells every layer of every batch
        for maps in PEERS[options.peer](options):
            for layer, values in zip(options.layers, maps, strict=True):
                found[layer].append(values.mean((2, 3)).numpy())
    for layer, parts in found.items():
        np.save(out / f"{layer}.npy", np.concatenate(parts))
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "bytes": sum(p.stat().st_size for p in out.iterdir())}))
    return 0


def _timm(options: argparse.Namespace, *, warm: bool = False) -> Iterator[list[torch.Tensor]]:
    import timm

    if warm:
        return
    transform = torchvision.models.get_model_weights(options.model)["IMAGENET1K_V1"].transforms()
    net = timm.create_model(options.model, features_only=True, out_indices=tuple(range(1, len(options.layers) + 1)))
    net.load_state_dict(torch.load(options.weights, weights_only=True), strict=False)
    net.eval()
    for batch in DataLoader(Photos(options.folder / "photos", transform), batch_size=options.batch_size):
        yield net(batch)


def _thingsvision(options: argparse.Namespace, *, warm: bool = False) -> Iterator[list[torch.Tensor]]:
    from thingsvision import get_extractor_from_model
    from thingsvision.utils.data import DataLoader as Batches
    from thingsvision.utils.data import ImageDataset

    if warm:
        return
    transform = torchvision.models.get_model_weights(options.model)["IMAGENET1K_V1"].transforms()
    net = torchvision.models.get_model(options.model)
    net.load_state_dict(torch.load(options.weights, weights_only=True), strict=False)
    extractor = get_extractor_from_model(net.eval(), "cpu", "pt")
    photos = ImageDataset(
        root=str(options.folder / "photos"), out_path=str(options.folder / "names"), backend="pt", transforms=transform
    )
    for batch in Batches(photos, batch_size=options.batch_size, backend="pt"):
        maps = extractor.extract_features([batch], module_names=options.layers, output_type="tensor")
        yield [maps[layer] for layer in options.layers]


PEERS = {"timm": _timm, "thingsvision": _thingsvision}

if __name__ == "__main__":
    sys.exit(main())
