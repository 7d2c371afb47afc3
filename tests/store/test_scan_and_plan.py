from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from icecore.store import Column, Contract, FeatureStore, Plan, Pooling, SourceError, plan_sync, scan_folder
from icecore.store.spool import Spool

Save = Callable[[Path], FeatureStore]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ["b/2.jpg", "a/1.JPG", "a/notes.txt", ".hidden.jpg", "a b.png"]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def age(folder: Path) -> None:
    """Make sure that what was written lies outside the racy window; ctime cannot be set back, so wait."""
    newest = max(max(p.stat().st_mtime_ns, p.stat().st_ctime_ns) for p in folder.rglob("*") if p.is_file())
    time.sleep(max(0.0, (newest + 2_100_000_000 - time.time_ns()) / 1e9))


def test_images_come_in_the_order_of_their_bytes(photos: Path) -> None:
    os.mkdir(photos / "Z")
    for name in ["Z/\udcff.jpg", "Z/é.jpg", "Z/new\nline.jpg", "a.jpg", "a-/1.jpg", "a0.jpg", "a/1/2.jpg", "a/1-.jpg"]:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"x")
    scan = scan_folder(photos)
    keys = [os.fsencode(image.id) for image in scan.images()]
    assert keys == sorted(keys)
    assert len(keys) == 11
    assert {"b/2.jpg", "a/1.JPG", "a b.png", "Z/\udcff.jpg", "Z/é.jpg", "Z/new\nline.jpg"} <= {
        image.id for image in scan.images()
    }
    list(scan)
    assert scan.ignored == 2
    assert all(image.path.read_bytes() for image in scan.images())


def test_links_are_followed_but_never_in_a_circle(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "3.jpg").write_bytes(b"3")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "up").symlink_to(photos)
    (photos / "loop.jpg").symlink_to("loop.jpg")
    (photos / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(photos / "pipe.jpg")
    scan = scan_folder(photos)
    assert "linked/3.jpg" in [image.id for image in scan.images()]
    assert {image.id: reason for image, reason in scan.broken()} == {
        "up": "symbolic link to a folder above it",
        "loop.jpg": "Too many levels of symbolic links",
        "dangling.jpg": "symbolic link that leads nowhere",
        "pipe.jpg": "not a regular file",
    }


def test_an_empty_or_missing_folder_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("hello")
    with pytest.raises(SourceError, match=r"no images \(1 other files; looked for .*\.jpg"):
        scan_folder(tmp_path / "empty")
    with pytest.raises(SourceError, match="no such image folder"):
        scan_folder(tmp_path / "missing")


def test_a_folder_that_cannot_be_listed_stops_the_scan(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def refuse(path: bytes) -> object:
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied", os.fsdecode(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match=r"b: cannot be listed \(Permission denied\); nothing was changed"):
        list(scan_folder(photos))


@pytest.fixture
def save(tmp_path: Path, contract: Contract, columns: tuple[Column, Column]) -> Save:
    def write(folder: Path) -> FeatureStore:
        import hashlib

        import numpy as np

        store = FeatureStore.create(tmp_path / "features")
        with store.writer("photos", contract, columns) as writer:
            plan = writer.plan(scan_folder(folder))
            for group in plan.groups:
                for image in group.images:
                    content = hashlib.sha256(image.path.read_bytes()).digest()
                    if writer.is_known(content, group.columns):
                        writer.link(image, content)
                    else:
                        writer.append([image], [content], {c: np.ones((1, c.width)) for c in group.columns})
            writer.remove(plan.gone)
        return store

    return write


def replan(store: FeatureStore, folder: Path, contract: Contract, columns: object, **options: bool) -> Plan:
    return plan_sync(store.path, "photos", contract, columns, scan_folder(folder), **options)  # type: ignore[arg-type]


def test_a_store_that_does_not_exist_plans_everything_and_is_not_made(
    photos: Path, tmp_path: Path, contract: Contract, columns: tuple[Column, Column]
) -> None:
    plan = plan_sync(tmp_path / "none", "photos", contract, columns, scan_folder(photos))
    assert (plan.added, plan.to_read, plan.total) == (3, 3, 0)
    assert not (tmp_path / "none").exists()


def test_nothing_is_read_again_once_the_file_times_can_be_trusted(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = save(photos)
    assert replan(store, photos, contract, columns).racy == 3
    age(photos)
    save(photos)
    plan = replan(store, photos, contract, columns)
    assert (plan.unchanged, plan.to_read, plan.gone) == (3, 0, ())
    assert replan(store, photos, contract, columns, rehash=True).to_read == 3


def test_an_overwrite_of_the_same_size_is_noticed_even_with_its_old_mtime(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    """Peer defect 11: an overwritten file went unseen. ctime cannot be set back."""
    age(photos)
    store = save(photos)
    victim = photos / "b/2.jpg"
    times = victim.stat()
    victim.write_bytes(victim.read_bytes()[::-1])
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert victim.stat().st_size == times.st_size
    plan = replan(store, photos, contract, columns)
    assert (plan.changed, plan.unchanged) == (1, 2)
    assert [image.id for group in plan.groups for image in group.images] == ["b/2.jpg"]


def test_moves_and_removals(photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]) -> None:
    store = save(photos)
    segments = sorted(store.path.glob("segments/**/*.h5"))
    (photos / "b/2.jpg").rename(photos / "b/moved.jpg")
    (photos / "a b.png").unlink()
    plan = replan(store, photos, contract, columns)
    assert (plan.added, plan.gone) == (1, ("a b.png", "b/2.jpg"))
    save(photos)
    assert store["photos"].ids() == ["a/1.JPG", "b/moved.jpg"]
    assert sorted(store.path.glob("segments/**/*.h5")) == segments


def test_only_the_missing_column_is_planned(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    age(photos)
    store = save(photos)
    late = Column("layer2", Pooling.parse("avg"), 3)
    (photos / "new.jpg").write_bytes(b"new")
    plan = replan(store, photos, contract, [*columns, late])
    assert plan.backfill == 3
    assert [(len(g.columns), len(g.images)) for g in plan.groups] == [(3, 1), (1, 3)]


def test_failures_are_left_alone_until_the_file_changes_or_on_request(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = save(photos)
    (photos / "loop.jpg").symlink_to("loop.jpg")
    bad = photos / "bad.jpg"
    bad.write_bytes(b"no image")
    age(photos)
    with store.writer("photos", contract, columns) as writer:
        plan = writer.plan(scan_folder(photos))
        for image, reason in plan.broken:
            writer.fail(image, "read", reason)
        writer.fail(next(i for g in plan.groups for i in g.images if i.id == "bad.jpg"), "decode", "not an image")
    plan = replan(store, photos, contract, columns)
    assert (plan.failed, plan.retried, plan.broken) == (2, 0, ())
    assert replan(store, photos, contract, columns, retry_failed=True).retried == 1
    bad.write_bytes(b"another")
    assert replan(store, photos, contract, columns).retried == 1


def test_transient_failures_are_tried_again_by_every_run(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    age(photos)
    store = save(photos)
    (photos / "slow.jpg").write_bytes(b"slow")
    with store.writer("photos", contract, columns) as writer:
        (image,) = (i for i in scan_folder(photos).images() if i.id == "slow.jpg")
        writer.fail(image, "transient", "stale file handle")
    plan = replan(store, photos, contract, columns)
    assert (plan.retried, plan.failed, plan.unchanged) == (1, 0, 3)


def test_a_failure_met_within_the_racy_window_is_tried_again(
    photos: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    """It may have failed because it was still being written, within one tick of the clock."""
    store = save(photos)
    (photos / "bad.jpg").write_bytes(b"no image")
    with store.writer("photos", contract, columns) as writer:
        writer.plan(scan_folder(photos))
        (image,) = (i for i in scan_folder(photos).images() if i.id == "bad.jpg")
        writer.fail(image, "decode", "not an image")
    assert replan(store, photos, contract, columns).retried == 1


def test_images_behind_a_link_whose_disk_is_away_are_not_taken_for_deleted(
    photos: Path, tmp_path: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    (tmp_path / "disk" / "2023").mkdir(parents=True)
    (tmp_path / "disk" / "2023" / "3.jpg").write_bytes(b"3")
    (photos / "2023").symlink_to(tmp_path / "disk" / "2023")
    store = save(photos)
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(SourceError, match=r"2023: this link leads nowhere, and the set holds 1 images below it"):
        replan(store, photos, contract, columns)
    (photos / "2023").unlink()
    assert replan(store, photos, contract, columns).gone == ("2023/3.jpg",)


def test_photos_that_are_links_into_a_disk_that_is_away_keep_their_features(
    photos: Path, tmp_path: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    """They are failures, because they are there and cannot be read; nothing says that their content is another."""
    (tmp_path / "disk").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "disk" / name).write_bytes(name.encode())
        (photos / name).symlink_to(tmp_path / "disk" / name)
    store = save(photos)
    (tmp_path / "disk").rename(tmp_path / "away")
    plan = replan(store, photos, contract, columns)
    assert [(image.id, image.is_there) for image, _ in plan.broken] == [("1.jpg", False), ("2.jpg", False)]
    assert (plan.gone, plan.vanished) == ((), 0)
    with store.writer("photos", contract, columns) as writer:
        for image, reason in writer.plan(scan_folder(photos)).broken:
            writer.fail(image, "read", reason)
    assert store["photos"].ids() == ["1.jpg", "2.jpg", "a b.png", "a/1.JPG", "b/2.jpg"]
    assert [failure.id for failure in store["photos"].failures()] == ["1.jpg", "2.jpg"]
    (tmp_path / "away").rename(tmp_path / "disk")
    assert replan(store, photos, contract, columns).retried == 2


def test_a_folder_of_nothing_but_dead_links_is_a_disk_that_is_away(
    tmp_path: Path, save: Save, contract: Contract, columns: tuple[Column, Column]
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "links").mkdir()
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "disk" / name).write_bytes(name.encode())
        (tmp_path / "links" / name).symlink_to(tmp_path / "disk" / name)
    store = save(tmp_path / "links")
    (tmp_path / "disk").rename(tmp_path / "away")
    message = r"links: all that is in it leads nowhere \(2 symbolic links\); mount what they point to; nothing was"
    with pytest.raises(SourceError, match=message):
        replan(store, tmp_path / "links", contract, columns)


def test_a_name_that_only_begins_as_a_dead_link_does_is_not_below_it(
    tmp_path: Path, contract: Contract, columns: tuple[Column, Column], fill: Callable[..., FeatureStore]
) -> None:
    store = fill({f"{n}{rest}": "same" for n in range(9) for rest in ("", "-x.jpg", "0/1.jpg", ".jpg")})
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "there.jpg").touch()
    for n in range(9):
        (folder / f"{n}").symlink_to("nowhere")
    plan = replan(store, folder, contract, columns)
    assert (plan.vanished, len(plan.broken)) == (27, 9)
    fill({"5/deep/1.jpg": "same"})
    with pytest.raises(SourceError, match="links/5: this link leads nowhere, and the set holds 1 images below it"):
        replan(store, folder, contract, columns)


def test_a_source_that_fails_half_way_is_told_as_such_by_a_writer_too(
    tmp_path: Path, contract: Contract, columns: tuple[Column, Column], fill: Callable[..., FeatureStore]
) -> None:
    """The catalog was still being read then, and its being locked hid why."""
    store = fill({f"{n}.jpg": "same" for n in range(100)})
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "0.jpg").symlink_to("nowhere")
    with (
        pytest.raises(SourceError, match="all that is in it leads nowhere"),
        store.writer("photos", contract, columns) as writer,
    ):
        writer.plan(scan_folder(tmp_path / "links"))
    assert len(store["photos"].ids()) == 100


def test_a_file_deleted_during_the_walk_is_simply_not_there(photos: Path) -> None:
    for number in range(20):
        (photos / "b" / f"{number:02}.jpg").write_bytes(b"x")
    walk = iter(scan_folder(photos))
    seen = [next(walk)[0] for _ in range(3)]
    (photos / "b" / "15.jpg").unlink()
    seen += [found[0] for found in walk]
    assert b"b/14.jpg" in seen
    assert b"b/15.jpg" not in seen


def test_a_changed_contract_is_told_by_the_plan(
    photos: Path, save: Save, contract: Contract, other_contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = save(photos)
    assert replan(store, photos, contract, columns).differences == ()
    plan = replan(store, photos, other_contract, columns)
    assert [difference.field for difference in plan.differences] == ["preprocess[0:resize].size"]
    assert plan.to_read == 3


def test_a_plan_given_up_halfway_goes_in_silence_whatever_the_garbage_collector_takes_first(tmp_path: Path) -> None:
    told: list[object] = []
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(b"picture")
    for cyclic in (False, True):
        spool = Spool()
        for number in range(3):
            spool.add(1, b"%d" % number, 1, 1, 1)
        rows = spool.rows(1)
        assert next(rows) == (b"0", 1, 1, 1)
        cycle: list[object] = [spool, rows]
        if cyclic:
            cycle.append(cycle)
        hook, sys.unraisablehook = sys.unraisablehook, told.append
        try:
            del spool, rows, cycle
            gc.collect()
        finally:
            sys.unraisablehook = hook
    assert told == []
