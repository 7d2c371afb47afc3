"""Merging segments: nothing that is read changes, old versions stay, damage is not copied."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    LockedError,
    Pooling,
    SetNotFoundError,
    SourceImage,
    StoreDamagedError,
    compact,
    durable,
    publishing,
    verify_store,
)
from icecore.store.lock import writer_lock

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(40)}


def nightly(fill: Fill, nights: int = 4) -> FeatureStore:
    """Ten images a night, the names of each spread over the whole range."""
    for night in range(nights):
        store = fill({name: text for i, (name, text) in enumerate(FILES.items()) if i % nights <= night})
    return store


def segment_files(store: FeatureStore) -> list[Path]:
    return sorted((store.path / "segments").rglob("*.h5"))


def test_many_segments_become_one_in_the_order_of_the_ids(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = nightly(fill)
    before = store["photos"].version
    (done,) = store.compact()
    assert (done.segments_before, done.segments_after, done.rows_before, done.rows_after) == (4, 1, 40, 40)
    assert store["photos"].version == done.version == before + 1
    new = next(path for path in segment_files(store) if len(h5py.File(path)["content"]) == 40)
    with h5py.File(new) as file:  # the second witness
        assert file["ids"][()].tobytes().split(b"\0")[:-1] == [name.encode() for name in sorted(FILES)]
        for column in columns:
            np.testing.assert_array_equal(file[f"columns/{column.name}"], expected(FILES, column))
        digests = [hashlib.sha256(FILES[name].encode()).digest() for name in sorted(FILES)]
        assert [row.tobytes() for row in file["content"]] == digests
    X = store["photos"].matrix("layer4", dtype=None).X
    assert isinstance(X, np.memmap), "a whole layer is a memory map now"
    np.testing.assert_array_equal(X, expected(FILES, columns[1]))
    assert store.compact() == [], "what is merged already is left alone"
    assert verify_store(store.path).ok


def test_old_versions_stay_readable_and_so_do_both_columns_of_a_backfill(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    nightly_files = {name: text for i, (name, text) in enumerate(FILES.items()) if i % 4 <= 1}
    store = nightly(fill, nights=2)
    old = store["photos"].version
    gem = Column("layer4", Pooling.parse("gem"), 6)
    fill(FILES, columns=[gem])
    changed = {**FILES, "000.jpg": "edited"}
    fill(changed, columns=[*columns, gem])
    store.compact()
    assert len(nightly_files) == 20
    ids, X = store["photos"].matrix("layer3", version=old)
    np.testing.assert_array_equal(X, expected({i: FILES[i] for i in ids}, columns[0]))
    ids, X = store["photos"].matrix(["layer4:gem", "layer3"])
    assert ids == sorted(changed)
    np.testing.assert_array_equal(X, np.hstack([expected(changed, gem), expected(changed, columns[0])]))
    assert verify_store(store.path).ok


def test_rows_that_no_image_needs_are_left_behind(fill: Fill) -> None:
    store = nightly(fill)
    with store.writer("photos", store["photos"].contract, store["photos"].columns) as w:
        w.remove(["000.jpg", "001.jpg"])
    (done,) = store.compact()
    assert (done.rows_before, done.rows_after) == (40, 38)


@pytest.mark.parametrize(("copies", "rows", "mapped"), [(1, 41, True), (20, 40, False)])
def test_a_few_duplicates_are_written_out_and_many_are_not(
    fill: Fill, expected: Expected, columns: tuple[Column, Column], copies: int, rows: int, mapped: bool
) -> None:
    """So that the odd duplicate does not cost the memory map, nor many of them the disk."""
    files = {**FILES, **{f"copy{i}.jpg": f"picture {i}" for i in range(copies)}}
    fill(FILES)
    store = fill(files)
    fill({**files, "zz.jpg": "last"})
    (done,) = store.compact()
    assert done.rows_after == rows + 1
    X = store["photos"].matrix("layer4", dtype=None).X
    assert isinstance(X, np.memmap) is mapped
    np.testing.assert_array_equal(X, expected({**files, "zz.jpg": "last"}, columns[1]))
    assert verify_store(store.path).ok


def test_an_unfinished_generation_is_merged_and_readers_stay_where_they_are(
    fill: Fill, other_contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = nightly(fill)
    with pytest.raises(RuntimeError), store.writer("photos", other_contract, columns) as w:
        for number in (1, 2):
            content = hashlib.sha256(f"picture {number}".encode()).digest()
            features = {c: np.full((1, c.width), number) for c in columns}
            w.append([image(f"{number:03}.jpg")], [content], features)
            w.commit()
        raise RuntimeError
    done = store.compact()
    assert sorted((d.segments_before, d.segments_after) for d in done) == [(2, 1), (4, 1)]
    assert store["photos"].contract != other_contract
    fill(FILES, contract=other_contract)
    assert store["photos"].contract == other_contract
    X = store["photos"].matrix("layer4").X
    np.testing.assert_array_equal(X[1:3], [[1] * 6, [2] * 6])


def test_damage_is_not_copied_under_a_fresh_checksum(fill: Fill) -> None:
    store = nightly(fill)
    with h5py.File(segment_files(store)[0], "r+") as file:
        file["columns/layer4:avg"][0, 0] += 1
    before = segment_files(store)
    with pytest.raises(StoreDamagedError, match=r"bytes changed in columns/layer4:avg; nothing was merged"):
        store.compact()
    assert segment_files(store) == before


def test_a_dry_run_writes_nothing_and_needs_no_lock(fill: Fill) -> None:
    store = nightly(fill)
    before = store["photos"].version, segment_files(store)
    with writer_lock(store.path):
        (would,) = store.compact(dry_run=True)
        assert (would.segments_before, would.segments_after, would.version) == (4, 1, None)
        with pytest.raises(LockedError):
            store.compact()
    assert (store["photos"].version, segment_files(store)) == before
    with pytest.raises(SetNotFoundError, match="did you mean 'photos'"):
        store.compact("photo")


STEPS = [
    (publishing, "write_segment"),
    (publishing, "file_checksum"),
    (durable, "fsync_file"),
    (durable, "fsync_folder"),
    (compact, "add_segment"),
    (compact, "set_head"),
]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_fault_at_any_step_leaves_the_old_version_and_the_next_run_heals(
    fill: Fill, monkeypatch: pytest.MonkeyPatch, module: object, step: str, after: bool, error: BaseException
) -> None:
    store = nightly(fill)
    before, files = store["photos"].matrix("layer4"), segment_files(store)
    real = getattr(module, step)

    def fail(*args: object, **kwargs: object) -> object:
        if after:
            real(*args, **kwargs)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(type(error)):
            store.compact()
    assert set(segment_files(store)) >= set(files)
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, before.X)
    store.compact()
    assert len(segment_files(store)) == len(files) + 1
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, before.X)
    assert verify_store(store.path).ok


@pytest.mark.parametrize("step", ["publish", "add_segment", "add_version"])
def test_a_kill_leaves_the_old_version_and_the_next_run_heals(fill: Fill, step: str) -> None:
    store = nightly(fill)
    before, files = store["photos"].matrix("layer4"), segment_files(store)
    module = "publishing" if step == "publish" else "compact"
    code = f"""
        import os, signal
        from icecore.store import FeatureStore, {module}
        real = {module}.{step}
        def kill(*args, **kwargs):
            real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        {module}.{step} = kill
        FeatureStore.open({str(store.path)!r}).compact()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, before.X)
    store.compact()
    assert len(segment_files(store)) == len(files) + 1
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, before.X)
    assert verify_store(store.path).ok


def test_a_year_of_nights_stays_a_few_files(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    """Each run merges small segments when there are many, and rarely rewrites the same row."""
    store = fill({"a.jpg": "a"})
    live: list[int] = []
    for night in range(150):
        with store.writer("photos", contract, columns) as w:
            content = hashlib.sha256(f"night {night}".encode()).digest()
            w.append([image(f"{night:03}.jpg")], [content], {c: np.full((1, c.width), night) for c in columns})
        live.append(store.db.execute("SELECT count(*) FROM segments WHERE removed_in IS NULL").fetchone()[0])
    assert max(live) <= compact.COMPACT_PAST
    rewritten = store.db.execute("SELECT sum(rows) FROM segments").fetchone()[0]
    assert rewritten < 151 * 4, "each row was written a few times at most"
    ids, X = store["photos"].matrix("layer3")
    assert len(ids) == 151
    np.testing.assert_array_equal(X[:150, 0], np.arange(150))


def test_a_reader_in_another_process_reads_right_through_compactions(fill: Fill) -> None:
    """It reads on and on, an old version and the latest one, while images are added and segments merged."""
    store = nightly(fill)
    code = f"""
        import numpy as np
        from icecore.store import FeatureStore
        photos = FeatureStore.open({str(store.path)!r})["photos"]
        old = photos.version
        first = photos.matrix("layer4")
        while True:
            ids, X = photos.matrix("layer4", version=old)
            assert ids == first.ids and np.array_equal(X, first.X)
            ids, X = photos.matrix("layer4")
            assert [i for i in ids if i in set(first.ids)] == first.ids
            assert np.array_equal(X[[ids.index(i) for i in first.ids]], first.X)
            print(len(ids), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        files = dict(FILES)
        for number in range(6):
            files[f"{number:03}-new.jpg"] = f"new {number}"
            fill(files)
            assert len(store.compact()) == 1
            while (line := reader.stdout.readline()) and int(line) < len(files):
                continue
            assert line, "the reader failed"
        reader.kill()
