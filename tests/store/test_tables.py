"""Features as Arrow and pandas tables: dtypes and ids are kept, and long stretches are not copied."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Column, Pooling
from icecore.store.array import FeatureArray
from icecore.store.errors import MissingExtraError
from icecore.store.places import Extent, Places

HALF, SINGLE = Column("layer4", Pooling.parse("avg"), 3), Column("layer3", Pooling.parse("avg"), 2, "float32")

Segment = Callable[..., tuple[Extent, np.ndarray]]
Writer = Callable[[Path, dict[Column, np.ndarray]], dict[Column, Extent]]


def whole(extent: Extent) -> Places:
    return Places(extent.column, (extent,), np.zeros(extent.rows, np.int32), np.arange(extent.rows))


def names(n: int) -> list[str]:
    return [f"{row:07}.jpg" for row in range(n)]


@pytest.fixture
def pair(tmp_path: Path, write_columns: Writer) -> tuple[FeatureArray, np.ndarray, np.ndarray]:
    """Two columns of different dtype, every other row left out."""
    X = {column: np.arange(40 * column.width).reshape(40, -1).astype(column.dtype) for column in (HALF, SINGLE)}
    extents = write_columns(tmp_path / "pair.h5", X)
    columns = [whole(extents[column]).select(slice(None, None, 2)) for column in (HALF, SINGLE)]
    return FeatureArray(columns, names(20)), X[HALF][::2], X[SINGLE][::2]


def test_an_arrow_table_keeps_ids_and_stored_dtypes(pair: tuple[FeatureArray, np.ndarray, np.ndarray]) -> None:
    pa = pytest.importorskip("pyarrow")
    table = pair[0].to_arrow()
    assert table.schema.names == ["id", "layer4:avg", "layer3:avg:float32"]
    assert table.schema.types == [pa.string(), pa.list_(pa.float16(), 3), pa.list_(pa.float32(), 2)]
    assert table["id"].to_pylist() == names(20)
    for name, expected in zip(table.schema.names[1:], pair[1:], strict=True):
        flat = table[name].combine_chunks().flatten().to_numpy()
        np.testing.assert_array_equal(flat.reshape(expected.shape), expected)
    assert pair[0].astype("float64").to_arrow().schema.types[1] == pa.list_(pa.float64(), 3)


def test_an_arrow_table_of_stretches_points_into_the_memory_maps(
    segment: Segment,
) -> None:
    pytest.importorskip("pyarrow")
    first, X = segment(3000)
    second, Y = segment(2000, name="b.h5")
    which, row = np.repeat(np.array([1, 0], np.int32), [2000, 2900]), np.append(np.arange(2000), np.arange(100, 3000))
    array = FeatureArray([Places(HALF, (first, second), which, row)], names(4900))
    chunks = array.to_arrow()["layer4:avg"].chunks
    array.close()
    assert [len(chunk) for chunk in chunks] == [2000, 2900]
    for chunk, expected in zip(chunks, (Y, X[100:]), strict=True):
        flat = chunk.flatten().to_numpy(zero_copy_only=True)
        assert not flat.flags.owndata
        assert not chunk.buffers()[-1].is_mutable
        np.testing.assert_array_equal(flat.reshape(expected.shape), expected)


def test_ids_that_are_not_utf8_make_a_binary_column(segment: Segment) -> None:
    pa = pytest.importorskip("pyarrow")
    ids = ["caf\udce9.jpg", "é.jpg", *names(38)]
    array = FeatureArray([whole(segment()[0])], ids)
    table = array.to_arrow()
    assert table["id"].type == pa.binary()
    assert table["id"][:2].to_pylist() == [b"caf\xe9.jpg", "é.jpg".encode()]
    pytest.importorskip("pandas")
    assert array.to_pandas().index.tolist() == ids


def test_a_frame_is_named_by_column_and_may_be_changed(pair: tuple[FeatureArray, np.ndarray, np.ndarray]) -> None:
    pytest.importorskip("pandas")
    frame = pair[0].to_pandas()
    assert frame.index.name == "id"
    assert list(frame.columns) == [*(f"layer4:avg/{i}" for i in range(3)), *(f"layer3:avg:float32/{i}" for i in (0, 1))]
    np.testing.assert_array_equal(frame.loc[names(20)].to_numpy(), np.hstack(pair[1:]))
    frame.iloc[0, 0] = 7.5
    half = pair[0].astype("float16").to_pandas()
    assert set(half.dtypes) == {np.dtype(np.float16)}


@pytest.mark.parametrize(("library", "method"), [("pyarrow", "to_arrow"), ("pandas", "to_pandas")])
def test_without_its_library_a_table_says_what_to_install(
    pair: tuple[FeatureArray, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch, library: str, method: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{method} needs {library}: pip install 'icecore\[arrow\]'"):
        getattr(pair[0], method)()
