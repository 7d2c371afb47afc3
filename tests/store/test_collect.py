"""gc: what is kept reads as before, what is collected is refused, and what is left is exactly what is needed."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash
from icecore.store import (
    Collection,
    Column,
    Contract,
    FeatureStore,
    LockedError,
    Pooling,
    RefusedError,
    SourceImage,
    VersionNotFoundError,
    collect,
    durable,
    opening,
    publishing,
    registry,
    rewrite,
    verify_store,
)
from icecore.store.lock import writer_lock

Fill = Callable[..., FeatureStore]
Make = Callable[..., SourceImage]
Expected = Callable[[dict[str, str], Column], np.ndarray]
Bundle = Callable[..., Path]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
CHANGED = {**FILES, "003.jpg": "another", "new.jpg": "new"}


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def segment_files(store: FeatureStore) -> list[Path]:
    return sorted((store.path / "segments").rglob("*.h5"))


def stored(store: FeatureStore) -> list[tuple[str, bytes]]:
    """Every row on disk as (generation, content), by bare h5py."""
    rows = []
    for path in segment_files(store):
        with h5py.File(path) as file:
            rows += [(file.attrs["generation"], row.tobytes()) for row in file["content"]]
    return sorted(rows)


def remove(store: FeatureStore, *names: str) -> None:
    photos = store["photos"]
    with store.writer("photos", photos.contract, photos.columns) as w:
        w.remove(names)


def rows_of(store: FeatureStore, files: dict[str, str]) -> list[tuple[str, bytes]]:
    """The rows that these files need, each content once."""
    return sorted((store["photos"].generation, content) for content in {digest(text) for text in files.values()})


def query(store: FeatureStore, text: str) -> list[tuple[object, ...]]:
    """Ask the catalog by bare sqlite3."""
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        return db.execute(text).fetchall()


@pytest.fixture
def store(fill: Fill) -> FeatureStore:
    """Version 1 is FILES, 2 CHANGED, and 3 lacks 007.jpg."""
    fill(FILES)
    store = fill(CHANGED)
    remove(store, "007.jpg")
    return store


NOW = {name: text for name, text in CHANGED.items() if name != "007.jpg"}


def test_what_is_left_is_what_readers_see_to_the_row(
    store: FeatureStore, expected: Expected, columns: tuple[Column, Column]
) -> None:
    before = sum(path.stat().st_size for path in segment_files(store))
    done = store.collect()
    (photos,) = done.sets
    assert [(kept.version, kept.because) for kept in photos.kept] == [(3, ("readers see it",))]
    assert photos.collected == (2, 1)
    assert (photos.segments, photos.rewritten, photos.rows) == (0, 1, 2)
    assert done.bytes == before - sum(path.stat().st_size for path in segment_files(store))
    assert stored(store) == rows_of(store, NOW)
    assert query(store, "SELECT count(*), count(removed_in) FROM images") == [(20, 0)]
    assert {row[0] for row in query(store, "SELECT sha256 FROM contents")} == {digest(t) for t in NOW.values()}
    for column in columns:
        np.testing.assert_array_equal(store["photos"].matrix(column.name).X, expected(NOW, column))
    assert verify_store(store.path).ok
    again = store.collect()
    assert (again.bytes, again.sets[0].collected, again.sets[0].rows) == (0, (), 0)


def test_a_collected_version_is_refused_and_stays_in_the_log(store: FeatureStore) -> None:
    store.collect()
    photos = store["photos"]
    for version in (1, 2):
        for ask in (photos.as_of, photos.revert, lambda v: photos.tag("late", v), lambda v: photos.ids(version=v)):
            with pytest.raises(VersionNotFoundError, match=rf"version {version} was collected by gc at 20.*store log"):
                ask(version)
    assert [(v.number, v.readable, v.collected is None) for v in photos.log()] == [
        (3, True, True), (2, False, False), (1, False, False),
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["tag", "bundle", "versions", "days"])
def test_a_version_that_somebody_wants_is_kept_whole(
    store: FeatureStore, bundle: Bundle, expected: Expected, columns: tuple[Column, Column], way: str
) -> None:
    photos = store["photos"]
    options: dict[str, float] = {}
    if way == "tag":
        photos.tag("v1", 1)
    elif way == "bundle":
        bundle(photos, "ants/2030", version=1)
    elif way == "versions":
        options = {"keep_versions": 3}
    else:
        options = {"keep_days": 0.5}
    (done,) = store.collect(**options).sets  # type: ignore[arg-type]
    because = {kept.version: kept.because for kept in done.kept}
    assert because[1] == {
        "tag": ("tag v1",),
        "bundle": ("bundle ants/2030",),
        "versions": ("one of the newest 3",),
        "days": ("seen in the last 0.5 days",),
    }[way]  # fmt: skip
    np.testing.assert_array_equal(photos.matrix("layer4", version=1).X, expected(FILES, columns[1]))
    np.testing.assert_array_equal(photos.matrix("layer4").X, expected(NOW, columns[1]))
    assert stored(store) == rows_of(store, {**FILES, "changed": "another", "new": "new"})
    assert (2 in because) is (way in ("versions", "days"))
    assert verify_store(store.path).ok


def test_days_count_from_when_readers_saw_it_last(store: FeatureStore) -> None:
    """Version 1 is old, but was what readers saw until version 2 came, an hour ago."""
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        db.execute("UPDATE versions SET created = '2020-01-01T00:00:00+00:00' WHERE id = 1")
        db.execute("UPDATE versions SET created = '2021-01-01T00:00:00+00:00' WHERE id = 2")
    db.close()
    (would,) = store.collect(keep_days=1, dry_run=True).sets
    assert [kept.version for kept in would.kept] == [3, 2]
    assert would.collected == (1,)


def test_a_clock_that_was_set_back_makes_no_version_old(store: FeatureStore) -> None:
    """Version 1 was what readers saw until a moment ago, when a machine without a clock committed version 2."""
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        db.execute("UPDATE versions SET created = '2020-01-01T00:00:00+00:00' WHERE id = 1")
        db.execute("UPDATE versions SET created = '1970-01-01T00:00:00+00:00' WHERE id = 2")
    db.close()
    (would,) = store.collect(keep_days=1, dry_run=True).sets
    assert [kept.version for kept in would.kept] == [3, 2, 1]


@pytest.mark.parametrize("options", [{"keep_versions": 0}, {"keep_days": -1}, {"keep_days": float("nan")}])
def test_a_number_that_makes_no_sense_is_refused(store: FeatureStore, options: dict[str, float]) -> None:
    with pytest.raises(RefusedError, match="1 version or more, and 0 to 36,500 days"):
        store.collect(**options)  # type: ignore[arg-type]


def test_a_version_of_the_same_state_as_a_kept_one_stays_readable(
    store: FeatureStore, expected: Expected, columns: tuple[Column, Column]
) -> None:
    """A revert is a second name of an old state: what it needs, the old version needs."""
    store["photos"].revert(1)
    (done,) = store.collect().sets
    assert [(kept.version, kept.because) for kept in done.kept] == [
        (4, ("readers see it",)),
        (1, ("the same state as another one",)),
    ]
    np.testing.assert_array_equal(store["photos"].matrix("layer4", version=1).X, expected(FILES, columns[1]))


def test_after_a_revert_the_folders_state_is_kept_for_the_next_run(
    store: FeatureStore, contract: Contract, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store["photos"].revert(1)
    store.collect()
    with store.writer("photos", contract, columns) as w:
        assert w.is_known(digest("new"), columns), "no forward pass is lost"
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(NOW, columns[1]))
    store.collect()
    assert stored(store) == rows_of(store, NOW)


def test_a_generation_being_filled_is_kept_and_one_given_up_is_not(
    store: FeatureStore, fill: Fill, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    def begin(contract: Contract) -> None:
        with pytest.raises(RuntimeError), store.writer("photos", contract, columns) as w:
            w.append([image("004.jpg")], [digest("picture 4")], {c: np.ones((1, c.width)) for c in columns})
            w.commit()
            raise RuntimeError

    begin(other_contract)
    uuid = store["photos"].log()[0].generation
    store.collect()
    assert (uuid, digest("picture 4")) in stored(store)
    fill(NOW)
    store.collect()
    assert (uuid, digest("picture 4")) in stored(store), "it may be gone on with"
    third = Contract("other", {}, "1" * 64, (), "pillow", ("full",), "fp32")
    fill(NOW, contract=third)
    store.collect()
    assert stored(store) == rows_of(store, NOW), "readers have gone on to a newer one"
    assert store["photos"].contract == third
    assert [path.name for path in (store.path / "segments/photos").iterdir()] == [store["photos"].generation]


def test_failures_and_refusals_go_with_the_versions_that_had_them(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    late = Column("layer2", Pooling.parse("max"), 2)
    with store.writer("photos", contract, [late]) as w:
        for name, text in FILES.items():
            values = np.full((1, 2), 1e5 if name in ("004.jpg", "005.jpg") else 1.0)
            w.append([image(name)], [digest(text)], {late: values})
        w.fail(image("bad.jpg"), "decode", "truncated")
    photos = store["photos"]
    photos.tag("bad", old := photos.version)
    remove(store, "004.jpg", "bad.jpg")
    told = photos.failures(version=old)
    assert [failure.id for failure in told] == ["004.jpg", "005.jpg", "bad.jpg"]
    store.collect()
    assert photos.failures(version=old) == told
    assert [failure.id for failure in photos.failures()] == ["005.jpg"]
    photos.untag("bad")
    store.collect()
    assert [failure.id for failure in photos.failures()] == ["005.jpg"]
    assert query(store, "SELECT count(*) FROM failures") == [(0,)]
    assert query(store, "SELECT count(*) FROM refusals") == [(1,)]
    assert verify_store(store.path).ok


def test_duplicates_and_moves_need_their_row_as_long_as_one_name_has_it(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    files = {"a.jpg": "same", "b.jpg": "same", "c.jpg": "moved", "d.jpg": "gone"}
    store = fill(files)
    fill({"b.jpg": "same", "e.jpg": "moved"})
    remove(store, "a.jpg", "c.jpg", "d.jpg")
    left = {"b.jpg": "same", "e.jpg": "moved"}
    store.collect()
    assert stored(store) == rows_of(store, left)
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(left, columns[1]))
    remove(store, "b.jpg")
    store.collect()
    assert stored(store) == rows_of(store, {"e.jpg": "moved"})


def test_a_tag_costs_what_is_no_longer_live_and_no_second_copy_after_a_merge(
    store: FeatureStore, expected: Expected, columns: tuple[Column, Column]
) -> None:
    """The merged segment holds what the tagged version reads, but for two rows, so that version reads it, too."""
    photos = store["photos"]
    photos.tag("v1", 1)
    photos.tag("v2", 2)
    (merged,) = store.compact()
    would = store.collect(dry_run=True)
    done = store.collect()
    assert _without_bytes(would) == _without_bytes(done)
    assert stored(store) == rows_of(store, {**CHANGED, "old": "picture 3"})
    assert len(segment_files(store)) == 2
    for version, files in (("v1", FILES), ("v2", CHANGED), (merged.version, NOW)):
        for column in columns:
            X = photos.matrix(column.name, version=version).X
            np.testing.assert_array_equal(X, expected(files, column))
    assert verify_store(store.path).ok
    assert store.collect().bytes == 0


def test_segments_merged_again_and_again_stand_in_for_each_other_in_one_go(
    store: FeatureStore, fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    photos = store["photos"]
    states = {"v1": FILES, "v3": NOW}
    photos.tag("v1", 1)
    photos.tag("v3", 3)
    for night in range(3):
        store.compact()
        states[f"n{night}"] = {**NOW, f"night {night}.jpg": f"night {night}", "b.jpg": f"b{night}"}
        fill(states[f"n{night}"])
        remove(store, f"night {night - 1}.jpg")
        photos.tag(f"n{night}")
    store.compact()
    store.collect()
    for tag, files in states.items():
        np.testing.assert_array_equal(photos.matrix("layer4", version=tag).X, expected(files, columns[1]))
    assert stored(store) == rows_of(store, {str(t): t for files in states.values() for t in files.values()})
    assert store.collect().bytes == 0


def test_a_row_that_was_computed_anew_does_not_stand_in_for_the_old_one(
    store: FeatureStore, contract: Contract, columns: tuple[Column, Column], image: Make, expected: Expected
) -> None:
    """A content that left, was merged away and came back may differ in the last bits: the tag keeps its own."""
    photos = store["photos"]
    photos.tag("v1", 1)
    store.compact()
    with store.writer("photos", contract, columns) as w:
        w.append([image("back.jpg")], [digest("picture 7")], {c: np.full((1, c.width), 0.5) for c in columns})
    store.compact()
    store.collect()
    np.testing.assert_array_equal(photos.matrix("layer4", version="v1").X, expected(FILES, columns[1]))
    X = photos.matrix("layer4").X
    np.testing.assert_array_equal(X[photos.ids().index("back.jpg")], np.full(6, 0.5))
    assert verify_store(store.path).ok


def test_a_merged_segment_shows_no_old_version_a_column_that_it_had_not(
    store: FeatureStore, fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    photos = store["photos"]
    photos.tag("v3")
    late = Column("layer2", Pooling.parse("max"), 3)
    fill(NOW, columns=[late])
    store.compact()
    store.collect()
    assert photos.as_of("v3").columns == columns
    np.testing.assert_array_equal(photos.matrix("layer4", version="v3").X, expected(NOW, columns[1]))
    np.testing.assert_array_equal(photos.matrix(late.name).X, expected(NOW, late))


def test_a_damaged_file_stands_in_for_nothing_and_is_replaced_by_nothing(
    store: FeatureStore, expected: Expected, columns: tuple[Column, Column]
) -> None:
    photos = store["photos"]
    photos.tag("v1", 1)
    before = segment_files(store)
    store.compact()
    (merged,) = set(segment_files(store)) - set(before)
    with h5py.File(merged, "r+") as file:
        file["columns/layer4:avg"][0, 0] += 1
    store.collect()
    np.testing.assert_array_equal(photos.matrix("layer4", version="v1").X, expected(FILES, columns[1]))


def test_rows_written_once_a_name_go_with_the_names(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    """Compaction writes a few duplicates out; two rows of a content are needed while two images have it."""
    files = {**{f"{i:03}.jpg": f"picture {i}" for i in range(40)}, "copy.jpg": "picture 5"}
    fill(FILES)
    store = fill(files)
    store.compact()
    store.collect()
    assert len(stored(store)) == 41
    remove(store, "005.jpg")
    store.collect()
    left = {name: text for name, text in files.items() if name != "005.jpg"}
    assert stored(store) == rows_of(store, left)
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(left, columns[1]))
    assert verify_store(store.path).ok


def test_a_content_that_comes_back_after_gc_gets_a_new_number(
    store: FeatureStore, fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    numbers = {row[0] for row in query(store, "SELECT id FROM contents")}
    store.collect()
    left = {row[0] for row in query(store, "SELECT id FROM contents")}
    fill(FILES)
    new = {row[0] for row in query(store, "SELECT id FROM contents")} - left
    assert len(new) == 2
    assert not new & numbers
    np.testing.assert_array_equal(
        store["photos"].matrix("layer4").X,
        expected({**NOW, **FILES}, columns[1]),
        "what was collected is computed anew",
    )


def test_a_set_nobody_touched_loses_nothing_for_another(
    store: FeatureStore, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    """Contents are shared by all sets of a store."""
    with store.writer("others", contract, columns) as w:
        w.append([image("7.jpg")], [digest("picture 7")], {c: np.full((1, c.width), 7) for c in columns})
    before = store["others"].matrix("layer4")
    done = store.collect()
    assert [one.set_name for one in done.sets] == ["others", "photos"]
    np.testing.assert_array_equal(store["others"].matrix("layer4").X, before.X)
    assert verify_store(store.path).ok


def test_a_rewritten_segment_says_of_itself_what_the_old_one_did(store: FeatureStore) -> None:
    first = max(segment_files(store), key=lambda path: path.read_bytes().count(b".jpg"))
    with h5py.File(first, "r+") as file:
        file.attrs["created"] = "2020-02-02T02:02:02+00:00"
        facts = {name: file.attrs[name] for name in ("created", "source", "versions", "contract", "generation", "set")}
        names = dict(
            zip((row.tobytes() for row in file["content"]), file["ids"][()].tobytes().split(b"\0"), strict=False)
        )
    written = (first.stat().st_size, xxhash.xxh3_128_hexdigest(first.read_bytes()), first.stem)
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        db.execute("UPDATE segments SET size = ?, checksum = ? WHERE uuid = ?", written)
        place = db.execute("SELECT id, added_in, removed_in FROM segments ORDER BY id").fetchall()
    assert store.collect().damaged == ()
    assert not first.exists()
    (second,) = [path for path in segment_files(store) if len(h5py.File(path)["content"]) > 5]
    with h5py.File(second, "r") as file:
        assert {name: file.attrs[name] for name in facts} == facts
        contents = [row.tobytes() for row in file["content"]]
        assert file["ids"][()].tobytes().split(b"\0")[:-1] == [names[content] for content in contents]
        assert contents == [content for content in names if content in contents], "the rows keep their order"
    assert query(store, "SELECT id, added_in, removed_in FROM segments ORDER BY id") == place


def test_a_dry_run_says_what_would_go_and_changes_nothing(store: FeatureStore) -> None:
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        before = list(db.iterdump())
    files = {path: path.read_bytes() for path in segment_files(store)}
    with writer_lock(store.path):
        would = store.collect(dry_run=True)
        with pytest.raises(LockedError):
            store.collect()
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        assert list(db.iterdump()) == before
    assert {path: path.read_bytes() for path in segment_files(store)} == files
    done = store.collect()
    assert would.dry_run
    assert not done.dry_run
    assert _without_bytes(would) == _without_bytes(done)


def _without_bytes(done: Collection) -> list[tuple[object, ...]]:
    """All but the bytes, which a dry run estimates for segments that would be written anew."""
    return [(s.set_name, s.kept, s.collected, s.segments, s.rewritten, s.rows) for s in done.sets]


def test_what_goes_whole_is_measured_before_it_goes(fill: Fill, other_contract: Contract) -> None:
    store = fill(FILES)
    (old,) = segment_files(store)
    size = old.stat().st_size
    fill(FILES, contract=other_contract)
    would = store.collect(dry_run=True)
    assert (would.bytes, would.sets[0].segments) == (size, 1)
    done = store.collect()
    assert done.bytes - done.catalog_bytes == size
    assert not old.exists()


@pytest.mark.parametrize("damage", ["gone", "empty", "{}", "format", "altered", "folder"])
def test_gc_refuses_while_a_bundle_cannot_say_which_version_it_relies_on(
    store: FeatureStore, bundle: Bundle, damage: str
) -> None:
    card = bundle(store["photos"], "ants/2030") / "card.json"
    text = card.read_text("utf-8")
    card.unlink()
    if damage == "gone":
        card.symlink_to("nowhere")
    elif damage == "folder":
        card.mkdir()
    else:
        card.write_text(
            {
                "empty": "",
                "{}": "{}",
                "format": text.replace('"format_version": 1', '"format_version": 99'),
                "altered": text.replace('"version": 3', '"version": 2'),
            }[damage]
        )
    before = segment_files(store), store["photos"].ids(version=1)
    for dry_run in (True, False):
        with pytest.raises(RefusedError, match=r"ants/2030/card.json.*nothing was collected: restore the bundle, or"):
            store.collect(dry_run=dry_run)
    assert (segment_files(store), store["photos"].ids(version=1)) == before


@pytest.mark.parametrize("form", [1, 2])
def test_gc_reads_bundles_of_every_version_of_their_format(
    store: FeatureStore, bundle: Callable[..., Path], form: int
) -> None:
    bundle(store["photos"], "ants/2030", form=form)
    needed = store["photos"].version
    store.collect()
    assert store["photos"].ids(version=needed) == store["photos"].ids()


def test_bundles_of_other_sets_and_stores_are_no_hindrance(
    store: FeatureStore, contract: Contract, columns: tuple[Column, Column], bundle: Bundle, image: Make
) -> None:
    with store.writer("others", contract, columns) as w:
        w.append([image("7.jpg")], [digest("7")], {c: np.full((1, c.width), 7) for c in columns})
    bundle(store["others"], "others/1")
    elsewhere = bundle(store["photos"], "strange/1", version=1)
    (elsewhere.parent / "notes.txt").write_text("not a bundle")
    (store.path / "models/README").write_text("neither")
    done = store.collect(dry_run=True)
    assert [kept.version for kept in done.sets[0].kept] == [4]
    assert [kept.version for kept in done.sets[1].kept] == [3, 1]


def test_damage_is_left_where_it_is_and_the_rest_is_done(store: FeatureStore) -> None:
    """A segment that does not match its checksums is not copied under a fresh one; repair is for that."""
    remove(store, "new.jpg")
    big, small = sorted(segment_files(store), key=lambda path: -len(h5py.File(path)["content"]))
    with h5py.File(big, "r+") as file:
        file["columns/layer4:avg"][0, 0] += 1
    done = store.collect()
    assert [str(big) in line and "layer4:avg" in line for line in done.damaged] == [True]
    assert (done.sets[0].rewritten, done.sets[0].rows) == (1, 1)
    assert big.exists()
    assert not small.exists()
    problems = verify_store(store.path).problems
    assert [problem.path for problem in problems] == [big.relative_to(store.path).as_posix()]


def test_the_catalog_shrinks_when_much_of_it_is_free(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    for night in range(2):
        with store.writer("photos", contract, columns[:1]) as w:
            images = [image(f"{night}-{i}.jpg") for i in range(3000)]
            X = np.ones((3000, 4), dtype=np.float32)
            w.append(images, [digest(i.id) for i in images], {columns[0]: X})
            w.remove([f"{night - 1}-{i}.jpg" for i in range(3000)])
    remove(store, *(f"1-{i}.jpg" for i in range(3000)))
    before = (store.path / "catalog.sqlite").stat().st_size
    done = store.collect()
    assert before - (store.path / "catalog.sqlite").stat().st_size == done.catalog_bytes > before / 2
    assert store["photos"].ids() == sorted(FILES)


STEPS = [
    (publishing, "write_segment"),
    (publishing, "file_checksum"),
    (durable, "fsync_file"),
    (durable, "fsync_folder"),
    (collect, "_forget"),
    (collect, "sweep"),
    (collect, "publish_rewritten"),
    (collect, "enter_rewritten"),
    (rewrite, "pack_ids"),
    (registry, "fsync_folder"),
    (collect, "forget_unused"),
    (collect, "shrink"),
]


def check_kept(store: FeatureStore, expected: Expected, columns: tuple[Column, Column], now: dict[str, str]) -> None:
    for column in columns:
        np.testing.assert_array_equal(store["photos"].matrix(column.name).X, expected(now, column))
        np.testing.assert_array_equal(store["photos"].matrix(column.name, version="v1").X, expected(FILES, column))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[f"{m.__name__.split('.')[-1]}-{step}" for m, step in STEPS])
def test_a_fault_at_any_step_loses_nothing_that_is_kept_and_the_next_gc_does_the_rest(
    store: FeatureStore,
    fill: Fill,
    expected: Expected,
    columns: tuple[Column, Column],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    step: str,
    after: bool,
) -> None:
    store["photos"].tag("v1", 1)
    left = {**NOW, "late.jpg": "late"}
    store.compact()  # stands in for the first segment as of v1, but for one row
    fill({**left, "gone.jpg": "y"})  # of its segment a part goes, of the next one all
    fill({**left, "gone.jpg": "z"})
    remove(store, "gone.jpg")
    real = getattr(module, step)

    def fail(*args: object, **kwargs: object) -> object:
        if after:
            real(*args, **kwargs)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(OSError, match="No space left"):
            store.collect()
    check_kept(store, expected, columns, left)
    assert verify_store(store.path).ok
    store.collect()
    check_kept(store, expected, columns, left)
    assert stored(store) == rows_of(store, {**FILES, **left, "old": "picture 3"})
    assert verify_store(store.path).ok
    assert query(store, "SELECT count(*) FROM intents") == [(0,)]


KILLS = [
    "publishing.publish", "collect._forget", "collect.sweep", "rewrite.publish_segment", "collect.publish_rewritten",
    "collect.enter_rewritten", "registry.fsync_folder", "collect.forget_unused", "collect.shrink",
]  # fmt: skip


@pytest.mark.parametrize("step", KILLS)
def test_a_kill_at_any_step_loses_nothing_that_is_kept(
    store: FeatureStore, expected: Expected, columns: tuple[Column, Column], step: str
) -> None:
    store["photos"].tag("v1", 1)
    store["photos"].tag("v2", 2)
    store.collect()
    store["photos"].untag("v2")
    remove(store, "new.jpg")
    store.compact()
    left = {name: text for name, text in NOW.items() if name != "new.jpg"}
    module, name = step.split(".")
    code = f"""
        import os, signal
        from icecore.store import FeatureStore, {module}
        real = {module}.{name}
        def kill(*args, **kwargs):
            real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        {module}.{name} = kill
        FeatureStore.open({str(store.path)!r}).collect()
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    check_kept(store, expected, columns, left)
    assert verify_store(store.path).ok
    store.collect()
    check_kept(store, expected, columns, left)
    assert stored(store) == rows_of(store, {**FILES, **left, "old": "picture 3"})
    assert verify_store(store.path).ok


def test_the_sweep_deletes_what_was_taken_out_and_nothing_that_is_there(store: FeatureStore) -> None:
    """Even if a note named a segment of the catalog, its file would stay."""
    (uuid, path), *_ = query(store, "SELECT uuid, path FROM segments")
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        db.execute("INSERT INTO intents VALUES (?, ?)", (uuid, path))
        db.execute("INSERT INTO intents VALUES ('0', 'segments/photos/0/0.h5')")
    stray = store.path / "segments/photos/0/0.h5"
    stray.parent.mkdir()
    stray.write_bytes(b"")
    remove(store, "000.jpg")
    assert not stray.parent.exists()
    assert (store.path / str(path)).exists()
    assert verify_store(store.path).ok
    assert os.listdir(store.path / "segments/photos") == [store["photos"].generation]


def test_a_reader_in_another_process_reads_right_while_files_are_merged_and_deleted(fill: Fill) -> None:
    """It reads on and on what is latest, a tag, and an array opened before, and must never miss a file."""
    store = fill(FILES)
    store["photos"].tag("first")
    code = f"""
        import numpy as np
        from icecore.store import FeatureStore
        photos = FeatureStore.open({str(store.path)!r})["photos"]
        first = photos.matrix("layer4")
        opened = photos.array("layer4")
        while True:
            ids, X = photos.matrix("layer4")
            assert [i for i in ids if i in set(first.ids)] == first.ids
            assert np.array_equal(X[[ids.index(i) for i in first.ids]], first.X)
            tagged = photos.matrix("layer4", version="first")
            assert tagged.ids == first.ids and np.array_equal(tagged.X, first.X)
            assert np.array_equal(opened.read(dtype="float32"), first.X)
            print(max(ids), flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        for night in range(6):
            name = f"{night:03}-new.jpg"
            fill({name: f"new {night}", f"z{night:03}.jpg": f"last {night}"})
            remove(store, f"{night - 1:03}-new.jpg")
            store.compact()
            store.collect()
            while (line := reader.stdout.readline()) and line.strip() != f"z{night:03}.jpg":
                continue
            assert line, "the reader failed"
        reader.kill()
    assert verify_store(store.path).ok


def test_a_file_that_is_deleted_between_the_look_and_the_opening_is_no_damage(
    fill: Fill, monkeypatch: pytest.MonkeyPatch, expected: Expected, columns: tuple[Column, Column]
) -> None:
    fill(FILES)
    store = fill(CHANGED)
    array = opening.FeatureArray

    def collect_then_open(*args: Any) -> Any:
        monkeypatch.setattr(opening, "FeatureArray", array)
        store.compact()
        assert store.collect().sets[0].segments
        return array(*args)

    monkeypatch.setattr(opening, "FeatureArray", collect_then_open)
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(CHANGED, columns[1]))
    monkeypatch.setattr(opening, "FeatureArray", lambda *args: (remove(store, "new.jpg"), collect_then_open(*args))[1])
    with pytest.raises(VersionNotFoundError, match="was collected by gc"):
        store["photos"].matrix("layer4", version=store["photos"].version)
