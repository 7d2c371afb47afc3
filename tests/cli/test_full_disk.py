"""The commands on real disks that are full or may not be written: one clear message, the documented code, a cure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore, verify_store

Icecore = Callable[..., Any]
CURE = "free some space and run again: everything that was committed is kept"


@pytest.fixture
def disk(small_disk: Callable[[int], Any]) -> Any:
    return small_disk(2048)


def errors(ended: Any) -> list[str]:
    """What it said, without warnings."""
    return [line for line in ended.told.splitlines() if not line.startswith("WARNING: ")]


def test_extract_on_a_full_disk_says_so_and_the_same_command_ends_the_job_when_there_is_room(
    project: Any, write_photos: Callable[..., None], icecore: Icecore, disk: Any
) -> None:
    store = disk.path / "features"
    extract = ("extract", project.config, "--set", f'store="{store}"', "--json")
    write_photos(project.photos, train=2, val=1)
    assert icecore(*extract).code == 0
    write_photos(project.photos)
    refused = 0
    for kib in (0, 16, 40, 64, 88, 112):
        disk.leave(kib << 10)
        ended = icecore(*extract)
        if ended.code == 0:
            break
        refused += 1
        (line,) = errors(ended)
        assert line.startswith(f"icecore extract: {store}/")
        assert line.endswith(CURE)
        assert (ended.code, ended.outcome["retryable"]) == (1, True)
        with FeatureStore.open(store) as opened:
            assert len(opened["photos"].ids()) == 6
    assert refused >= 2
    disk.clear()
    assert icecore(*extract).code == 0
    with FeatureStore.open(store) as opened:
        assert len(opened["photos"].ids()) == 18
    assert verify_store(store).ok
    assert not list(store.rglob("*.tmp"))


def test_a_first_extraction_onto_a_full_disk_says_so_and_can_be_run_again(
    project: Any, write_photos: Callable[..., None], icecore: Icecore, disk: Any
) -> None:
    store = disk.path / "features"
    extract = ("extract", project.config, "--set", f'store="{store}"', "--json")
    write_photos(project.photos, train=2, val=1)
    for kib in (0, 8, 48, 100):
        disk.leave(kib << 10)
        ended = icecore(*extract)
        (line,) = errors(ended)
        assert str(store) in line
        assert line.endswith(CURE)
        assert (ended.code, ended.outcome["retryable"]) == (1, True)
    disk.clear()
    assert icecore(*extract).code == 0
    assert verify_store(store).ok


@pytest.mark.slow
def test_a_plan_that_finds_no_room_for_temporary_files_says_where_they_are(
    project: Any, write_photos: Callable[..., None], disk: Any
) -> None:
    """In a process of its own: SQLite looks for their folder once."""
    write_photos(project.photos, train=1, val=0)
    one = next(project.photos.rglob("*.png"))
    for number in range(14_000):  # SQLite keeps some 2 MB of them in memory
        os.link(one, project.photos / f"{number:0200}.png")
    disk.leave(0)
    ended = subprocess.run(
        [Path(sys.executable).with_name("icecore"), "extract", project.config, "--json"],
        env={**os.environ, "SQLITE_TMPDIR": str(disk.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = ended.stderr.splitlines()
    told = "SQLite's temporary files (in SQLITE_TMPDIR, TMPDIR or /var/tmp): "
    assert line.startswith(f"icecore extract: {told}")
    assert line.endswith(CURE)
    assert (ended.returncode, json.loads(ended.stdout)["retryable"]) == (1, True)


@pytest.mark.parametrize(
    "command", ["extract", "store compact", "store gc", "store tag", "store repair"], ids=lambda name: name.split()[-1]
)
def test_a_read_only_store_refuses_what_would_change_it(
    trained: Any, icecore: Icecore, disk: Any, command: str
) -> None:
    store = disk.path / "features"
    shutil.copytree(trained.store, store)
    disk.freeze()
    arguments = {
        "extract": (trained.config, "--set", f'store="{store}"'),
        "store tag": (store, "photos", "before"),
    }.get(command, (store,))
    ended = icecore(*command.split(), *arguments, "--json")
    (line,) = errors(ended)
    assert line == (
        f"icecore {command}: {store}/writer.lock: Read-only file system; mount it for writing, or write to another "
        "place: everything that was committed is kept"
    )
    assert (ended.code, ended.outcome["retryable"]) == (1, False)
