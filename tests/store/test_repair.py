"""A damaged store put right: what is proven stays, what is lost is told, and the next run computes exactly that."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    IncompleteColumnError,
    LockedError,
    Pooling,
    RepairReport,
    SourceImage,
    StoreDamagedError,
    StoreNotFoundError,
    VersionNotFoundError,
    repair_store,
    salvage,
    scan_folder,
    verify_store,
)
from icecore.store.holdings import pack_ids, unpack_ids
from icecore.store.lock import writer_lock

Fill = Callable[..., FeatureStore]
Vectors = Callable[[bytes, Column], np.ndarray]
Expected = Callable[[dict[str, str], Column], np.ndarray]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
MORE = {**FILES, **{f"{i:03}.jpg": f"picture {i}" for i in range(20, 30)}}


def files_of(store: FeatureStore) -> list[Path]:
    """The segment files, from the oldest to the newest."""
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db:
        return [store.path / row[0] for row in db.execute("SELECT path FROM segments ORDER BY id")]


def flip(path: Path, dataset: str = "columns/layer4:avg") -> None:
    """Change one bit of a dataset, where HDF5 says that it lies."""
    with h5py.File(path) as file:
        offset = file[dataset].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 3] ^= 1
    path.write_bytes(data)


def flip_header(path: Path) -> None:
    """Change a byte outside of all data: of the text of the library versions."""
    data = path.read_bytes()
    at = data.index(b'"pillow"')
    path.write_bytes(data[: at + 1] + b"P" + data[at + 2 :])


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "writer.lock" and not path.name.endswith(("-wal", "-shm"))
    }


def everything(store: FeatureStore, name: str = "photos") -> dict[str, dict[str, bytes]]:
    """What readers get: column -> image -> row."""
    features = store[name]
    found = {}
    for column in features.columns:
        ids, X = features.matrix(column.name, missing="drop")
        found[column.name] = {i: row.tobytes() for i, row in zip(ids, X, strict=True)}
    return found


def lost(report: RepairReport) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {one.columns: one.ids for one in report.lost}


def rerun(
    store: FeatureStore, contract: Contract, columns: Sequence[Column], photos: Path, vectors: Vectors
) -> list[str]:
    """A run of extract as the writer sees it; gives the images whose features were computed."""
    computed = []
    with store.writer("photos", contract, columns) as writer:
        plan = writer.plan(scan_folder(photos))
        for group in plan.groups:
            for image in group.images:
                content = hashlib.sha256(image.path.read_bytes()).digest()
                if writer.is_known(content, group.columns):
                    writer.link(image, content)
                    continue
                computed.append(image.id)
                writer.append([image], [content], {column: vectors(content, column)[None] for column in group.columns})
        writer.remove(plan.gone)
    return computed


def save(photos: Path, files: dict[str, str]) -> None:
    """Write image files as they are in ``fill``, their times well in the past."""
    photos.mkdir(exist_ok=True)
    for name in {path.name for path in photos.iterdir()} - set(files):
        (photos / name).unlink()
    for name, text in files.items():
        if not (photos / name).exists() or (photos / name).read_text() != text:
            (photos / name).write_text(text)
            os.utime(photos / name, (1_000_000, 1_000_000))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images; the clock of runs is ahead, so that a change time of now can be trusted."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 60_000_000_000)
    return tmp_path / "images"


# The catalog is whole.


def test_a_sound_store_is_left_as_it_is(fill: Fill) -> None:
    store = fill(FILES)
    before, version = tree(store.path), store["photos"].version
    report = repair_store(store.path)
    assert not report.is_needed
    assert (tree(store.path), store["photos"].version) == (before, version)


def test_good_columns_of_a_damaged_segment_are_kept_and_only_the_rest_is_lost(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    fill(MORE)
    first, second = files_of(store)
    flip(first)
    report = repair_store(store.path)
    assert lost(report) == {("layer4:avg",): tuple(FILES)}
    (moved,) = report.moved
    assert (moved.path, moved.to) == (first.relative_to(store.path).as_posix(), f"quarantine/{first.name}")
    assert "columns/layer4:avg" in moved.what
    assert (store.path / moved.to).is_file()
    assert not first.exists()
    assert verify_store(store.path).ok
    assert second in files_of(store)
    np.testing.assert_array_equal(store["photos"].matrix("layer3").X, expected(MORE, columns[0]))
    with pytest.raises(IncompleteColumnError, match="covers 10 of 30"):
        store["photos"].matrix("layer4")
    assert store["photos"].matrix("layer4", missing="drop").ids == sorted(MORE)[20:]


def test_the_next_run_computes_exactly_what_was_lost(
    fill: Fill, photos: Path, contract: Contract, columns: tuple[Column, Column], vectors: Vectors, expected: Expected
) -> None:
    save(photos, MORE)
    store = FeatureStore.create(fill({}).path)
    save(photos, FILES)
    rerun(store, contract, columns, photos, vectors)
    save(photos, MORE)
    rerun(store, contract, columns, photos, vectors)
    assert rerun(store, contract, columns, photos, vectors) == []
    files_of(store)[0].unlink()
    report = repair_store(store.path)
    assert lost(report) == {("layer3:avg", "layer4:avg"): tuple(FILES)}
    assert rerun(store, contract, columns, photos, vectors) == sorted(FILES)
    for column in columns:
        np.testing.assert_array_equal(store["photos"].matrix(column.name).X, expected(MORE, column))
    assert verify_store(store.path).ok


def test_a_byte_changed_outside_the_features_costs_nothing(fill: Fill) -> None:
    store = fill(FILES)
    before = everything(store)
    (path,) = files_of(store)
    flip_header(path)
    report = repair_store(store.path)
    assert (report.damaged, report.lost, len(report.written)) == (1, (), 1)
    assert everything(store) == before
    assert verify_store(store.path).ok


def test_old_versions_lack_what_is_lost_and_never_read_as_something_else(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    old = store["photos"].version
    changed = {**FILES, "003.jpg": "another"}
    fill(changed)
    middle = store["photos"].version
    flip(files_of(store)[0])
    repair_store(store.path)
    for version, files in ((old, FILES), (middle, changed)):
        np.testing.assert_array_equal(store["photos"].matrix("layer3", version=version).X, expected(files, columns[0]))
    with pytest.raises(IncompleteColumnError):
        store["photos"].matrix("layer4", version=middle)
    assert store["photos"].matrix("layer4", version=middle, missing="drop").ids == ["003.jpg"]
    assert store["photos"].version == middle + 1, "the log says that something has happened"


def test_what_only_old_versions_had_is_nothing_to_extract_again(fill: Fill) -> None:
    store = fill({**FILES, "003.jpg": "before"})
    fill(FILES)
    store.compact()
    now = everything(store)
    files_of(store)[0].unlink()
    report = repair_store(store.path)
    assert (report.damaged, report.lost) == (1, ())
    assert everything(store) == now


def test_a_file_under_another_name_is_put_back(fill: Fill) -> None:
    store = fill(FILES)
    before = everything(store)
    (path,) = files_of(store)
    path.rename(path.with_name("other.h5"))
    report = repair_store(store.path)
    assert [moved.to for moved in report.moved] == [path.relative_to(store.path).as_posix()]
    assert everything(store) == before
    assert verify_store(store.path).ok


def test_two_files_that_changed_places_are_told_apart(fill: Fill, columns: tuple[Column, Column]) -> None:
    """Both hold the same contents in the same order: rows of one column must not be taken for those of the other."""
    twins = [Column("layer3", Pooling.parse("avg"), 6), Column("layer4", Pooling.parse("avg"), 6)]
    store = fill(FILES, columns=twins[:1])
    fill(FILES, columns=twins[1:])
    before = everything(store)
    first, second = files_of(store)
    os.rename(first, first.with_suffix(".x"))
    os.rename(second, first)
    os.rename(first.with_suffix(".x"), second)
    assert {problem.path for problem in verify_store(store.path).problems} == {
        first.relative_to(store.path).as_posix(),
        second.relative_to(store.path).as_posix(),
    }
    repair_store(store.path)
    assert verify_store(store.path).ok
    for name, rows in everything(store).items():
        assert rows.items() <= before[name].items()


def test_a_catalog_row_that_points_at_other_rows_is_entered_anew_from_the_file(fill: Fill) -> None:
    store = fill(FILES)
    before = everything(store)
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db, db:
        packed, rows = db.execute("SELECT contents, rows FROM segments").fetchone()
        db.execute("UPDATE segments SET contents = ?", (pack_ids(unpack_ids(packed, rows)[::-1]),))
        db.execute("UPDATE segment_columns SET offset = offset + 8")
    assert everything(store) != before
    report = repair_store(store.path)
    assert (report.damaged, report.moved, report.lost) == (1, (), ())
    assert everything(store) == before
    assert verify_store(store.path).ok


def test_a_catalog_from_a_back_up_takes_in_the_segments_that_came_later(fill: Fill, tmp_path: Path) -> None:
    store = fill(FILES)
    shutil.copy(store.path / "catalog.sqlite", tmp_path / "back-up")
    fill(MORE)
    store.close()
    shutil.copy(tmp_path / "back-up", store.path / "catalog.sqlite")
    assert [problem.what for problem in verify_store(store.path).problems] == ["is not in the catalog"]
    report = repair_store(store.path)
    assert (report.moved, report.lost) == ((), ())
    assert verify_store(store.path).ok
    again = fill(MORE)
    assert len(files_of(again)) == 2, "the rows are known: linked, not written again"


def test_a_back_up_that_still_refuses_what_was_stored_since_is_sound_after_repair(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], tmp_path: Path
) -> None:
    store = fill(FILES)
    refused = SourceImage("x.jpg", Path("x.jpg"), 1, 1, 1)
    for value in (1e9, 1.0):
        with store.writer("photos", contract, columns[:1]) as w:
            w._retries = True
            w.append([refused], [b"x" * 32], {columns[0]: np.full((1, 4), value)})
        store.close()
        if value > 1:
            shutil.copy(store.path / "catalog.sqlite", tmp_path / "back-up")
    shutil.copy(tmp_path / "back-up", store.path / "catalog.sqlite")
    assert repair_store(store.path).moved == ()
    assert verify_store(store.path).ok
    assert not repair_store(store.path).is_needed
    assert "x.jpg" in store["photos"].matrix("layer3").ids


def test_a_stranger_that_has_nothing_new_is_moved_aside(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = files_of(store)
    shutil.copy(path, path.with_name("copy.h5"))
    (path.parent / "noise.h5").write_bytes(b"noise")
    report = repair_store(store.path)
    assert sorted(moved.to for moved in report.moved) == ["quarantine/copy.h5", "quarantine/noise.h5"]
    assert verify_store(store.path).ok


def test_all_files_missing_is_taken_for_a_disk_that_is_away(fill: Fill) -> None:
    store = fill(FILES)
    (store.path / "segments").rename(store.path.parent / "away")
    with pytest.raises(StoreDamagedError, match="is a disk not mounted"):
        repair_store(store.path)
    (store.path.parent / "away").rename(store.path / "segments")
    assert verify_store(store.path).ok
    shutil.rmtree(store.path / "segments")
    report = repair_store(store.path, accept_loss=True)
    assert lost(report) == {("layer3:avg", "layer4:avg"): tuple(FILES)}


def test_a_dry_run_says_the_same_and_changes_nothing(fill: Fill) -> None:
    store = fill(FILES)
    fill(MORE)
    flip(files_of(store)[0])
    files_of(store)[1].rename(store.path / "segments" / "elsewhere.h5")
    before = tree(store.path)
    with writer_lock(store.path):
        would = repair_store(store.path, dry_run=True)
        with pytest.raises(LockedError):
            repair_store(store.path)
    assert tree(store.path) == before
    did = repair_store(store.path)
    assert (would.lost, would.moved, would.versions) == (did.lost, did.moved, did.versions)
    assert len(would.written) == len(did.written) == 1


def test_killed_between_the_catalog_and_the_moves_a_second_run_ends_it(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(FILES)
    fill(MORE)
    (store.path / "segments" / "odd.h5").write_bytes(b"odd")
    flip(files_of(store)[0])
    would = repair_store(store.path, dry_run=True)
    for step in ("_replace", "_tell", "_adopt"):
        child = os.fork()
        if child == 0:
            monkeypatch.setattr(salvage, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            repair_store(store.path)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    repair_store(store.path)
    assert verify_store(store.path).ok
    assert store["photos"].matrix("layer4", missing="drop").ids == sorted(set(MORE) - set(would.lost[0].ids))
    assert len(store["photos"].matrix("layer3").ids) == 30


def test_values_that_are_not_finite_are_damage(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    from icecore.store import writer

    def lax(features: dict[Column, np.ndarray]) -> object:
        return {column: X.astype("<f2") for column, X in features.items()}, {}

    monkeypatch.setattr(writer, "cast_rows", lax)
    store = fill({})
    contract, column = (
        Contract("m", {}, "0" * 64, (), "pillow", ("full",), "fp32"),
        Column("x", Pooling.parse("avg"), 3),
    )
    with store.writer("odd", contract, [column]) as w:
        from icecore.store import SourceImage

        for number in range(3):
            values = np.array([[1.0, np.inf if number == 1 else 2.0, 3.0]])
            w.append([SourceImage(f"{number}.jpg", Path("x"), 1, 1, 1)], [bytes([number] * 32)], {column: values})
    (problem,) = verify_store(store.path).problems
    assert problem.what == "columns/x:avg has a value in row 1 that is not finite"


# The catalog is missing or cannot be trusted.


def drop_catalog(store: FeatureStore) -> None:
    store.close()
    for path in store.path.glob("catalog.sqlite*"):
        path.unlink()


@pytest.mark.parametrize(
    "ruin",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"something else altogether " * 400),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:9000]),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["missing", "overwritten", "empty", "cut", "a folder"],
)
def test_a_catalog_is_made_anew_from_the_segments(fill: Fill, ruin: Callable[[Path], object]) -> None:
    store = fill(FILES)
    fill(MORE)
    before, generation = everything(store), store["photos"].generation
    store.close()
    ruin(store.path / "catalog.sqlite")
    with pytest.raises(StoreDamagedError, match="icecore store repair"):
        FeatureStore.create(store.path)
    report = repair_store(store.path)
    assert report.rebuilt
    assert (report.images, report.lost, report.ambiguous) == (30, (), 0)
    assert everything(store) == before
    assert store["photos"].generation == generation
    assert verify_store(store.path).ok
    assert not repair_store(store.path).is_needed
    assert {moved.path.split("-")[0] for moved in report.moved} <= {"catalog.sqlite"}


def test_after_it_the_next_run_computes_nothing_and_brings_names_and_deletions_back(
    fill: Fill, photos: Path, contract: Contract, columns: tuple[Column, Column], vectors: Vectors, expected: Expected
) -> None:
    store = FeatureStore.create(fill({}).path)
    save(photos, FILES)
    rerun(store, contract, columns, photos, vectors)
    files = {**FILES, "copy.jpg": "picture 1", "004.jpg": "changed", "000.jpg": "picture 7"}
    files["moved.jpg"] = files.pop("005.jpg")
    del files["006.jpg"]
    save(photos, files)
    assert rerun(store, contract, columns, photos, vectors) == ["004.jpg"]
    drop_catalog(store)
    report = repair_store(store.path)
    assert {"006.jpg", "005.jpg"} <= set(store["photos"].ids())
    assert report.ambiguous == 1, "004.jpg was something else once"
    assert rerun(store, contract, columns, photos, vectors) == []
    for column in columns:
        ids, X = store["photos"].matrix(column.name)
        assert ids == sorted(files)
        np.testing.assert_array_equal(X, expected(files, column))
    assert verify_store(store.path).ok


def test_a_segment_and_the_merged_one_enter_each_content_once(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill({**FILES, "003.jpg": "before"})
    fill(FILES)
    fill(MORE)
    store.compact()
    assert len(files_of(store)) == 4
    drop_catalog(store)
    report = repair_store(store.path)
    assert verify_store(store.path).ok, "no column has a content twice"
    assert len(report.written) == 1, "the row that only an old version had"
    for column in columns:
        np.testing.assert_array_equal(store["photos"].matrix(column.name).X, expected(MORE, column))
    assert sum(moved.to.startswith("quarantine/") for moved in report.moved) == 3


def test_columns_generations_and_sets_come_back_and_readers_see_the_newest(
    fill: Fill, contract: Contract, other_contract: Contract, columns: tuple[Column, Column], vectors: Vectors
) -> None:
    from icecore.store import SourceImage, catalog

    late = Column("layer2", Pooling.parse("max"), 3)
    clock = iter(f"2030-01-01T00:00:{second:02}+00:00" for second in range(60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "now", lambda *_: next(clock))
        store = fill(FILES)
        fill(FILES, columns=[late])
        fill(FILES, contract=other_contract)
        with store.writer("others", contract, [late]) as w:
            w.append([SourceImage("x.jpg", Path("x"), 1, 1, 1)], [bytes(32)], {late: np.ones((1, 3))})
    generation = store["photos"].generation
    drop_catalog(store)
    report = repair_store(store.path)
    assert report.versions == {"others": 1, "photos": 2}
    assert store.sets() == ("others", "photos")
    assert (store["photos"].generation, store["photos"].contract) == (generation, other_contract)
    fill(FILES, columns=[late])
    assert len(files_of(store)) == 4, "the rows of the older generation are known"


def test_a_generation_that_was_being_filled_is_not_what_readers_see(
    fill: Fill, contract: Contract, other_contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    features = {column: np.ones((1, column.width)) for column in columns}
    with pytest.raises(RuntimeError, match="cut off"), store.writer("photos", other_contract, columns) as w:
        w.append([SourceImage("000.jpg", Path("x"), 1, 1, 1)], [hashlib.sha256(b"picture 0").digest()], features)
        w.commit()
        raise RuntimeError("cut off")
    drop_catalog(store)
    repair_store(store.path)
    photos = store["photos"]
    assert photos.contract == contract
    assert photos.matrix("layer4").ids == sorted(FILES)
    assert len(files_of(store)) == 2, "what was filled is kept, too"
    store.collect()
    assert len(files_of(store)) == 2
    fill(FILES, contract=other_contract)
    assert store["photos"].contract == other_contract
    store.collect()
    assert [path.parent.name for path in files_of(store)] == [store["photos"].generation] * len(files_of(store))


def test_a_number_of_a_version_never_comes_to_mean_something_else(fill: Fill) -> None:
    store = fill(FILES)
    bundle = store.models_path / "default" / "20300101T000000Z-00000000"
    bundle.mkdir(parents=True)
    (bundle / "card.json").write_text(json.dumps({"version": 41}))
    drop_catalog(store)
    (odd := bundle.with_name("odd")).mkdir()
    (odd / "card.json").write_text("{")
    report = repair_store(store.path)
    assert (store["photos"].version, report.odd_cards) == (42, ("models/default/odd/card.json",))
    with pytest.raises(VersionNotFoundError):
        store["photos"].matrix("layer4", version=41)
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db, db:
        db.execute("UPDATE images SET content_id = 999")  # whole pages, false references
    repair_store(store.path)
    assert store["photos"].version == 43, "the old catalog could still say so"
    assert (bundle / "card.json").is_file()


def test_a_card_with_a_version_that_no_store_reaches_is_told_and_not_believed(fill: Fill) -> None:
    store = fill(FILES)
    card = store.path / "models" / "default" / "odd" / "card.json"
    card.parent.mkdir(parents=True)
    card.write_text(json.dumps({"version": 10**20}), "utf-8")
    drop_catalog(store)
    report = repair_store(store.path)
    assert (store["photos"].version, report.odd_cards) == (1, ("models/default/odd/card.json",))


def test_what_a_damaged_segment_still_has_is_saved_without_a_catalog_too(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    fill(MORE)
    first, second = files_of(store)
    flip(first)
    flip(second, "ids")
    drop_catalog(store)
    report = repair_store(store.path)
    assert lost(report) == {("layer4:avg",): tuple(FILES)}
    assert {moved.what for moved in report.moved} == {
        "bytes changed in layer4:avg",
        "bytes changed in the names or contents of its rows",
    }
    np.testing.assert_array_equal(store["photos"].matrix("layer3").X, expected(FILES, columns[0]))
    assert verify_store(store.path).ok


def test_a_rebuild_that_is_killed_anywhere_can_be_run_again(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    from icecore.store import rebuild

    store = fill({**FILES, "003.jpg": "before"})
    fill(FILES)
    store.compact()
    before = everything(store)
    store.close()
    (store.path / "catalog.sqlite").write_bytes(b"ruined" * 1000)
    moves: list[str] = []
    move = rebuild.Movements.aside
    for step in ("settle", "set_head", "fsync_file", "aside"):
        child = os.fork()
        if child == 0:
            if step == "aside":

                def kill_second(self: object, *args: str) -> None:
                    if moves:
                        os.kill(os.getpid(), signal.SIGKILL)
                    moves.append(args[0])
                    move(self, *args)  # type: ignore[arg-type]

                monkeypatch.setattr(rebuild.Movements, "aside", kill_second)
            else:
                monkeypatch.setattr(rebuild, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            repair_store(store.path)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, step
    repair_store(store.path)
    assert everything(store) == before
    assert verify_store(store.path).ok
    assert not list(store.path.glob("*.tmp*"))


def test_a_dry_run_of_a_rebuild_changes_nothing(fill: Fill) -> None:
    store = fill({**FILES, "003.jpg": "before"})
    fill(FILES)
    store.compact()
    drop_catalog(store)
    before = tree(store.path)
    would = repair_store(store.path, dry_run=True)
    assert tree(store.path) == before
    did = repair_store(store.path)
    assert (would.images, would.versions, would.moved) == (did.images, did.versions, did.moved)


def test_a_folder_without_a_store_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        repair_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unfinished_files_are_moved_aside_and_are_no_damage(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = files_of(store)
    unfinished = path.with_name(f"{'0' * 32}.h5.tmp")
    unfinished.write_bytes(b"half")
    report = verify_store(store.path)
    assert (report.ok, report.leftovers) == (True, (unfinished.relative_to(store.path).as_posix(),))
    assert [moved.to for moved in repair_store(store.path).moved] == [f"quarantine/{unfinished.name}"]
