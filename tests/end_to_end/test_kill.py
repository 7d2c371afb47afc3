"""SIGKILL at random moments, other weights, overwritten files: what a restarted extraction must not get wrong.

Witnesses are bare sqlite3 and h5py, and a second store that nobody disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from icecore.store import FeatureStore, verify_store
from PIL import Image

LAYERS = ("features.2", "features.5")
COLUMNS = tuple(f"{layer}:avg:float32" for layer in LAYERS)


@dataclass(frozen=True)
class Extraction:
    """The job under test: everything but the store and the weights."""

    jobs: Any
    photos: Path
    weights: Path

    def options(self, store: Path, **changes: Any) -> dict[str, Any]:
        return {
            "store_path": str(store),
            "set_name": "photos",
            "source": str(self.photos),
            "backbone_name": "squeezenet1_1",
            "weights": str(self.weights),
            "layers": list(LAYERS),
            "dtype": "float32",
            "preprocess_changes": {"resize": 80, "crop": 72},  # a tenth of the arithmetic of 224 pixels
            "batch_size": 4,
            "threads": 2,
            **changes,
        }

    def run(self, store: Path, **changes: Any) -> dict[str, Any]:
        """Extract to the end, or to where the job kills itself."""
        said: dict[str, Any] = self.jobs.extract(**self.options(store, **changes))
        return said

    def run_until_killed(self, store: Path, *, batches: int, delay: float, **changes: Any) -> dict[str, Any]:
        """Kill from outside, some time after a batch was reported done."""
        pid = self.jobs.start_extraction(tell=True, **self.options(store, **changes))
        said: dict[str, Any] = {}
        for answer in self.jobs.answers():
            said |= answer
            batches -= "done" in answer
            if batches <= 0 and "done" in answer and "killed" not in said:
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
                said["killed"] = True
        return said


def write_photos(folder: Path, draw: Callable[..., Image.Image], count: int) -> None:
    """JPEGs of many sizes in two folders."""
    sizes = random.Random(7)
    for n in range(count):
        path = folder / f"{'ab'[n % 2]}/{n:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(n, sizes.randint(60, 320), sizes.randint(60, 240)).save(path, quality=90)


@pytest.fixture
def extraction(
    assets: Path, jobs: Any, draw: Callable[..., Image.Image], settle: Callable[[Path], None], tmp_path: Path
) -> Extraction:
    """80 photos, two copies of some of them, and two files that cannot be read."""
    photos = tmp_path / "photos"
    write_photos(photos, draw, 80)
    (photos / "b/019copy.jpg").write_bytes((photos / "a/018.jpg").read_bytes())
    (photos / "a/copy of the last.jpg").write_bytes((photos / "b/079.jpg").read_bytes())
    (photos / "b/007.jpg").write_bytes(b"no picture at all")
    (photos / "a/046.jpg").write_bytes((photos / "b/045.jpg").read_bytes()[:400])
    settle(photos)
    return Extraction(jobs, photos, assets / "weights/squeezenet1_1.pth")


TOTAL = 80
"""Images that have features in the end: 78 different ones and 2 copies."""
BAD = ["a/046.jpg", "b/007.jpg"]


def committed_images(store: Path) -> int:
    """Live images in the catalog, by bare sqlite; 0 where there is none yet."""
    if not (store / "catalog.sqlite").exists():
        return 0
    with closing(sqlite3.connect(f"file:{store}/catalog.sqlite?mode=ro", uri=True)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'images'").fetchone():
            return 0
        return int(db.execute("SELECT count(*) FROM images WHERE removed_in IS NULL").fetchone()[0])


def contents_on_disk(photos: Path) -> dict[str, bytes]:
    return {
        path.relative_to(photos).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in photos.rglob("*.*")
        if path.is_file()
    }


@dataclass(frozen=True)
class Segment:
    """What bare h5py finds in a segment."""

    generation: str
    contract: str
    weights: str
    rows: list[tuple[str, bytes]]
    columns: dict[str, np.ndarray]


def read_segments(store: Path) -> list[Segment]:
    found = []
    for path in sorted((store / "segments").rglob("*.h5")):
        with h5py.File(path) as file:
            ids = bytes(file["ids"][()]).decode().split("\0")[:-1]
            contents = [row.tobytes() for row in file["content"][()]]
            attributes = file.attrs
            assert attributes["generation"] == path.parent.name
            found.append(
                Segment(
                    attributes["generation"],
                    attributes["contract_hash"],
                    json.loads(attributes["contract"])["weights"],
                    list(zip(ids, contents, strict=True)),
                    {name: file["columns"][name][()] for name in file["columns"]},
                )
            )
    return found


def uncommitted(store: Path) -> set[str]:
    """Segment files, under their names or temporary ones, that the catalog does not hold."""
    found = {path.relative_to(store).as_posix() for path in (store / "segments").rglob("*.h5*")}
    if not found:
        return found
    with closing(sqlite3.connect(f"file:{store}/catalog.sqlite?mode=ro", uri=True)) as db:
        return found - {row[0] for row in db.execute("SELECT path FROM segments")}


def temporaries(store: Path) -> list[Path]:
    return [path for path in store.rglob("*") if path.suffix == ".tmp"]


def failures_of(store: Path) -> list[tuple[str, str, str, int]]:
    with FeatureStore.open(store) as opened:
        return [(f.id, f.kind, f.reason, f.attempts) for f in opened["photos"].failures()]


def assert_sound(store: Path, photos: Path) -> None:
    """Nothing lost, doubled or shifted, as bare HDF5 and the files tell; no litter."""
    report = verify_store(store)
    assert report.ok, report.problems
    assert temporaries(store) == []
    assert uncommitted(store) == set()
    truth = contents_on_disk(photos)
    seen: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for segment in read_segments(store):
        for image, content in segment.rows:
            assert content == truth[image]
        for column, X in segment.columns.items():
            assert len(X) == len(segment.rows)
            seen[segment.generation, column] += [content for _, content in segment.rows]
    for contents in seen.values():
        assert len(contents) == len(set(contents))


def moment(random_: random.Random, kind: str, images: float, whole: dict[str, Any]) -> dict[str, Any]:
    """Draw a moment at which about so many images more will have been done."""
    if kind == "outside":
        return {"batches": max(1, round(images / 4)), "delay": random_.uniform(0, 0.03)}
    if kind == "commit":
        number = max(1, int(images / TOTAL * whole["commits"]))
        return {"in_commit": number, "kill_at": random_.randint(1, whole["longest_commit"])}
    return {"kill_at": max(random_.randint(1, 100), int(whole["moments"] * images / TOTAL))}


def test_killed_ten_times_the_store_ends_as_if_nothing_had_happened(
    extraction: Extraction, rows: Any, tmp_path: Path
) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    whole = extraction.run(calm)
    assert (whole["status"], whole["forwarded"], whole["linked"]) == (0, 78, 2)
    assert whole["commits"] >= 10  # many moments of the run lie within one, and between two
    random_ = random.Random(20)
    # Those from outside come early on: so near the end a job might be done before the signal reaches it.
    kinds = [*random_.sample(["outside"] * 3 + ["commit"] * 3, 6), "commit", *["anywhere"] * 3]
    progress, litter, commits_cut = [0], 0, 0
    for tenth, kind in enumerate(kinds):
        images = random_.uniform(tenth, tenth + 1) / 10 * TOTAL - progress[-1]
        at = moment(random_, kind, images, whole)
        killed = extraction.run_until_killed(stormy, **at) if kind == "outside" else extraction.run(stormy, **at)
        assert killed["status"] == -signal.SIGKILL, (tenth, kind, at, killed)
        commits_cut += killed.get("committing", False)
        litter += len(uncommitted(stormy))
        progress.append(committed_images(stormy))
    assert progress == sorted(progress)
    assert len(set(progress)) >= 5  # the moments were spread over the run
    assert commits_cut >= 4
    last = extraction.run(stormy)
    assert last["status"] == 0
    assert 0 < last["forwarded"] < 78  # what was committed was not computed again
    assert litter  # a kill left a segment without its commit at least once, and the next run swept it
    ids, X = rows(stormy, *COLUMNS)
    expected_ids, expected = rows(calm, *COLUMNS)
    assert ids == expected_ids == sorted(set(contents_on_disk(extraction.photos)) - set(BAD))
    assert X.dtype == expected.dtype == np.float32
    assert X.tobytes() == expected.tobytes()
    assert failures_of(stormy) == failures_of(calm)
    assert [failure[0] for failure in failures_of(calm)] == BAD
    for store in (calm, stormy):
        assert_sound(store, extraction.photos)
    again = extraction.run(stormy)
    assert (again["status"], again["forwarded"], again["linked"], again["failures"]) == (0, 0, 0, [])


def test_killed_with_one_weights_file_and_restarted_with_another_nothing_is_mixed(
    extraction: Extraction, rows: Any, tmp_path: Path
) -> None:
    state = torch.load(extraction.weights, weights_only=True)
    state["features.0.weight"] = state["features.0.weight"] * 1.01
    torch.save(state, tmp_path / "other.pth")
    store, other = tmp_path / "store", {"weights": str(tmp_path / "other.pth")}

    first = extraction.run_until_killed(store, batches=9, delay=0.0)
    partial_ids, partial = rows(store, *COLUMNS)
    assert first["status"] == -signal.SIGKILL
    assert 0 < len(partial_ids) < 80

    second = extraction.run_until_killed(store, batches=12, delay=0.0, **other)
    assert second["status"] == -signal.SIGKILL
    held = {segment.weights for segment in read_segments(store)}
    assert len(held) == 2  # the new generation has rows already ...
    ids, X = rows(store, *COLUMNS)
    assert (ids, X.tobytes()) == (partial_ids, partial.tobytes())  # ... and readers still see the old one, whole

    third = extraction.run(store, **other)
    assert third["status"] == 0
    assert extraction.run(tmp_path / "new only", **other)["status"] == 0
    ids, X = rows(store, *COLUMNS)
    expected_ids, expected = rows(tmp_path / "new only", *COLUMNS)
    assert (ids, X.tobytes()) == (expected_ids, expected.tobytes())
    assert failures_of(store) == failures_of(tmp_path / "new only")
    with FeatureStore.open(store) as opened:
        current = opened["photos"].generation

    back = extraction.run(store)  # the first weights again: their rows are still there and good
    assert (back["status"], back["forwarded"]) == (0, 78 - len({c for i, c in rows_of(store, partial_ids)}))
    assert extraction.run(tmp_path / "old only")["status"] == 0
    assert rows(store, *COLUMNS)[1].tobytes() == rows(tmp_path / "old only", *COLUMNS)[1].tobytes()
    with FeatureStore.open(store) as opened:
        assert opened["photos"].generation != current

    contracts: dict[str, set[str]] = defaultdict(set)
    weights: dict[str, set[str]] = defaultdict(set)
    for segment in read_segments(store):
        contracts[segment.generation].add(segment.contract)
        weights[segment.generation].add(segment.weights)
    assert sorted(map(len, contracts.values())) == [1, 1]
    assert sorted(map(len, weights.values())) == [1, 1]
    assert_sound(store, extraction.photos)


def rows_of(store: Path, ids: list[str]) -> list[tuple[str, bytes]]:
    """Ids with the contents that the catalog gives them, by bare sqlite."""
    with closing(sqlite3.connect(f"file:{store}/catalog.sqlite?mode=ro", uri=True)) as db:
        found = db.execute(
            "SELECT i.id, c.sha256 FROM images i JOIN contents c ON c.id = i.content_id WHERE i.removed_in IS NULL"
        ).fetchall()
    return [(key.decode(), content) for key, content in found if key.decode() in set(ids)]


def test_readers_keep_the_old_generation_whole_until_the_new_one_covers_every_image(
    extraction: Extraction, rows: Any, draw: Callable[..., Image.Image], tmp_path: Path
) -> None:
    state = torch.load(extraction.weights, weights_only=True)
    state["features.0.bias"] = state["features.0.bias"] + 0.01
    torch.save(state, tmp_path / "other.pth")
    store, other = tmp_path / "store", {"weights": str(tmp_path / "other.pth")}
    assert extraction.run(store)["status"] == 0
    ids, X = rows(store, *COLUMNS)
    # Meanwhile the folder changes too: one photo is new, one is another picture, one is gone.
    draw(500).save(extraction.photos / "a/000new.jpg")
    draw(501).save(extraction.photos / "a/002.jpg")
    (extraction.photos / "a/004.jpg").unlink()
    for batches in (3, 9):
        assert extraction.run_until_killed(store, batches=batches, delay=0.01, **other)["status"] == -signal.SIGKILL
        seen_ids, seen = rows(store, *COLUMNS)
        assert (seen_ids, seen.tobytes()) == (ids, X.tobytes())
    assert extraction.run(store, **other)["status"] == 0
    assert extraction.run(tmp_path / "calm", **other)["status"] == 0
    seen_ids, seen = rows(store, *COLUMNS)
    expected_ids, expected = rows(tmp_path / "calm", *COLUMNS)
    assert (seen_ids, seen.tobytes()) == (expected_ids, expected.tobytes())
    assert "a/000new.jpg" in seen_ids
    assert "a/004.jpg" not in seen_ids


def test_images_overwritten_with_the_same_size_and_the_old_mtime_are_forwarded_again(
    assets: Path, jobs: Any, draw: Callable[..., Image.Image], rows: Any, settle: Callable[[Path], None], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(5):
        draw(n).save(photos / f"{n}.bmp")
    settle(photos)
    job = Extraction(jobs, photos, assets / "weights/squeezenet1_1.pth")
    assert job.run(tmp_path / "store")["forwarded"] == 5
    assert job.run(tmp_path / "store")["linked"] == 0  # the times are trusted: no file is read again
    _, before = rows(tmp_path / "store", *COLUMNS)

    times = {n: (photos / f"{n}.bmp").stat() for n in (1, 2, 3)}
    draw(91).save(photos / "1.bmp")  # in place
    draw(92).save(tmp_path / "new.bmp")  # replaced by a file that has the old one's mtime already
    os.utime(tmp_path / "new.bmp", ns=(times[2].st_atime_ns, times[2].st_mtime_ns))
    (tmp_path / "new.bmp").replace(photos / "2.bmp")
    changed = bytearray((photos / "3.bmp").read_bytes())
    changed[-(40 * 96 + 48) * 3] ^= 0x80  # one value, near the centre of 80 rows of 96 pixels
    (photos / "3.bmp").write_bytes(changed)
    for n, old in times.items():
        os.utime(photos / f"{n}.bmp", ns=(old.st_atime_ns, old.st_mtime_ns))
        new = (photos / f"{n}.bmp").stat()
        assert (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)

    assert job.run(tmp_path / "store")["forwarded"] == 3
    ids, after = rows(tmp_path / "store", *COLUMNS)
    assert ids == [f"{n}.bmp" for n in range(5)]
    same = [bool((old == new).all()) for old, new in zip(before, after, strict=True)]
    assert same == [True, False, False, False, True]
    assert job.run(tmp_path / "fresh")["status"] == 0
    np.testing.assert_allclose(rows(tmp_path / "fresh", *COLUMNS)[1], after, rtol=1e-6, atol=1e-6)  # in other batches
