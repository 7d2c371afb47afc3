"""Exports, read back by NumPy, pyarrow and bare h5py: never by our own reader."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from icecore.store import (
    Column,
    Contract,
    ExportError,
    ExportExistsError,
    FeatureStore,
    IncompleteColumnError,
    LayerNotFoundError,
    MissingExtraError,
    Pooling,
    SourceImage,
    export,
    export_hdf5,
    export_table,
    exporting,
)

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]
Columns = tuple[Column, Column]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
ODD = {"a\\b.jpg": "1", "line\nend.jpg": "2", "no \udcff utf.jpg": "3", "no \\xff utf.jpg": "4", "ünïcode.jpg": "5"}
ENDINGS = {"npy": ".npy", "parquet": ".parquet", "hdf5": ".h5", "vds": ".vds"}
FORMATS = list(ENDINGS)


class Read(NamedTuple):
    """What another tool makes of a file."""

    ids: list[str]
    columns: dict[str, np.ndarray]
    facts: dict[str, Any]


def read_npy(path: Path) -> Read:
    X, told = np.load(path), json.loads(path.with_suffix(".ids.json").read_bytes())
    assert told["matrix"] == path.name
    columns = {c["name"]: X[:, c["first"] : c["first"] + c["width"]] for c in told["columns"]}
    assert sum(c["width"] for c in told["columns"]) == X.shape[1]
    return Read(told["ids"], columns, told)


def read_parquet(path: Path) -> Read:
    table = pyarrow.parquet.read_table(path)
    assert table.column_names[0] == "id"
    columns = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(len(table), table[name].type.list_size)
        for name in table.column_names[1:]
    }
    return Read(table["id"].to_pylist(), columns, json.loads(table.schema.metadata[b"icecore"]))


def read_hdf5(path: Path) -> Read:
    with h5py.File(path) as file:
        kind = h5py.check_string_dtype(file["ids"].dtype)
        assert (kind.encoding, kind.length) == ("utf-8", None)
        ids = [value.decode() for value in file["ids"][()]]
        columns = {name: dataset[()] for name, dataset in file["columns"].items()}
        facts = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
        return Read(ids, columns, {**facts, "contract": json.loads(facts["contract"])})


READERS = {"npy": read_npy, "parquet": read_parquet, "hdf5": read_hdf5, "vds": read_hdf5}


@pytest.fixture
def scattered(fill: Fill) -> FeatureStore:
    """Rows in several segments, out of order, with duplicates, and rows that nobody needs any more."""
    fill({f"{i:03}.jpg": f"picture {i}" for i in (3, 4, 5, 11)})
    fill({f"{i:03}.jpg": f"picture {i}" for i in (0, 1, 9, 10, 12)})
    fill({"009.jpg": "changed", "019.jpg": "picture 1"})
    return fill(SCATTERED)


SCATTERED = {**FILES, "009.jpg": "changed again", "019.jpg": "picture 1", "018.jpg": "picture 0"}


@pytest.mark.parametrize("form", FORMATS)
def test_another_tool_reads_the_features_by_their_ids(
    scattered: FeatureStore, expected: Expected, columns: Columns, contract: Contract, tmp_path: Path, form: str
) -> None:
    photos = scattered["photos"]
    done = export(photos, None, tmp_path / f"out{ENDINGS[form]}")
    found = READERS[form](tmp_path / f"out{ENDINGS[form]}")
    assert found.ids == sorted(SCATTERED)
    assert found.columns.keys() == {"layer3:avg", "layer4:avg"}
    for column in columns:
        X = found.columns[column.name]
        assert X.dtype == np.float16
        np.testing.assert_array_equal(X, expected(SCATTERED, column))
    assert (found.facts["set"], found.facts["version"]) == ("photos", photos.version)
    assert (found.facts["contract"], found.facts["contract_hash"]) == (contract.to_json(), contract.hash)
    assert (found.facts["format"], found.facts["format_version"], found.facts["rows"]) == ("icecore-export", 1, 20)
    assert (done.format, done.rows, done.version, done.columns) == (form, 20, photos.version, columns)
    assert done.bytes == sum(path.stat().st_size for path in done.files)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(p.name for p in done.files)


@pytest.mark.parametrize("form", FORMATS)
def test_columns_are_those_asked_for_in_their_order(
    scattered: FeatureStore, expected: Expected, columns: Columns, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"out{ENDINGS[form]}"
    export(scattered["photos"], "layer4", path)
    assert list(READERS[form](path).columns) == ["layer4:avg"]
    export(scattered["photos"], ["layer4:avg", "layer3"], path, overwrite=True)
    found = READERS[form](path).columns
    assert form in ("hdf5", "vds") or list(found) == ["layer4:avg", "layer3:avg"]  # HDF5 lists by name
    np.testing.assert_array_equal(found["layer3:avg"], expected(SCATTERED, columns[0]))


@pytest.mark.parametrize("form", ["npy", "parquet", "hdf5"])
def test_values_have_the_dtype_asked_for(fill: Fill, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"out{ENDINGS[form]}"
    export(fill(FILES)["photos"], "layer4", path, dtype="float32")
    assert READERS[form](path).columns["layer4:avg"].dtype == np.float32


def test_columns_of_two_dtypes_keep_their_own_but_in_one_matrix(
    fill: Fill, expected: Expected, columns: Columns, tmp_path: Path
) -> None:
    wide = Column("layer4", Pooling.parse("avg"), 6, "float32")
    fill(FILES)
    photos = fill(FILES, columns=[wide])["photos"]
    for form in ("parquet", "hdf5", "vds"):
        export(photos, None, path := tmp_path / f"out{ENDINGS[form]}")
        kinds = {name: str(X.dtype) for name, X in READERS[form](path).columns.items()}
        assert kinds == {"layer3:avg": "float16", "layer4:avg": "float16", "layer4:avg:float32": "float32"}
    export(photos, ["layer3", "layer4:avg:float32"], tmp_path / "out.npy")
    X = np.load(tmp_path / "out.npy")
    assert (X.dtype, X.shape) == (np.float32, (20, 10))
    np.testing.assert_array_equal(X[:, :4], expected(FILES, columns[0]))


@pytest.mark.parametrize("form", FORMATS)
def test_an_old_version_is_exported_by_number_or_tag(
    fill: Fill, expected: Expected, columns: Columns, tmp_path: Path, form: str
) -> None:
    store = fill(FILES)
    store["photos"].tag("first")
    fill({**FILES, "003.jpg": "another", "zzz.jpg": "z"})
    for number, version in enumerate([1, "first"]):
        path = tmp_path / f"{number}{ENDINGS[form]}"
        assert export(store["photos"], "layer4", path, version=version).version == 1
        np.testing.assert_array_equal(READERS[form](path).columns["layer4:avg"], expected(FILES, columns[1]))


def unescaped(text: str) -> str:
    """Take back an escaped id by the lines that FORMAT.md gives for it."""
    page = (Path(export_table.__file__).parent / "FORMAT.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(import re\n.*?)```", page, re.S)
    given: dict[str, Any] = {}
    exec(code, given)
    raw: bytes = given["unescape"](text)
    return raw.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("form", FORMATS)
def test_ids_of_any_bytes_are_told_apart_and_can_be_had_back(fill: Fill, tmp_path: Path, form: str) -> None:
    path, order = tmp_path / f"out{ENDINGS[form]}", sorted(ODD, key=lambda i: i.encode("utf-8", "surrogateescape"))
    export(fill(ODD)["photos"], "layer4", path)
    found = READERS[form](path)
    if form == "parquet":
        assert found.ids == [image_id.encode("utf-8", "surrogateescape") for image_id in order]
        return
    assert found.facts["ids_escaped"]
    assert "no \\xff utf.jpg" in found.ids, "the one that is no UTF-8"
    assert "no \\\\xff utf.jpg" in found.ids, "the one that is called so"
    assert [unescaped(image_id) for image_id in found.ids] == order


@pytest.mark.parametrize("form", ["npy", "hdf5", "vds"])
def test_ids_that_are_utf8_are_as_they_are(fill: Fill, tmp_path: Path, form: str) -> None:
    files = {name: text for name, text in ODD.items() if "\udcff" not in name}
    path = tmp_path / f"out{ENDINGS[form]}"
    export(fill(files)["photos"], "layer4", path)
    found = READERS[form](path)
    assert not found.facts["ids_escaped"]
    assert found.ids == sorted(files)


@pytest.mark.parametrize("form", ["hdf5", "vds"])
def test_hdf5_names_the_content_of_each_row(scattered: FeatureStore, tmp_path: Path, form: str) -> None:
    export(scattered["photos"], None, path := tmp_path / f"out{ENDINGS[form]}")
    with h5py.File(path) as file:
        digests = [row.tobytes() for row in file["content"][()]]
    assert digests == [hashlib.sha256(SCATTERED[name].encode()).digest() for name in sorted(SCATTERED)]


@pytest.mark.parametrize("form", FORMATS)
def test_images_that_lack_a_column_are_refused_or_dropped(
    fill: Fill, contract: Contract, image: Callable[..., SourceImage], tmp_path: Path, form: str
) -> None:
    store, late = fill(FILES), Column("layer2", Pooling.parse("max"), 2)
    with store.writer("photos", contract, [late]) as w:
        w.append([image("004.jpg")], [hashlib.sha256(b"picture 4").digest()], {late: np.ones((1, 2))})
    path = tmp_path / f"out{ENDINGS[form]}"
    with pytest.raises(IncompleteColumnError, match="covers 1 of 20"):
        export(store["photos"], None, path)
    assert list(tmp_path.glob("out*")) == []
    assert export(store["photos"], None, path, missing="drop").rows == 1
    assert READERS[form](path).ids == ["004.jpg"]


@pytest.mark.parametrize("form", FORMATS)
def test_a_set_of_which_no_image_is_left_is_a_file_without_rows(
    fill: Fill, contract: Contract, columns: Columns, tmp_path: Path, form: str
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.remove(list(FILES))
    path = tmp_path / f"out{ENDINGS[form]}"
    assert export(store["photos"], "layer4", path).rows == 0
    found = READERS[form](path)
    assert (found.ids, found.columns["layer4:avg"].shape) == ([], (0, 6))


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_is_there_is_replaced_only_on_request(fill: Fill, tmp_path: Path, form: str) -> None:
    photos, path = fill(FILES)["photos"], tmp_path / f"out{ENDINGS[form]}"
    blocked = tmp_path / "out.ids.json" if form == "npy" else path
    blocked.write_text("mine")
    with pytest.raises(ExportExistsError, match=r"exists already; .* overwrite=True \(--force\)"):
        export(photos, "layer4", path)
    assert blocked.read_text() == "mine"
    export(photos, "layer4", path, overwrite=True)
    assert len(READERS[form](path).ids) == 20


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_fails_leaves_what_was_there(
    fill: Fill, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, path = fill(FILES)["photos"], tmp_path / f"out{ENDINGS[form]}"
    export(photos, "layer3", path)
    before = {p: p.read_bytes() for p in tmp_path.glob("out*")}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    where = (np.lib.format, "write_array_header_1_0") if form == "npy" else (exporting, "publish")
    monkeypatch.setattr(*where, full)
    with pytest.raises(OSError, match="No space left"):
        export(photos, "layer4", path, overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.glob("out*")} == before


@pytest.mark.parametrize("step", [0, 1])
def test_a_matrix_never_stands_beside_the_ids_of_another(
    fill: Fill, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between the renames there is no matrix at all."""
    photos, path = fill(FILES)["photos"], tmp_path / "out.npy"
    export(photos, "layer3", path)
    publish, calls = exporting.publish, iter(range(9))

    def cut_off(temporary: Path, final: Path) -> None:
        if next(calls) == step:
            raise KeyboardInterrupt
        publish(temporary, final)

    monkeypatch.setattr(exporting, "publish", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(photos, "layer4", path, overwrite=True)
    assert [p.name for p in tmp_path.glob("out*")] == ["out.ids.json"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out.csv", {}, r"what format\? name one \(npy, parquet, hdf5, vds\), or end it with .npy, "),
        ("out.h5", {"format": "hdf"}, "no format 'hdf'; there are npy, parquet, hdf5, vds; did you mean 'hdf5'"),
        ("out.h5", {"format": "npy"}, "a file of format npy ends with .npy"),
        ("out.vds", {"dtype": "float32"}, "a virtual file shows values as they are stored"),
        ("nowhere/out.npy", {}, "there is no folder"),
        ("features.h5", {}, "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    fill: Fill, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    photos = fill(FILES)["photos"]
    (tmp_path / "features.h5").mkdir()
    with pytest.raises(ExportError, match=message):
        export(photos, "layer4", tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "features.h5"]


def test_an_unknown_layer_is_told_as_everywhere(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(LayerNotFoundError, match="did you mean 'layer4:avg'"):
        export(fill(FILES)["photos"], "layer44", tmp_path / "out.npy")


def test_parquet_without_its_library_is_told_with_the_cure(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'icecore\[arrow\]'"):
        export(fill(FILES)["photos"], "layer4", tmp_path / "out.parquet")
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.parametrize("form", ["npy", "parquet", "hdf5"])
def test_rows_are_written_some_at_a_time(
    scattered: FeatureStore,
    expected: Expected,
    columns: Columns,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_table, "MOST_ROWS", 3)
    told: list[tuple[int, int]] = []
    path = tmp_path / f"out{ENDINGS[form]}"
    export(scattered["photos"], None, path, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 20), (6, 20), (9, 20), (12, 20), (15, 20), (18, 20), (20, 20)]
    found = READERS[form](path)
    np.testing.assert_array_equal(found.columns["layer4:avg"], expected(SCATTERED, columns[1]))
    assert found.ids == sorted(SCATTERED)
    if form == "parquet":
        assert pyarrow.parquet.ParquetFile(path).num_row_groups == 7


@pytest.mark.parametrize("form", ["npy", "hdf5"])
def test_memory_does_not_grow_with_the_matrix(
    tmp_path: Path, contract: Contract, image: Callable[..., SourceImage], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 MB of features, 1 MB at a time."""
    monkeypatch.setattr(export_table, "BLOCK", 1 << 20)
    column = Column("layer4", Pooling.parse("avg"), 4000)
    store = FeatureStore.create(tmp_path / "features")
    with store.writer("photos", contract, [column]) as w:
        for number in range(3):
            names = [f"{number}{i:04}" for i in range(1000)]
            contents = [hashlib.sha256(name.encode()).digest() for name in names]
            w.append([image(name) for name in names], contents, {column: np.ones((1000, 4000), dtype=np.float16)})
    photos = store["photos"]
    export(photos, "layer4", tmp_path / f"warm{ENDINGS[form]}")
    tracemalloc.start()
    try:
        export(photos, "layer4", tmp_path / f"out{ENDINGS[form]}")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def sources(path: Path, name: str) -> list[Any]:
    with h5py.File(path) as file:
        return list(file["columns"][name].virtual_sources())


def test_a_virtual_file_maps_runs_of_rows_as_one_piece_and_holds_no_value(fill: Fill, tmp_path: Path) -> None:
    store = fill(FILES)
    export(store["photos"], None, tmp_path / "first.vds")
    assert len(sources(tmp_path / "first.vds", "layer4:avg")) == 1
    fill({"0035.jpg": "new"})
    export(store["photos"], None, tmp_path / "split.vds")
    assert len(sources(tmp_path / "split.vds", "layer4:avg")) == 3
    store.compact()
    export(store["photos"], None, tmp_path / "merged.vds")
    (source,) = sources(tmp_path / "merged.vds", "layer4:avg")
    (path,) = store.path.glob(source.file_name.removeprefix("features/"))
    assert source.dset_name == "/columns/layer4:avg"
    with h5py.File(path) as file:
        assert file.attrs["rows"] == 21


@pytest.mark.parametrize("where", ["inside", "beside", "below"])
def test_a_virtual_file_moves_with_its_store(
    scattered: FeatureStore, expected: Expected, columns: Columns, tmp_path: Path, where: str
) -> None:
    """In the store, beside it, or in a folder beside it; all in a folder that HDF5 would take for a pattern."""
    scattered.close()
    home, moved = tmp_path / "100%b %d%% home", tmp_path / "moved"
    (home / "views").mkdir(parents=True)
    shutil.move(scattered.path, home / "features")
    place = {"inside": "features/view.vds", "beside": "view.vds", "below": "views/view.vds"}[where]
    with FeatureStore.open(home / "features") as store:
        export(store["photos"], None, home / place)
    for folder in (home, moved):
        if folder is moved:
            shutil.move(home, moved)
        np.testing.assert_array_equal(read_hdf5(folder / place).columns["layer4:avg"], expected(SCATTERED, columns[1]))


def test_a_virtual_file_in_a_folder_that_looks_like_a_pattern_finds_a_store_above_it(
    fill: Fill, expected: Expected, columns: Columns, tmp_path: Path
) -> None:
    store = fill(FILES)
    store.close()
    shutil.move(store.path, tmp_path / "%b features")
    (tmp_path / "a").mkdir()
    with FeatureStore.open(tmp_path / "%b features") as moved:
        export(moved["photos"], None, tmp_path / "a" / "view.vds")
    np.testing.assert_array_equal(
        read_hdf5(tmp_path / "a" / "view.vds").columns["layer4:avg"], expected(FILES, columns[1])
    )


def test_a_virtual_file_shows_no_number_where_a_segment_is_gone(scattered: FeatureStore, tmp_path: Path) -> None:
    export(scattered["photos"], None, tmp_path / "view.vds")
    gone = sources(tmp_path / "view.vds", "layer4:avg")[0].file_name
    (tmp_path / gone).unlink()
    X = read_hdf5(tmp_path / "view.vds").columns["layer4:avg"]
    lost = np.isnan(X).all(axis=1)
    assert 0 < lost.sum() < 20
    assert np.isfinite(X[~lost]).all()


def test_rows_too_scattered_for_a_virtual_file_are_refused_with_the_cure(
    scattered: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_hdf5, "MOST_RUNS", 5)
    with pytest.raises(ExportError, match=r"the rows lie in \d+ pieces, a virtual file takes 5; .* store compact"):
        export(scattered["photos"], None, tmp_path / "view.vds")
    scattered.compact()
    export(scattered["photos"], None, tmp_path / "view.vds")
