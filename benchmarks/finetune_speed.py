"""Fine-tuning against a plain PyTorch loop, on real photos: images a second of training epochs.

The plain side is what a good user writes: a DataLoader with workers, torchvision's transforms, channels_last, frozen
parameters without gradients, AdamW, the last layers of SqueezeNet and a new head, on the same images. Both sides train
the same layers with the same batch size; epochs alternate, and medians count. Ours runs twice: with new random views
in every epoch, and with two fixed views, whose frozen part is kept (its epochs after the first two, which compute it).

Goals: with the frozen prefix kept at least 1.5 times the plain loop; with new views never slower (0.95 or more, which
is what repeated runs differ by).

    python benchmarks/finetune_speed.py [--check] [--json FILE] [--device auto] [--images 300] [--epochs 5]

Photos and weights are those of ICECORE_TEST_ASSETS.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from icecore.extract import (
    Epoch,
    Preprocess,
    TrainingImage,
    TuningOptions,
    choose_device,
    finetune_backbone,
    load_backbone,
)
from icecore.extract.tuning_source import default_workers
from icecore.train import fit_head
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.transforms import v2

ASSETS = Path(os.environ.get("ICECORE_TEST_ASSETS", Path(__file__).resolve().parents[2] / "shared"))
WEIGHTS = ASSETS / "weights" / "squeezenet1_1.pth"
BATCH = 32
KEPT, NEW = 1.5, 0.95
"""Goals, as multiples of the plain loop."""


class Photos(Dataset[Any]):
    """What a user writes."""

    def __init__(self, rows: list[tuple[Path, int]]) -> None:
        self.rows = rows
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(224, scale=(0.5, 1.0), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        path, label = self.rows[row]
        with Image.open(path) as image:
            return self.transform(image.convert("RGB")), label


def plain(rows: list[tuple[Path, int]], epochs: int, device: torch.device) -> list[float]:
    """Give the seconds of each epoch of the plain loop."""
    network = models.squeezenet1_1()
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    network.classifier[1] = nn.Conv2d(512, 5, 1)
    network.requires_grad_(False)
    learned = [
        *network.features[11].parameters(),
        *network.features[12].parameters(),
        *network.classifier[1].parameters(),
    ]
    for parameter in learned:
        parameter.requires_grad_(True)
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(learned, lr=3e-4)
    loader = DataLoader(
        Photos(rows), BATCH, shuffle=True, num_workers=default_workers(device), persistent_workers=True,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    seconds = []
    for _ in range(epochs):
        began = time.monotonic()
        for images, labels in loader:
            inputs = images.to(device, memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(network(inputs), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.monotonic() - began)
    return seconds[1:]  # the first one starts the workers


def ours(rows: list[tuple[Path, int]], epochs: int, device: torch.device, views: int) -> list[float]:
    """Give the seconds of each epoch of ours, validation included."""
    images = [TrainingImage(f"{n}", path, label) for n, (path, label) in enumerate(rows)]
    seconds: list[float] = []

    def told(epoch: Epoch) -> None:
        seconds.append(epoch.seconds)

    warm = max(views, 1)
    options = TuningOptions(
        unfreeze=["features.11", "features.12"], epochs=epochs + warm, head_epochs=0, views=views, batch_size=BATCH,
        validation=0.05, patience=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        finetune_backbone(
            folder,
            "flowers",
            load_backbone("squeezenet1_1", WEIGHTS, preprocess=Preprocess()),
            images,
            classes=[str(label) for label in range(5)],
            options=options,
            start_head=fit_head,
            device=str(device),
            progress=told,
        )
    return seconds[1 + warm :]


def main() -> int:
    """Run all sides in turn and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=5, help="timed epochs of each side")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    if not WEIGHTS.is_file():
        print(f"skipped: no weights at {WEIGHTS}; set ICECORE_TEST_ASSETS")
        return 0
    device = choose_device(args.device)
    folders = sorted((ASSETS / "data" / "flowers" / "train").iterdir())
    each = args.images // len(folders)
    rows = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.jpg"))[:each]]
    found: dict[str, list[float]] = {"plain": [], "new views": [], "kept prefix": []}
    for _ in range(args.rounds):
        found["plain"] += plain(rows, args.epochs + 1, device)
        found["new views"] += ours(rows, args.epochs, device, 0)
        found["kept prefix"] += ours(rows, args.epochs, device, 2)
    rates = {name: len(rows) / statistics.median(seconds) for name, seconds in found.items()}
    print(
        f"{len(rows)} photos, squeezenet1_1, last two blocks, batches of {BATCH}, {device}, torch {torch.__version__}"
    )
    for name, rate in rates.items():
        print(f"{name:12} {rate:8.1f} images/s   {rate / rates['plain']:5.2f} times plain")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process {peak:.0f} MiB")
    goals = {"kept prefix": KEPT, "new views": NEW}
    missed = [name for name, goal in goals.items() if rates[name] / rates["plain"] < goal]
    for name, goal in goals.items():
        print(f"{'MISSED' if name in missed else 'met   '} {name}: at least {goal} times plain")
    if args.json:
        args.json.write_text(json.dumps({"images_per_second": rates, "peak_mib": peak, "missed": missed}))
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
