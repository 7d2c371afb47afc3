"""A layer added later, through the command line: what is missing is computed, and nothing that is there changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from icecore.store import FeatureStore
from PIL import Image

CONFIG = """
store = "features"
set = "photos"
[source]
folder = "photos"
[backbone]
name = "squeezenet1_1"
weights = {weights}
layers = ["features.5"]
[preprocess]
resize = 80
crop = 72
[compute]
device = "cpu"
batch_size = 4
threads = 1
"""

COUNTS = ("added", "changed", "racy", "backfill", "retried", "failed", "unchanged")
LATE = ("128-32-1", "32-128-1", "32-128-3", "256-32-1", "256-48-1", "512-64-1", "512-1000-1")
"""Convolutions after features.5."""


@pytest.fixture
def work(assets: Path, draw: Callable[..., Image.Image], tmp_path: Path) -> Path:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(10):
        draw(n).save(photos / f"{n}.png")
    (photos / "copy.png").write_bytes((photos / "3.png").read_bytes())
    (photos / "bad.png").write_bytes(b"bad")
    weights = json.dumps(str(assets / "weights/squeezenet1_1.pth"))
    (tmp_path / "job.toml").write_text(CONFIG.format(weights=weights))
    return tmp_path


def segments(work: Path) -> dict[str, str]:
    """Digest of each segment file."""
    files = (work / "features/segments").rglob("*")
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def stored(work: Path, *layers: str) -> tuple[list[str], np.ndarray]:
    with FeatureStore.open(work / "features") as store:
        ids, X = store["photos"].matrix(list(layers))
        return ids, np.array(X)


def columns_of(path: str) -> list[str]:
    with h5py.File(path) as file:
        return sorted(file["columns"])


def test_a_layer_added_later_writes_only_its_own_column(work: Path, jobs: Any, settle: Any) -> None:
    settle(work / "photos")
    first = jobs.command(["extract", "job.toml", "--json"], work)
    assert (first.code, first.facts["added"], first.facts["forwarded"], first.facts["linked"]) == (5, 12, 10, 1)
    assert first.convolutions["3-64-3"] == 3 + 2  # of the run, and of its eight canaries
    assert not set(LATE) & set(first.convolutions)  # cut after the deepest layer asked for
    before, old_rows = segments(work), stored(work, "features.5")

    both = ["--set", 'backbone.layers=["features.2", "features.5"]']
    plan = jobs.command(["extract", "job.toml", *both, "--dry-run", "--json"], work)
    assert (plan.code, plan.convolutions, segments(work)) == (0, {}, before)
    second = jobs.command(["extract", "job.toml", *both, "--json"], work)
    for facts in (plan.facts, second.facts):
        assert {name: facts[name] for name in COUNTS if facts[name]} == {"backfill": 11, "failed": 1}
    assert (plan.facts["forwarded"], second.facts["forwarded"], second.facts["linked"]) == (0, 10, 1)
    # features.2 pools what the very first convolution gives, and the network is cut there: no other one runs, but
    # for the canaries, which must give all that is asked for.
    assert second.convolutions.keys() == first.convolutions.keys()
    assert second.convolutions["3-64-3"] == 3 + 2
    assert all(n * 5 == first.convolutions[name] * 2 for name, n in second.convolutions.items() if name != "3-64-3")
    after = segments(work)
    assert {path: after[path] for path in before} == before
    (new,) = after.keys() - before.keys()
    assert columns_of(new) == ["features.2:avg"]
    assert [columns_of(path) for path in before] == [["features.5:avg"]]

    ids, X = stored(work, "features.5")
    assert (ids, X.tobytes()) == (old_rows[0], old_rows[1].tobytes())
    ids, joined = stored(work, "features.2", "features.5")
    assert joined.shape == (11, 64 + 128)
    assert ids == old_rows[0]
    np.testing.assert_array_equal(joined[:, 64:], X)
    np.testing.assert_array_equal(joined[ids.index("copy.png")], joined[ids.index("3.png")])

    together = jobs.command(["extract", "job.toml", *both, "--set", "store=together", "--json"], work)
    assert together.facts["forwarded"] == 10
    with FeatureStore.open(work / "together") as store:
        whole = store["photos"].matrix(["features.2", "features.5"])
    assert (whole.ids, whole.X.tobytes()) == (ids, joined.tobytes())


def test_files_too_fresh_to_be_trusted_are_read_again_and_still_only_the_new_column_is_written(
    work: Path, jobs: Any
) -> None:
    jobs.command(["extract", "job.toml", "--json"], work)
    before, (_, old) = segments(work), stored(work, "features.5")
    both = ["--set", 'backbone.layers=["features.2", "features.5"]']
    done = jobs.command(["extract", "job.toml", *both, "--json"], work).facts
    assert done["racy"] + done["backfill"] == 11
    assert (done["forwarded"], done["linked"]) == (10, 1)
    after = segments(work)
    assert {path: after[path] for path in before} == before
    assert {tuple(columns_of(path)) for path in after.keys() - before.keys()} == {("features.2:avg",)}
    np.testing.assert_array_equal(stored(work, "features.5")[1], old)


def test_a_run_with_nothing_new_forwards_and_writes_nothing(work: Path, jobs: Any, settle: Any) -> None:
    settle(work / "photos")
    first = jobs.command(["extract", "job.toml", "--json"], work)
    before = segments(work)
    again = jobs.command(["extract", "job.toml", "--json"], work)
    fewer = jobs.command(["extract", "job.toml", "--set", "compute.batch_size=3", "--rehash", "--json"], work)
    for run in (again, fewer):
        assert run.code == 5  # the unreadable file is still there
        assert (run.facts["forwarded"], run.facts["version"], run.convolutions) == (0, first.facts["version"], {})
    assert fewer.facts["linked"] == 11
    assert segments(work) == before


def test_a_failure_met_again_makes_no_new_version(work: Path, jobs: Any) -> None:
    """A version is what readers see, and they see the same: else every nightly run over one bad file would be news."""
    first = jobs.command(["extract", "job.toml", "--json"], work).facts
    again = jobs.command(["extract", "job.toml", "--retry-failed", "--json"], work).facts
    assert [failure["id"] for failure in again["failures"]] == ["bad.png"]
    assert again["version"] == first["version"]


def test_another_pooling_is_another_column_and_a_dropped_layer_stays(work: Path, jobs: Any) -> None:
    jobs.command(["extract", "job.toml", "--json"], work)
    before, (_, mean) = segments(work), stored(work, "features.5")
    done = jobs.command(["extract", "job.toml", "--set", 'backbone.pooling=["max", "gem"]', "--json"], work)
    assert done.facts["forwarded"] == 10
    after = segments(work)
    assert {path: after[path] for path in before} == before
    assert [columns_of(path) for path in after.keys() - before.keys()] == [["features.5:gem3", "features.5:max"]]
    (_, top), (_, middle) = stored(work, "features.5:max"), stored(work, "features.5:gem3")
    np.testing.assert_array_equal(stored(work, "features.5:avg")[1], mean)
    assert (mean <= top).all()
    # The power mean of non-negative values lies between mean and maximum; float16 rounds by 2**-11 of the value.
    assert (middle <= top * (1 + 2**-10) + 1e-5).all()
    assert (middle >= mean * (1 - 2**-10) - 1e-5).all()
