"""``icecore demo``: the whole job on data that it brings itself, in under two minutes on two cores.

A network is pretrained on the digits 0 to 4 (the source task) and frozen; classifiers on its layers then learn 5 to 9
(the target task), by the same commands and the same config file that a user would write.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .app import command as make_command
from .app import echo, progress_bar
from .exits import Exit, Outcome

if TYPE_CHECKING:
    from icecore.train import TrainResult

    from .config import ExtractConfig

__all__ = ["command"]

SOURCE_CLASSES = 5
"""Digits below this are the source task, the others the target task."""
HELD_OUT_EVERY = 4
"""Of the target task every fourth image is held out."""
EPOCHS = 4
MARK = ".icecore-demo"
"""Holds the sha256 of the demo.toml that was written: a later release writes another one, a user may change it."""
MADE = frozenset({MARK, "demo.toml", "features", "report.html", "source", "source.safetensors", "target"})
"""What a demo makes in its folder, and makes anew; a folder that holds more is not only a demo's."""


@make_command(example="icecore demo demo")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="demo")
def demo(folder: Path) -> Outcome:
    """Run the whole job in FOLDER: digits -> pretrained network -> features -> classifiers -> report.

    FOLDER keeps everything, demo.toml included, and is made anew the next time; one that holds something else is
    refused.
    """
    from .config import ExtractConfig, TrainConfig, load_config
    from .extract import extract_from_config
    from .train import train_from_config

    _prepare(folder)
    clock = _Clock()
    with clock.step("write scikit-learn's 1,797 digits as PNG files"):
        source = _write_digits(folder)
    with clock.step(f"pretrain resnet18 on the {len(source)} images of 0 to 4, then freeze it"):
        told = _pretrain(folder, source, load_config(ExtractConfig, folder / "demo.toml"))
    echo(told)
    config = folder / "demo.toml"
    with clock.step("extract four layers of every image of 5 to 9 into HDF5"):
        extracted = extract_from_config(load_config(ExtractConfig, config), folder, command="icecore demo")
    echo(f"      {extracted.forwarded} images forwarded, {extracted.images_per_second:.0f} a second")
    with clock.step("extract again: nothing has changed"):
        again = extract_from_config(load_config(ExtractConfig, config), folder, command="icecore demo")
    echo(f"      {again.forwarded} images forwarded")
    with clock.step("train three classifiers on each layer"):
        result = train_from_config(load_config(TrainConfig, config))
    assert result.report is not None  # the demo's config asks for one
    page = folder / "report.html"
    shutil.copyfile(result.report, page)
    data = {
        "forwarded": extracted.forwarded,
        "forwarded_again": again.forwarded,
        "seconds": clock.seconds,
        **result.to_json(),
    }
    return Outcome(Exit.DONE, {**data, "report": str(page)}, _summary(folder, page, result, clock))


def _prepare(folder: Path) -> None:
    """Remove what an earlier demo made, and write the demo's config; refuse a folder that is not a demo's."""
    config = resources.files("icecore.configs").joinpath("demo.toml").read_bytes()
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if found and ("demo.toml" not in found or found - MADE):
        shown = ", ".join(sorted(found - MADE)[:5]) or "no demo.toml"
        raise click.UsageError(f"{folder}: holds something else than a demo ({shown}); name another folder")
    if found and not _is_as_written(folder):
        raise click.UsageError(f"{folder}: its demo.toml was changed; move it away, or name another folder")
    for path in sorted(folder.iterdir() if found else (), key=lambda path: path.name in (MARK, "demo.toml")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # demo.toml last: it says that all this is a demo's
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(hashlib.sha256(config).hexdigest(), "ascii")
    (folder / "demo.toml").write_bytes(config)


def _is_as_written(folder: Path) -> bool:
    mark = folder / MARK
    return (
        mark.is_file() and mark.read_bytes() == hashlib.sha256((folder / "demo.toml").read_bytes()).hexdigest().encode()
    )


def _write_digits(folder: Path) -> list[tuple[Path, int]]:
    """Write ``source/DIGIT/*.png`` and ``target/{train,val}/DIGIT/*.png``; give the source images and classes."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    source: list[tuple[Path, int]] = []
    seen = [0] * 10
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        if digit < SOURCE_CLASSES:
            path = folder / "source" / str(digit) / f"{number:04}.png"
            source.append((path, digit))
        else:
            side = "val" if seen[digit] % HELD_OUT_EVERY == 0 else "train"
            path = folder / "target" / side / str(digit) / f"{number:04}.png"
        seen[digit] += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype(np.uint8)).save(path)
    return source


def _pretrain(folder: Path, source: list[tuple[Path, int]], config: ExtractConfig) -> str:
    from icecore.extract import Preprocess, pretrain

    from .extract import local_path

    weights = local_path(config.backbone.weights, folder)
    assert isinstance(weights, Path)  # the demo's config names a file
    images, classes = zip(*source, strict=True)
    with progress_bar("pretrain", unit="epoch") as progress:
        report = pretrain(
            config.backbone.name,
            images,
            classes,
            weights,
            preprocess=Preprocess().changed(config.preprocess.changes()),
            epochs=EPOCHS,
            progress=lambda epoch: progress(epoch.epoch, epoch.epochs),
        )
    return f"      source task: {report.accuracy:.1%} of its validation images right"


class _Clock:
    """Announces steps, and keeps the time that each took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        echo(f"[{len(self.seconds) + 1}/5] {what}")
        began = time.monotonic()
        yield
        self.seconds[what] = round(time.monotonic() - began, 2)


def _summary(folder: Path, page: Path, result: TrainResult, clock: _Clock) -> str:
    from .train import leaderboard

    winner, features = result.winner, folder / "features"
    example = next((folder / "target" / "val").glob("*/*.png")).parent
    scores = f"held-out accuracy {winner.evaluation.accuracy:.4f} (majority class {result.baseline.accuracy:.4f})"
    lines = [
        "",
        leaderboard(result),
        "",
        f"chosen by cross-validation: {winner.model} on {winner.layers}, {scores}",
        "",
        *(f"{seconds:6.1f} s  {what}" for what, seconds in clock.seconds.items()),
        f"{sum(clock.seconds.values()):6.1f} s  in all",
        "",
        f"report    {page}",
        f"features  icecore store show {features} digits",
        f"predict   icecore predict {result.bundles[0]} {example}",
        "your own  configs/experiment.toml, in a folder of its own: icecore extract FILE, icecore train FILE",
    ]
    return "\n".join(lines)


command = demo
