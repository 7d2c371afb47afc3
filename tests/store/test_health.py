"""What is said of a disk and of a store before anything is done with them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from icecore.store import Check, FeatureStore, check_disk, check_store
from icecore.store.health import file_system_of

Fill = Callable[..., FeatureStore]


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture
def store(fill: Fill) -> Path:
    with fill({f"{n}.jpg": f"content {n}" for n in range(8)}) as filled:
        return filled.path


def test_a_disk_is_measured_and_nothing_stays_there(tmp_path: Path) -> None:
    found = by_name(check_disk(tmp_path))
    assert set(found) == {"file system", "free space", "disk speed"}
    facts = found["disk speed"].facts
    assert min(facts["write_mb_s"], facts["read_mb_s"], facts["fsync_ms"]) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_judged_by_the_one_above_and_not_made(tmp_path: Path) -> None:
    found = by_name(check_disk(tmp_path / "a" / "b"))
    assert found["free space"].found.endswith(f"in {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_told_as_what_will_break(small_disk: Callable[[int], Any]) -> None:
    disk = small_disk(1024)
    found = by_name(check_disk(disk.path))
    assert (found["free space"].health, found["file system"].found) == ("bad", "tmpfs")
    assert "free some space" in found["free space"].cure
    assert found["disk speed"].health == "ok"  # measured with what fits
    disk.leave(0)
    assert "No space left" in by_name(check_disk(disk.path))["disk speed"].found
    disk.clear()
    disk.freeze()
    speed = by_name(check_disk(disk.path))["disk speed"]
    assert (speed.health, speed.found) == ("warn", f"{disk.path} may not be written")


def test_the_file_system_is_that_of_the_innermost_mount(
    small_disk: Callable[[int], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert file_system_of(small_disk(64).path / "not" / "there") == "tmpfs"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda rw",
        f"2 1 0:5 / {tmp_path}/my\\040photos rw,relatime shared:1 - nfs4 server:/x rw",
    ]
    monkeypatch.setattr(Path, "read_text", lambda *args: "\n".join(lines))
    assert file_system_of(tmp_path / "my photos" / "features") == "nfs4"
    assert file_system_of(tmp_path / "my photos2") == "ext4"


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_told_with_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("icecore.store.health.file_system_of", lambda folder: kind)
    found = by_name(check_disk(tmp_path))["file system"]
    assert (found.health, found.found.partition(",")[0]) == ("warn", kind)
    assert "one machine only" in found.cure


def test_a_sound_store_is_told_with_its_format_and_who_writes(store: Path, contract: Any, columns: Any) -> None:
    found = by_name(check_store(store))
    assert {check.health for check in found.values()} == {"ok"}
    assert found["store"].facts["catalog_format"] == 2
    assert found["writer"].found == "nobody writes"
    with FeatureStore.open(store) as opened, opened.writer("photos", contract, columns, command="a test"):
        assert by_name(check_store(store))["writer"].found.endswith("a test")


def test_no_store_is_nothing_wrong(tmp_path: Path) -> None:
    (check,) = check_store(tmp_path)
    assert (check.health, check.found) == ("ok", f"none in {tmp_path} yet; icecore extract makes one")


def test_a_segment_cut_short_is_told_with_its_name(store: Path) -> None:
    (segment,) = store.rglob("*.h5")
    segment.write_bytes(segment.read_bytes()[:-1])
    found = by_name(check_store(store))["store is whole"]
    assert found.health == "bad"
    assert segment.name in found.found
    assert "icecore store repair" in found.cure


def test_a_store_of_a_later_release_will_break(store: Path) -> None:
    with closing(sqlite3.connect(store / "catalog.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format_version'")
    (check,) = check_store(store)
    assert check.health == "bad"
    assert "catalog format 99" in check.found
