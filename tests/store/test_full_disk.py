"""Real disks that are full or read-only: the old version stays, and the message says what to do."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, DiskError, FeatureStore, Pooling, verify_store

Fill = Callable[..., FeatureStore]
WIDE = (Column("layer4", Pooling.parse("avg"), 600),)
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
MORE = {f"{i:03}.jpg": f"picture {i}" for i in range(220)}


@pytest.fixture
def disk(small_disk: Callable[[int], Any]) -> Any:
    return small_disk(4096)


@pytest.fixture
def tmp_path(disk: Any) -> Path:
    """Where ``fill`` puts its store."""
    path: Path = disk.path
    return path


def files_of(store: FeatureStore) -> list[str]:
    return sorted(path.name for path in store.path.rglob("*") if path.is_file() and "catalog" not in path.name)


def attempt(fill: Fill) -> DiskError | None:
    try:
        fill(MORE, columns=WIDE).close()
    except DiskError as exc:
        return exc
    return None


def test_a_disk_that_fills_up_at_any_moment_of_a_run_leaves_the_old_version(fill: Fill, disk: Any) -> None:
    """HDF5 by itself ends in a segmentation fault when it cannot close a file."""
    store = fill(FILES, columns=WIDE)
    before, files = store["photos"].matrix("layer4").X, files_of(store)
    store.close()
    full = 0
    for kib in range(0, 420, 12):
        disk.leave(kib << 10)
        told = attempt(fill)
        if told is None:
            break
        full += 1
        assert (told.errno, told.transient) == (errno.ENOSPC, True)
        assert str(store.path) in str(told)
        assert "free some space and run again: everything that was committed is kept" in str(told)
        with FeatureStore.open(store.path) as opened:
            np.testing.assert_array_equal(opened["photos"].matrix("layer4").X, before)
        assert verify_store(store.path).ok
        assert files_of(store) == files, "what cannot be committed does not stay"
    assert full > 20
    disk.clear()
    assert fill(MORE, columns=WIDE)["photos"].ids() == sorted(MORE)
    assert verify_store(store.path).ok


def test_a_disk_filled_by_a_killed_run_is_freed_by_the_next_one(fill: Fill, disk: Any) -> None:
    store = fill(FILES, columns=WIDE)
    code = f"""
        import os, signal
        from icecore.store import FeatureStore, publishing
        import numpy as np
        publishing.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        photos = FeatureStore.open({str(store.path)!r})["photos"]
        from icecore.store import SourceImage
        from pathlib import Path
        with FeatureStore.open({str(store.path)!r}).writer("photos", photos.contract, photos.columns) as w:
            images = [SourceImage(f"x{{n}}.jpg", Path("x"), 1, 1, 1) for n in range(250)]
            w.append(images, [n.to_bytes(32) for n in range(250)], {{photos.columns[0]: np.zeros((250, 600))}})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in files_of(store) if name.endswith(".h5.tmp")]
    disk.leave(0)
    assert fill(dict(list(MORE.items())[:100]), columns=WIDE)["photos"].version == 2
    assert verify_store(store.path).ok


def test_sqlite_needs_a_little_room_even_to_read_and_says_so(fill: Fill, disk: Any) -> None:
    store = fill(FILES, columns=WIDE)
    store.close()
    for file in store.path.glob("catalog.sqlite-*"):
        file.unlink()
    disk.leave(0)
    with pytest.raises(DiskError, match=r"catalog.sqlite: disk I/O error \(SQLITE_IOERR_SHMSIZE\); free some space"):
        FeatureStore.open(store.path)
    disk.clear()
    assert FeatureStore.open(store.path)["photos"].ids() == sorted(FILES)


def test_a_read_only_store_is_read_and_a_writer_is_refused_clearly(fill: Fill, disk: Any) -> None:
    store = fill(FILES, columns=WIDE)
    before = store["photos"].matrix("layer4").X
    store.close()
    disk.freeze()
    with FeatureStore.open(store.path) as opened:
        np.testing.assert_array_equal(opened["photos"].matrix("layer4").X, before)
        assert verify_store(store.path).ok
        for write in (lambda: fill(MORE, columns=WIDE), opened.compact, opened.collect):
            with pytest.raises(DiskError, match=r"writer.lock: Read-only file system; mount it for writing") as told:
                write()
            assert not told.value.transient
    with pytest.raises(DiskError, match=r"new: Read-only file system"):
        FeatureStore.create(disk.path / "new")
