"""Files of an open array: they may be deleted, forks and pickles find them, and damage is told on opening."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Column, Pooling, StoreDamagedError, maps
from icecore.store.array import FeatureArray
from icecore.store.places import Extent, Places

AVG = Pooling.parse("avg")
HALF = Column("layer4", AVG, 3)

Segment = Callable[..., tuple[Extent, np.ndarray]]
Writer = Callable[[Path, dict[Column, np.ndarray]], dict[Column, Extent]]


def whole(extent: Extent) -> Places:
    return Places(extent.column, (extent,), np.zeros(extent.rows, np.int32), np.arange(extent.rows))


def names(n: int) -> list[str]:
    return [f"{row:07}.jpg" for row in range(n)]


def in_a_child(job: Callable[[], bool]) -> bool:
    """Fork, do the job in the child, and tell how it ended."""
    pid = os.fork()
    if not pid:
        done = False
        try:
            done = job()
        finally:
            os._exit(0 if done else 1)
    return os.waitpid(pid, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_files_that_are_deleted_after_opening_are_read_all_the_same_also_in_a_forked_child(
    segment: Segment,
) -> None:
    extent, X = segment()
    array = FeatureArray([whole(extent)], names(40), "float32")
    extent.path.unlink()
    assert in_a_child(lambda: np.array_equal(array[[3, 1]], X[[3, 1]]) and array.take(["0000001.jpg"]).shape == (1, 3))
    np.testing.assert_array_equal(array.read(), X)


def test_pickled_it_opens_the_files_again_and_says_when_they_are_gone(
    segment: Segment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    extent, X = segment()
    monkeypatch.chdir(tmp_path)
    relative = Extent(Path("a.h5"), extent.rows, extent.offset, extent.column)
    ids = ["caf\udce9.jpg", *names(39)]
    text = pickle.dumps(FeatureArray([whole(relative)], ids, "float32"))
    monkeypatch.chdir("/")
    other = pickle.loads(text)
    assert other.ids == ids
    assert other.dtype == np.float32
    np.testing.assert_array_equal(other.read(), X)
    extent.path.unlink()
    with pytest.raises(StoreDamagedError, match=r"a\.h5: segment is missing"):
        pickle.loads(text)


def test_a_file_that_is_missing_or_short_is_found_when_it_is_opened(
    segment: Segment,
) -> None:
    extent, _ = segment()
    with extent.path.open("r+b") as file:
        file.truncate(extent.offset + 40 * 3 * 2 - 1)
    with pytest.raises(StoreDamagedError, match=r"a\.h5: segment is cut short: .* layer4:avg ends at"):
        FeatureArray([whole(extent)], names(40))
    extent.path.unlink()
    with pytest.raises(StoreDamagedError, match=r"a\.h5: segment is missing") as caught:
        FeatureArray([whole(extent)], names(40))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_rows_that_a_segment_does_not_have_are_damage_and_not_other_rows(
    segment: Segment,
) -> None:
    extent, _ = segment()
    for row in (40, -1):
        with pytest.raises(StoreDamagedError, match="rows of layer4:avg that its segments do not"):
            FeatureArray([Places(HALF, (extent,), np.zeros(1, np.int32), np.array([row]))], ["a"])


def test_a_segment_that_no_row_is_taken_of_need_not_be_there(segment: Segment, tmp_path: Path) -> None:
    extent, X = segment()
    gone = Extent(tmp_path / "gone.h5", 7, 4096, HALF)
    places = Places(HALF, (gone, extent), np.ones(2, np.int32), np.array([5, 3]))
    np.testing.assert_array_equal(FeatureArray([places], ["a", "b"])[:], X[[5, 3]])


def test_many_segments_need_no_more_file_descriptors_than_one(tmp_path: Path, write_columns: Writer) -> None:
    resource = pytest.importorskip("resource")
    arrays = [np.array([[i, 1, 2], [-i, 3, 4]], np.float16) for i in range(60)]
    extents = [write_columns(tmp_path / f"{i}.h5", {HALF: X})[HALF] for i, X in enumerate(arrays)]
    which, row = np.repeat(np.arange(60, dtype=np.int32), 2), np.tile(np.arange(2), 60)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(used + 20, hard), hard))
    try:
        opened = [FeatureArray([Places(HALF, tuple(extents), which, row)], names(120)) for _ in range(3)]
        X = opened[2].read()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(X, np.concatenate(arrays))


@pytest.mark.skipif(sys.platform != "linux", reason="residency is told on Linux only")
def test_whether_rows_are_in_memory_is_told(segment: Segment) -> None:
    extent, X = segment(4096, Column("layer4", AVG, 512))
    opened, rows = maps.MappedExtent(extent), np.array([5, 1000, 4000])
    with extent.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:  # the kernel's other way to ask
            os.preadv(file.fileno(), [bytearray(1)], extent.offset + 5 * 1024, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        else:
            pytest.skip("this file system keeps its pages")
    assert not opened.is_warm(rows)
    np.testing.assert_array_equal(opened.source(rows)[rows], X[rows])
    assert opened.is_warm(rows)


def test_a_file_whose_residency_is_not_told_is_asked_for_each_time(
    segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_tells_residency", lambda *_: False)
    extent, X = segment()
    opened = maps.MappedExtent(extent)
    assert not opened.is_warm(np.array([3]))
    np.testing.assert_array_equal(opened.source(np.array([3]))[3], X[3])
