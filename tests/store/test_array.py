"""Reading: every way to index equals plain NumPy, whole segments are not copied and nothing else is copied twice."""

from __future__ import annotations

import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from icecore.store import Column, Contract, Pooling
from icecore.store import gather as gather_module
from icecore.store import maps as maps_module
from icecore.store.array import FeatureArray
from icecore.store.errors import ClosedArrayError, NarrowingError, UnknownImageError
from icecore.store.places import Extent, Places

AVG = Pooling.parse("avg")
HALF, SINGLE = Column("layer4", AVG, 3), Column("layer3", AVG, 2, "float32")
CONTRACT = Contract("torchvision.models.resnet18", {}, "0" * 64, (), "pillow", ("full",), "fp32")
ROWS = (5, 40, 1)


def values(column: Column, rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-512, 512, (rows, column.width)).astype(column.dtype)


def whole(extent: Extent) -> Places:
    return Places(extent.column, (extent,), np.zeros(extent.rows, np.int32), np.arange(extent.rows))


def names(n: int) -> list[str]:
    return [f"{row:07}.jpg" for row in range(n)]


Segment = Callable[..., tuple[Extent, np.ndarray]]
Writer = Callable[[Path, dict[Column, np.ndarray]], dict[Column, Extent]]
World = tuple[dict[Column, tuple[Extent, ...]], dict[Column, list[np.ndarray]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, write_columns: Writer) -> World:
    """Three segments of two columns, and what is in them."""
    folder = tmp_path_factory.mktemp("world")
    arrays = {column: [values(column, rows, i) for i, rows in enumerate(ROWS)] for column in (HALF, SINGLE)}
    written = [
        write_columns(folder / f"{i}.h5", {column: arrays[column][i] for column in arrays}) for i in range(len(ROWS))
    ]
    return {column: tuple(extents[column] for extents in written) for column in arrays}, arrays


def row_places(data: st.DataObject) -> list[tuple[int, int]]:
    """Some rows of some segments: whole segments, stretches, or anything."""
    everything = [(which, row) for which, rows in enumerate(ROWS) for row in range(rows)]
    anything = st.lists(st.sampled_from(everything), max_size=60)
    stretch = st.tuples(st.integers(0, 45), st.integers(0, 45)).map(lambda ends: everything[min(ends) : max(ends)])
    return data.draw(st.one_of(st.just(everything), stretch, anything))


def indices(n: int) -> st.SearchStrategy[Any]:
    ends = st.none() | st.integers(-n - 2, n + 2)
    kinds = [
        st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -3])),
        st.lists(st.booleans(), min_size=n, max_size=n).map(lambda mask: np.array(mask, dtype=bool)),
        st.just([]),
        st.just(Ellipsis),
    ]
    if n:
        rows = st.lists(st.integers(-n, n - 1), min_size=1, max_size=80)
        kinds += [rows, rows.map(lambda r: np.array(r, np.int16)), st.integers(-n, n - 1)]
    return st.one_of(kinds)


@settings(deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_every_index_gives_what_numpy_gives(world: World, data: st.DataObject, in_blocks: bool, cold: bool) -> None:
    extents, arrays = world
    places = row_places(data)
    which = np.array([w for w, _ in places], np.int32)
    row = np.array([r for _, r in places], np.int64)
    columns = data.draw(st.sampled_from([[HALF], [SINGLE], [HALF, SINGLE], [SINGLE, HALF, SINGLE]]))
    plain = [np.array([arrays[c][w][r] for w, r in places], c.dtype).reshape(-1, c.width) for c in columns]
    expected = np.concatenate(plain, axis=1)
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:  # three rows a block, two threads
            patch.setattr(gather_module, "BLOCK_BYTES", 30)
            patch.setattr(gather_module, "THREADED_BYTES", 60)
        if cold:
            patch.setattr(maps_module.MappedExtent, "is_warm", lambda *_: False)
        array = FeatureArray([Places(c, extents[c], which, row) for c in columns], names(len(places)))
        assert (array.shape, array.ndim, len(array)) == (expected.shape, 2, len(places))
        key = data.draw(indices(len(places)))
        for got, wanted in [
            (array[key], expected[key]),
            (array.read(), expected),
            (np.asarray(array), expected),
            (array.astype("float64")[key], expected[key].astype("float64")),
            (array[key, 1:], expected[key][..., 1:]),
        ]:
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        assert array[key].flags.writeable
        assert array[key, :1].flags.owndata, "part of a row must not hold all of it"


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_stretches_and_single_rows_of_a_large_segment_are_read_right_from_disk(
    segment: Segment, dtype: str | None
) -> None:
    """Large enough for all ways of reading: stretches, dense, sparse, on threads; dropped from memory before each."""
    extent, X = segment(20_000, Column("layer4", AVG, 512))
    array = FeatureArray([whole(extent)], names(20_000), dtype)
    shuffled = np.random.default_rng(1).permutation(20_000)
    with extent.path.open("rb") as file:
        for key in (slice(None), slice(None, None, 2), shuffled, shuffled[:50], slice(7, 19_000), 17_003):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(2):
                np.testing.assert_array_equal(array[key], X[key].astype(dtype or "float16"))


def test_one_row_may_be_a_million_numbers(segment: Segment) -> None:
    extent, X = segment(5, Column("layer4", AVG, 1_000_000))
    array = FeatureArray([whole(extent)], names(5))
    np.testing.assert_array_equal(array[[4, 1, 1]], X[[4, 1, 1]])
    np.testing.assert_array_equal(array[3, -5:], X[3, -5:])


def test_a_whole_segment_is_its_memory_map_and_nothing_is_copied(
    segment: Segment,
) -> None:
    extent, X = segment()
    array = FeatureArray([whole(extent)], names(40))
    for got in (array.read(), array.read(dtype="float16"), array.astype("float16").read()):
        assert isinstance(got, np.memmap)
        assert isinstance(got.base, mmap.mmap)
        assert got.filename == str(extent.path)
        assert not got.flags.writeable
        assert np.shares_memory(got, np.asarray(array))
        assert np.shares_memory(got, np.asarray(array, copy=False))
        np.testing.assert_array_equal(got, X)
    with pytest.raises(ValueError, match="WRITEABLE"):
        got.flags.writeable = True
    assert np.array(array, copy=True).flags.writeable
    assert array.read(dtype="float32").flags.writeable
    assert FeatureArray([whole(extent).select(slice(1, None))], names(39)).read().flags.writeable


def test_parts_are_the_columns_one_by_one_each_in_its_own_dtype(world: World) -> None:
    extents, arrays = world
    array = FeatureArray([whole(extents[column][0]) for column in (HALF, SINGLE)], names(ROWS[0]))
    half, single = array.parts()
    for part, column in ((half, HALF), (single, SINGLE)):
        assert (part.columns, part.shape, part.dtype) == ((column,), (ROWS[0], column.width), np.dtype(column.dtype))
        assert [places.column for places in part.places] == [column]
        np.testing.assert_array_equal(part.read(), arrays[column][0])
        assert isinstance(part.read(), np.memmap)
        assert part.ids == array.ids
    assert {part.dtype for part in array.astype("float32").parts()} == {np.dtype("float32")}
    array.close()
    np.testing.assert_array_equal(half[1], arrays[HALF][0][1])


def test_numpy_is_refused_a_view_where_only_a_copy_will_do(segment: Segment) -> None:
    array = FeatureArray([whole(segment()[0])], names(40), "float32")
    assert np.asarray(array, dtype="int32").dtype == np.int32
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(array, copy=False)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_float32_out_of_float16_and_batches_make_no_second_copy(tmp_path: Path, write_columns: Writer) -> None:
    """Peak memory of a process of its own: the result and some blocks, not the float16 rows as well."""
    write_columns(tmp_path / "a.h5", {Column("layer4", AVG, 512): np.zeros((128 * 1024, 512), np.float16)})
    code = f"""
import numpy as np
from pathlib import Path
from icecore.store import Column, Pooling
from icecore.store.array import FeatureArray
from icecore.store.places import Extent, Places
from icecore.store.layout import layout_of
n, path = 128 * 1024, Path({str(tmp_path / "a.h5")!r})
column = Column("layer4", Pooling.parse("avg"), 512)
extent = Extent(path, n, layout_of(path).columns[column].offset, column)
array = FeatureArray([Places(column, (extent,), np.zeros(n, np.int32), np.arange(n))], lambda: [""] * n)
peak = lambda: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
for ids, X in array.iter_batches(1000, dtype="float32"): pass
batches = peak() - before
before = peak()
X = array.read(dtype="float32")
print(batches, peak() - before - X.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    batches, beside = map(int, done.stdout.split())
    assert batches < 48 << 20, "128 MiB of float16 in batches of 2 MiB"
    assert beside < 48 << 20, "256 MiB of float32 out of 128 MiB"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_that_single_rows_left_behind_are_forgotten(tmp_path: Path, write_columns: Writer) -> None:
    def pages() -> int:
        [line] = [line for line in Path("/proc/self/status").read_text("ascii").splitlines() if "RssFile" in line]
        return int(line.split()[1]) << 10

    column = Column("layer4", AVG, 512, "float16")
    rows = 16_384
    X = np.random.default_rng(0).integers(-512, 512, (rows, 512)).astype(np.float16)
    extent = write_columns(tmp_path / "a.h5", {column: X})[column]
    with FeatureArray([whole(extent)], names(rows)) as array:
        before = pages()
        every_third = array[::3]
        held = pages()
        array.forget()
        after = pages()
        assert held - before > X.nbytes // 2
        assert after - before < X.nbytes // 8
        np.testing.assert_array_equal(every_third, X[::3])
        np.testing.assert_array_equal(array[::3], X[::3])


def test_ids_are_fetched_once_and_only_when_needed(segment: Segment) -> None:
    extent, X = segment()
    asked: list[int] = []

    def fetch() -> list[str]:
        asked.append(1)
        return names(40)

    array = FeatureArray([whole(extent)], fetch)
    array.read(dtype="float32")
    assert not asked
    np.testing.assert_array_equal(array.take(["0000007.jpg", "0000003.jpg", "0000007.jpg"]), X[[7, 3, 7]])
    assert array.astype("float32").ids == names(40)
    assert array.rows_of([]).tolist() == []
    assert len(asked) == 1


def test_an_unknown_image_is_told_with_one_that_is_near(segment: Segment) -> None:
    array = FeatureArray([whole(segment()[0])], [f"cats/{row:02}.jpg" for row in range(40)])
    with pytest.raises(UnknownImageError, match=r"no image '07\.jpg' among the 40 here; did you mean 'cats/07\.jpg'\?"):
        array.take(["cats/01.jpg", "07.jpg"])
    with pytest.raises(UnknownImageError, match=r"'d', 'e', 'f' and 2 more among") as caught:
        array.rows_of(iter("defgh"))
    assert (caught.value.ids, caught.value.total) == (("d", "e", "f", "g", "h"), 40)
    assert isinstance(caught.value, LookupError)
    with pytest.raises(TypeError, match=r"give \['cats/01\.jpg'\]"):
        array.take("cats/01.jpg")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (40, "row 40 is outside the 40 rows"),
        ([3, -41], "row -41 is outside"),
        ([True] * 39, r"a mask over 40 rows .* found \(39,\)"),
        ([0.5], "an integer, a slice, a mask or integers"),
        ([[1, 2]], "an integer, a slice, a mask or integers"),
        ((0, 1, 2), "two axes"),
        (None, "an integer"),
        ((slice(None), None), "two axes"),
    ],
)
def test_what_is_no_index_is_refused(segment: Segment, key: Any, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        FeatureArray([whole(segment()[0])], names(40))[key]


def test_batches_go_through_every_row_once(segment: Segment) -> None:
    extent, X = segment()
    array = FeatureArray([whole(extent)], names(40))
    for shuffle in (None, 1):
        batches = list(array.iter_batches(16, dtype="float32", shuffle=shuffle))
        assert [len(batch.ids) for batch in batches] == [16, 16, 8]
        ids = [image_id for batch in batches for image_id in batch.ids]
        assert (ids == names(40)) is (shuffle is None)
        assert sorted(ids) == names(40)
        rows = np.concatenate([batch.X for batch in batches])
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, X[[int(image_id[:7]) for image_id in ids]])
    assert [b.ids for b in array.iter_batches(16, shuffle=1)] == [b.ids for b in batches]
    assert [b.ids for b in array.iter_batches(16, shuffle=2)] != [b.ids for b in batches]
    with pytest.raises(ValueError, match="at least 1 row, found 0"):
        array.iter_batches(0)


def test_a_value_too_large_for_float16_is_told_and_does_not_become_infinite(
    tmp_path: Path, write_columns: Writer
) -> None:
    X = np.full((40, 2), 70_000, np.float32)
    extent = write_columns(tmp_path / "a.h5", {SINGLE: X})[SINGLE]
    array = FeatureArray([whole(extent)], names(40))
    with pytest.raises(NarrowingError, match=r"layer3:avg:float32: a value is too large for float16; read it as"):
        array.read(dtype="float16")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(NarrowingError):
        patch.setattr(gather_module, "THREADED_BYTES", 0)
        array.astype("float16")[::2]
    with pytest.raises(TypeError, match="found int8"):
        array.astype("int8")


def test_many_threads_read_at_once(world: World) -> None:
    extents, arrays = world
    which = np.repeat(np.arange(3, dtype=np.int32), ROWS)
    row = np.concatenate([np.arange(rows) for rows in ROWS])
    array, expected = FeatureArray([Places(HALF, extents[HALF], which, row)], names(46)), np.concatenate(arrays[HALF])

    def work(seed: int) -> bool:
        index = np.random.default_rng(seed).integers(0, 46, 30)
        return np.array_equal(array[index], expected[index]) and np.array_equal(array.read(), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_a_closed_array_says_so_and_what_was_read_stays(segment: Segment) -> None:
    extent, X = segment()
    with FeatureArray([whole(extent)], names(40)) as array:
        read = array.read()
    for use in (lambda: array[0], array.read, lambda: np.asarray(array), array.to_arrow, lambda: pickle.dumps(array)):
        with pytest.raises(ClosedArrayError, match="closed"):
            use()
    np.testing.assert_array_equal(read, X)
    assert repr(array) == "FeatureArray((40, 3), float16, layer4:avg)"


def test_scikit_learn_takes_it_as_it_is(segment: Segment) -> None:
    from sklearn.dummy import DummyClassifier
    from sklearn.model_selection import cross_val_score

    array = FeatureArray([whole(segment()[0])], names(40), "float32")
    assert cross_val_score(DummyClassifier(), array, [0, 1] * 20, cv=4).shape == (4,)
