"""A year of weekly retrains on real features, in minutes: who is promoted, and what comes of it on fresh photos.

Flowers are extracted by two networks before it begins. A store then grows week by week by what the year brings: new
photos, labels put right, a class that appears, a corrupted delivery that is taken back, a week of bad labels, a better
network (a generation of its own), and processes killed with SIGKILL at random steps of the retraining. The table has,
by week, both models' scores on the held-out rows, the decision, and what the champion gets right of fresh photos that
never enter the store.

Goals: no promotion makes the model worse on fresh photos by more than the gate's limit; after each kill the old or the
new champion is in use, and the next run decides.

Needs ASSETS/data/flowers and weights in ASSETS/weights.

    python benchmarks/year.py [--assets FOLDER] [--weeks 52] [--seed 0] [--json] [--check]
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store import Column, Contract, FeatureStore, SourceImage, champion_of, verify_store
from icecore.train import CsvLabels, GateLimits, HashSplit, load_bundle, retrain_model
from numpy.typing import NDArray

NETWORKS = {
    "squeezenet1_1": ("squeezenet1_1.pth", "features.12"),
    "mobilenet_v2": ("mobilenet_v2_features.pth", "features.18"),
}
FRESH = 0.25
"""Share of the photos that never enter the store."""
FIRST, WEEKLY, FIRST_LATE, WEEKLY_LATE = 140, 9, 20, 3
"""Photos of the first week, of each later one, and of the class that comes late."""
LATE, APPEARS = "tulips", 10
RELABELLED, CORRUPTED, TAKEN_BACK, BAD_LABELS, PUT_RIGHT, TUNED = 16, 22, 25, 30, 31, 36
KILLED = (0, 6, 10, 16, 20, 28, 36, 41, 47)
"""Weeks in which the first try is killed."""
STEPS = ("train_rows", "conclude", "hold_contest", "judge", "promote", "record_decision")
LIMITS = GateLimits(min_rows=30, max_class_drop=0.15, class_rows=15)
WORSE = 0.05
"""Most that a promotion may cost on fresh photos: the gate's limit for the champion's fall, and for chance."""


def main() -> int:
    """Run the year, print it, and say whether the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    assets = os.environ.get("ICECORE_TEST_ASSETS", str(Path(__file__).resolve().parents[2] / "shared"))
    parser.add_argument("--assets", type=Path, default=Path(assets))
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="end with 1 unless the goals are met")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not (options.assets / "weights").is_dir():
        print(f"skipped: no weights and photos in {options.assets}; name their folder with --assets", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="year-") as name:
        world = World(Path(name), options.assets, options.seed)
        start = time.perf_counter()
        weeks = [world.live(week) for week in range(options.weeks)]
        seconds = time.perf_counter() - start
        is_whole = verify_store(world.store).ok
    costs = [week["fresh_before"] - week["fresh"] for week in weeks if week["promoted"] and week["fresh_before"]]
    kills = [week for week in weeks if week["killed"] and "not reached" not in week["killed"]]
    met = is_whole and max(costs, default=0) <= WORSE and all(week["recovered"] for week in kills)
    result = {"met": met, "seconds": seconds, "kills": len(kills), "promotions": sum(w["promoted"] for w in weeks)}
    if options.json:
        print(json.dumps({**result, "weeks": weeks, "load": os.getloadavg()[0]}))
    else:
        print("week  rows  held out  champion  challenger  p      decision     fresh  event")
        print("\n".join(map(_line, weeks)))
        print(
            f"{result['promotions']} promotions, the worst for fresh photos cost {max(costs, default=0):+.3f} "
            f"(at most {WORSE:+.3f}); {len(kills)} kills; the store is {'whole' if is_whole else 'damaged'}; "
            f"{seconds:.0f} s, load {os.getloadavg()[0]:.1f}; {'goals met' if met else 'goals missed'}"
        )
    return int(options.check and not met)


class World:
    """What happens, and the store that sees it."""

    def __init__(self, folder: Path, assets: Path, seed: int) -> None:
        """Extract the photos of both networks, set the fresh ones apart, and order the others in time."""
        self.store, self.csv = folder / "features", folder / "labels.csv"
        self._rng = np.random.default_rng(seed)
        self._photos: dict[str, dict[str, NDArray[np.float32]]] = {}
        self._kinds: dict[str, tuple[Contract, Column]] = {}
        for network in NETWORKS:
            self._photos[network], self._kinds[network] = _extract(folder / "all", assets, network)
        ids = sorted(self._photos["mobilenet_v2"])
        self._rng.shuffle(ids)
        cut = int(FRESH * len(ids))
        self.fresh, waiting = ids[:cut], ids[cut:]
        self._waiting = [image for image in waiting if _label(image) != LATE]
        self._late = [image for image in waiting if _label(image) == LATE]
        self.network, self.labels, self.corrupted = "squeezenet1_1", dict[str, str](), dict[str, np.ndarray]()
        self._set_aside: dict[str, str] = {}

    def live(self, week: int) -> dict[str, Any]:
        """Let a week pass, retrain, and tell how it went."""
        events = self._happen(week)
        before = champion_of(self.store, "flowers")
        killed = self._kill() if week in KILLED else ""
        between = champion_of(self.store, "flowers")
        done = retrain_model(self.store, "photos", **self._options())
        after = champion_of(self.store, "flowers")
        numbers = done.numbers
        return {
            "week": week,
            "event": ", ".join([*events, *([f"killed at {killed}"] if killed else [])]),
            "rows": len(self.labels),
            "held_out": numbers.get("rows", 0),
            "champion": numbers.get("champion"),
            "challenger": numbers.get("challenger"),
            "p_value": numbers.get("p_value"),
            "decision": done.decided,
            "promoted": bool(after and (not before or after.number > before.number)),
            "fresh": self._score(after.path) if after else None,
            "fresh_before": self._score(before.path) if before else None,
            "fresh_challenger": self._score(done.challenger) if done.challenger else None,
            "rules": list(done.rules),
            "killed": killed,
            "recovered": not before or (between is not None and between.number in (before.number, before.number + 1)),
        }

    def _happen(self, week: int) -> list[str]:
        events = []
        if week == TUNED:
            self.network = "mobilenet_v2"
            self._write(sorted(self.labels))
            events.append("a better network")
        arrived = [self._waiting.pop() for _ in range(min(len(self._waiting), WEEKLY if week else FIRST))]
        if week >= APPEARS:
            late = FIRST_LATE if week == APPEARS else WEEKLY_LATE
            arrived += [self._late.pop() for _ in range(min(len(self._late), late))]
        if week == APPEARS:
            events.append(f"{LATE} appear")
        if week == CORRUPTED:
            mean = np.mean(list(self._photos[self.network].values()), axis=0)
            self.corrupted = {image: mean * self._rng.random(mean.shape) for image in arrived}
            events.append(f"{len(arrived)} photos of a broken camera")
        if week == TAKEN_BACK:
            self._remove(sorted(self.corrupted))
            events.append("these are taken back")
        self.labels |= {image: _label(image) for image in arrived}
        if week == 0:
            self._mislabel(0.08, list(self.labels))
            events.append("8 % of the labels are wrong")
        if week == RELABELLED:
            self.labels = {image: _label(image) for image in self.labels}
            events.append("labels put right")
        if week == BAD_LABELS:
            self._set_aside = dict(self.labels)
            self._mislabel(0.3, list(self.labels))
            events.append("30 % of the labels are wrong")
        if week == PUT_RIGHT:
            self.labels |= self._set_aside
            events.append("labels put right")
        if arrived:
            self._write(arrived)
        self._write_labels()
        return events

    def _mislabel(self, share: float, images: Sequence[str]) -> None:
        names = sorted({_label(image) for image in images})
        for image in images:
            if self._rng.random() < share:
                self.labels[image] = str(self._rng.choice([name for name in names if name != self.labels[image]]))

    def _write(self, images: Sequence[str]) -> None:
        contract, column = self._kinds[self.network]
        images = sorted(images)
        X = np.stack([self.corrupted.get(image, self._photos[self.network][image]) for image in images])
        with FeatureStore.create(self.store) as store, store.writer("photos", contract, [column]) as writer:
            sources = [SourceImage(image, Path("/nowhere") / image, 1, 1, 1) for image in images]
            contents = [hashlib.sha256(image.encode()).digest() for image in images]
            writer.append(sources, contents, {column: X.astype(np.float32)})

    def _remove(self, images: Sequence[str]) -> None:
        contract, column = self._kinds[self.network]
        with FeatureStore.open(self.store) as store, store.writer("photos", contract, [column]) as writer:
            writer.remove(images)
        for image in images:
            del self.labels[image]
        self.corrupted = {}

    def _write_labels(self) -> None:
        with self.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            writer.writerows(sorted(self.labels.items()))

    def _options(self) -> dict[str, Any]:
        return {
            "name": "flowers",
            "models": ["logistic_regression", "ridge"],
            "folds": 4,
            "labels": CsvLabels(self.csv),
            "split": HashSplit(0.35),
            "gate": LIMITS,
            "report": False,
        }

    def _kill(self) -> str:
        """Retrain in a process that is killed before or after a random step; give which."""
        step, after = str(self._rng.choice(STEPS)), bool(self._rng.integers(2))
        command = [sys.executable, "-c", _KILLED, str(self.store), str(self.csv), step, str(int(after))]
        code = subprocess.run(command, check=False, capture_output=True).returncode
        # where the first steps find nothing to do, or the gate says no, a later step is not reached
        return f"{step} ({'after' if after else 'before'})" if code == -signal.SIGKILL else f"{step} (not reached)"

    def _score(self, path: Path) -> float:
        """Give what a bundle gets right of the fresh photos, by the network that it was trained on."""
        bundle = load_bundle(path)
        network = next(n for n, (contract, _) in self._kinds.items() if contract.hash == bundle.contract.hash)
        X = np.stack([self._photos[network][image] for image in self.fresh])
        right = [called == _label(image) for called, image in zip(bundle.predict(X), self.fresh, strict=True)]
        return float(np.mean(right))


def _extract(
    folder: Path, assets: Path, network: str
) -> tuple[dict[str, NDArray[np.float32]], tuple[Contract, Column]]:
    from icecore.extract import extract_images

    weights, layer = NETWORKS[network]
    extract_images(
        *(folder, network, assets / "data" / "flowers"),
        backbone_name=network,
        weights=assets / "weights" / weights,
        layers=[layer],
    )
    with FeatureStore.open(folder) as store:
        features = store[network]
        ids, X = features.matrix(layer)
        return dict(zip(ids, X, strict=True)), (features.contract, features.resolve(layer))


def _label(image: str) -> str:
    return image.split("/")[-2]


def _line(week: dict[str, Any]) -> str:
    scores = [
        "-" if week[key] is None else f"{week[key]:.3f}" for key in ("champion", "challenger", "p_value", "fresh")
    ]
    champion, challenger, p_value, fresh = scores
    return (
        f"{week['week']:4}  {week['rows']:4}  {week['held_out']:8}  {champion:>8}  {challenger:>10}  {p_value:5}  "
        f"{week['decision']:11}  {fresh:5}  {week['event']}"
    ).rstrip()


_KILLED = f"""
import os, signal, sys
from icecore.train import CsvLabels, GateLimits, HashSplit, retrain_model, retraining
store, labels, step, after = sys.argv[1:]
real = getattr(retraining, step)
def die(*args, **options):
    if after == "1":
        real(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(retraining, step, die)
retrain_model(
    store, "photos", name="flowers", models=["logistic_regression", "ridge"], folds=4, labels=CsvLabels(labels),
    split=HashSplit(0.35), gate={LIMITS!r}, report=False,
)
"""

if __name__ == "__main__":
    raise SystemExit(main())
