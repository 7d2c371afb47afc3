from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from icecore.store import (
    AmbiguousLayerError,
    Column,
    Contract,
    ContractMismatchError,
    FeatureSet,
    FeatureStore,
    IncompleteColumnError,
    LayerNotFoundError,
    LockedError,
    Pooling,
    SetNotFoundError,
    SourceImage,
    StoreDamagedError,
    StoreNotFoundError,
    VersionNotFoundError,
    verify_store,
)

FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]


def test_what_was_appended_is_read_by_id_order(fill: Fill, expected: Expected, columns: tuple[Column, Column]) -> None:
    with fill(FILES) as store:
        for column in columns:
            ids, X = store["photos"].matrix(column.layer)
            assert ids == sorted(FILES)
            assert X.dtype == np.float32
            np.testing.assert_array_equal(X, expected(FILES, column))


def test_several_layers_are_joined_in_the_order_asked(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    with fill(FILES) as store:
        _, X = store["photos"].matrix(["layer4", "layer3:avg"])
    np.testing.assert_array_equal(X, np.hstack([expected(FILES, columns[1]), expected(FILES, columns[0])]))


def test_bare_h5py_reads_the_same_rows(fill: Fill, expected: Expected, columns: tuple[Column, Column]) -> None:
    """The second witness: none of our reading code, only what FORMAT.md says."""
    files = {**FILES, "odd \udcff\n name.png": "latin"}
    with fill(files) as store:
        (path,) = store.path.glob("segments/photos/*/*.h5")
    with h5py.File(path) as file:
        ids = file["ids"][()].tobytes().split(b"\0")[:-1]
        assert ids == sorted(i.encode("utf-8", "surrogateescape") for i in files)
        texts = [files[i.decode("utf-8", "surrogateescape")] for i in ids]
        assert file["content"][()].tobytes() == b"".join(hashlib.sha256(t.encode()).digest() for t in texts)
        for column in columns:
            dataset = file["columns"][column.name]
            assert dataset.dtype == np.dtype("<f2")
            assert dataset.chunks is None
            assert dataset.compression is None
            assert dataset.id.get_offset() % (4096 if dataset.nbytes >= 4096 else 8) == 0
            np.testing.assert_array_equal(dataset[()].astype(np.float32), expected(files, column))
            raw = path.read_bytes()[dataset.id.get_offset() :][: dataset.nbytes]
            assert raw == dataset[()].tobytes()


def test_one_whole_segment_comes_back_as_a_read_only_memory_map(fill: Fill) -> None:
    with fill(FILES) as store:
        X = store["photos"].matrix("layer4", dtype=None).X
    assert isinstance(X, np.memmap)
    assert X.dtype == np.float16
    assert not X.flags.writeable


def test_duplicates_share_one_row(fill: Fill, expected: Expected, columns: tuple[Column, Column]) -> None:
    files = {"a.jpg": "same", "b.jpg": "same", "c.jpg": "other"}
    with fill(files) as store:
        np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(files, columns[1]))
        (path,) = store.path.glob("segments/photos/*/*.h5")
    with h5py.File(path) as file:
        assert file.attrs["rows"] == 2


def test_a_layer_added_later_writes_only_its_own_column(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    late = Column("layer2", Pooling.parse("max"), 3)
    store = fill(FILES)
    before = {p: p.read_bytes() for p in store.path.glob("segments/**/*.h5")}
    fill(FILES, columns=[late])
    after = {p: p.read_bytes() for p in store.path.glob("segments/**/*.h5")}
    assert before.items() < after.items()
    (new,) = after.keys() - before.keys()
    with h5py.File(new) as file:
        assert list(file["columns"]) == ["layer2:max"]
    for column in (*columns, late):
        np.testing.assert_array_equal(store["photos"].matrix(column.name).X, expected(FILES, column))


def test_a_changed_image_replaces_its_row_and_the_old_version_stays(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    old = store["photos"].version
    changed = {**FILES, "003.jpg": "another picture"}
    fill(changed)
    np.testing.assert_array_equal(store["photos"].matrix("layer4").X, expected(changed, columns[1]))
    np.testing.assert_array_equal(store["photos"].matrix("layer4", version=old).X, expected(FILES, columns[1]))


def test_a_removed_image_is_gone_from_the_new_version_only(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    old = store["photos"].version
    with store.writer("photos", contract, columns) as writer:
        writer.remove(["005.jpg"])
    assert "005.jpg" not in store["photos"].matrix("layer4").ids
    assert "005.jpg" in store["photos"].matrix("layer4", version=old).ids


def test_writing_the_same_again_makes_no_version_and_no_file(fill: Fill) -> None:
    store = fill(FILES)
    version, files = store["photos"].version, sorted(store.path.glob("segments/**/*.h5"))
    fill(FILES)
    assert (store["photos"].version, sorted(store.path.glob("segments/**/*.h5"))) == (version, files)


def test_a_generation_never_holds_two_contracts_and_readers_move_when_it_is_whole(
    fill: Fill,
    contract: Contract,
    other_contract: Contract,
    columns: tuple[Column, Column],
    image: Callable[..., SourceImage],
    vectors: Callable[[bytes, Column], np.ndarray],
    expected: Expected,
) -> None:
    """Peer defect 11: killed, weights changed, restarted."""
    store = fill(FILES)
    half = dict(list(FILES.items())[:10])
    fill(half, contract=other_contract)
    photos = store["photos"]
    assert photos.contract == contract
    np.testing.assert_array_equal(photos.matrix("layer4").X, expected(FILES, columns[1]))
    fill(FILES, contract=other_contract)
    assert photos.contract == other_contract
    np.testing.assert_array_equal(photos.matrix("layer4").X, expected(FILES, columns[1]))
    for path in store.path.glob("segments/photos/*/*.h5"):
        with h5py.File(path) as file:
            assert file.attrs["generation"] == path.parent.name
            assert file.attrs["contract_hash"] == (
                other_contract.hash if path.parent.name == photos.generation else contract.hash
            )
    assert verify_store(store.path).ok


def test_images_added_while_a_generation_grows_do_not_disturb_readers_of_the_old_one(
    fill: Fill, other_contract: Contract, contract: Contract
) -> None:
    store = fill(FILES)
    fill({"new.jpg": "new"}, contract=other_contract)
    assert store["photos"].contract == contract
    assert store["photos"].matrix("layer4").ids == sorted(FILES)


def test_a_set_as_of_a_version_does_not_move(
    fill: Fill, contract: Contract, other_contract: Contract, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    pinned = store["photos"].as_of(store["photos"].version)
    generation = pinned.generation
    fill({**FILES, "new.jpg": "new"}, contract=other_contract)
    assert store["photos"].contract == other_contract
    assert (pinned.contract, pinned.generation) == (contract, generation)
    np.testing.assert_array_equal(pinned.matrix("layer4").X, expected(FILES, columns[1]))
    assert pinned.ids() == sorted(FILES)
    with pytest.raises(VersionNotFoundError):
        pinned.as_of(99)


def test_an_incomplete_column_is_refused_and_can_be_read_by_dropping(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    half = dict(list(FILES.items())[:10])
    late = Column("layer2", Pooling.parse("avg"), 3)
    fill(half, columns=[late])
    with pytest.raises(IncompleteColumnError, match=r"layer2:avg covers 10 of 20 images"):
        store["photos"].matrix(["layer4", "layer2"])
    ids, X = store["photos"].matrix(["layer4", "layer2"], missing="drop")
    assert ids == sorted(half)
    np.testing.assert_array_equal(X, np.hstack([expected(half, columns[1]), expected(half, late)]))


def test_a_value_that_float16_cannot_hold_is_a_failure_naming_image_and_layer(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = fill(FILES)
    features = {columns[0]: np.zeros((3, 4)), columns[1]: np.zeros((3, 6))}
    features[columns[1]][1, 2] = 70_000.0
    features[columns[0]][2, 0] = np.nan
    contents = [hashlib.sha256(name).digest() for name in (b"x", b"y", b"z")]
    with store.writer("photos", contract, columns) as writer:
        refused = writer.append([image("x.jpg"), image("y.jpg"), image("z.jpg")], contents, features)
    assert [(row.image.id, row.reason) for row in refused] == [
        ("y.jpg", "layer4:avg: 70000 does not fit float16; store this layer as float32"),
        ("z.jpg", "layer3:avg: nan does not fit float16"),
    ]
    assert [failure.id for failure in store["photos"].failures()] == ["y.jpg", "z.jpg"]
    have = {layer: set(store["photos"].matrix(layer).ids) - set(FILES) for layer in ("layer3", "layer4")}
    assert have == {"layer3": {"x.jpg", "y.jpg"}, "layer4": {"x.jpg", "z.jpg"}}
    assert set(store["photos"].matrix(["layer3", "layer4"]).ids) - set(FILES) == {"x.jpg"}


def test_features_of_the_wrong_shape_are_refused(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = fill(FILES)
    with (
        pytest.raises(ValueError, match=r"layer3:avg has shape \(1, 5\), expected \(1, 4\)"),
        store.writer("photos", contract, columns) as writer,
    ):
        writer.append([image("x.jpg")], [b"0" * 32], {columns[0]: np.zeros((1, 5)), columns[1]: np.zeros((1, 6))})
    assert store["photos"].matrix("layer4").ids == sorted(FILES)


def test_a_column_that_means_something_else_is_refused(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    turned = dataclasses.replace(columns[0], layout="NHWC")
    with pytest.raises(ContractMismatchError, match="layout: 'NHWC' here, 'NCHW' there"):
        store.writer("photos", contract, [turned]).__enter__()


def test_failures_are_rows_with_attempts_and_vanish_when_the_image_comes_good(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = fill(FILES)
    for _ in range(2):
        with store.writer("photos", contract, columns) as writer:
            writer.fail(image("bad.jpg"), "decode", "truncated \udcff")
    (failure,) = store["photos"].failures()
    assert (failure.id, failure.kind, failure.reason, failure.attempts) == ("bad.jpg", "decode", r"truncated \udcff", 2)
    fill({"bad.jpg": "mended"})
    assert store["photos"].failures() == ()
    assert "bad.jpg" in store["photos"].matrix("layer4").ids


def test_features_of_a_file_that_turned_bad_are_no_longer_served(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as writer:
        writer.fail(image("004.jpg", mtime_ns=2_000), "decode", "truncated")
    assert "004.jpg" not in store["photos"].matrix("layer4").ids


def test_features_stay_when_the_unchanged_file_could_not_be_read_this_time(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as writer:
        writer.fail(image("004.jpg"), "read", "input/output error")
    assert "004.jpg" in store["photos"].matrix("layer4").ids
    assert store["photos"].failures()[0].id == "004.jpg"


def test_missing_things_are_named_with_what_there_is(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no feature store here"):
        FeatureStore.open(tmp_path / "elsewhere")
    store = fill(FILES)
    with pytest.raises(SetNotFoundError, match=r"no feature set 'photo'; it has photos; did you mean 'photos'\?"):
        store["photo"]
    with pytest.raises(LayerNotFoundError, match=r"no layer 'layer9'; it has layer3:avg, layer4:avg"):
        store["photos"].matrix("layer9")
    with pytest.raises(VersionNotFoundError, match="no version 99"):
        store["photos"].matrix("layer4", version=99)
    with pytest.raises(VersionNotFoundError, match="no version 0"):
        store["photos"].matrix("layer4", version=0)


def test_a_layer_under_two_poolings_must_be_named_in_full(fill: Fill) -> None:
    store = fill(FILES)
    fill(FILES, columns=[Column("layer4", Pooling.parse("gem"), 6)])
    with pytest.raises(AmbiguousLayerError, match="layer4:avg, layer4:gem3"):
        store["photos"].matrix("layer4")
    assert store["photos"].resolve("layer4:gem").pooling.p == 3


def test_a_second_writer_is_refused_naming_the_first_and_a_dead_one_is_taken_over(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"pid {holder.pid} on .* \(nightly job\) since 20") as refused:
            store.writer("photos", contract, columns).__enter__()
        assert refused.value.holder is not None
        assert store["photos"].matrix("layer4").ids == sorted(FILES)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with store.writer("photos", contract, columns):
        pass


_HOLD = textwrap.dedent("""
    import pathlib, sys
    from icecore.store.lock import writer_lock
    with writer_lock(pathlib.Path(sys.argv[1]), command="nightly job"):
        print("held", flush=True)
        sys.stdin.read()
""")


def test_a_missing_catalog_is_not_replaced_by_an_empty_one(fill: Fill) -> None:
    store = fill(FILES)
    store.close()
    for path in store.path.glob("catalog.sqlite*"):
        path.unlink()
    with pytest.raises(StoreDamagedError, match="segments are here"):
        FeatureStore.create(store.path)


def test_the_folder_can_be_moved(
    fill: Fill, tmp_path: Path, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    store.close()
    store.path.rename(tmp_path / "moved")
    with FeatureStore.open(tmp_path / "moved") as moved:
        np.testing.assert_array_equal(moved["photos"].matrix("layer4").X, expected(FILES, columns[1]))
    assert verify_store(tmp_path / "moved").ok


def test_forked_readers_read_right(fill: Fill, expected: Expected, columns: tuple[Column, Column]) -> None:
    """Peer defect 8: a handle shared across processes."""
    store = fill(FILES)
    photos = store["photos"]
    photos.matrix("layer4")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_compare, args=(photos, expected(FILES, columns[1]))) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def _compare(photos: FeatureSet, wanted: np.ndarray) -> None:
    for _ in range(20):
        np.testing.assert_array_equal(photos.matrix("layer4").X, wanted)


def test_interrupted_writing_keeps_what_was_appended_and_a_fault_only_what_was_committed(
    fill: Fill,
    contract: Contract,
    columns: tuple[Column, Column],
    image: Callable[..., SourceImage],
    vectors: Callable[[bytes, Column], np.ndarray],
) -> None:
    store = fill(FILES)

    def append(name: str, error: BaseException) -> None:
        content = hashlib.sha256(name.encode()).digest()
        with store.writer("photos", contract, columns) as writer:
            writer.append([image(name)], [content], {c: vectors(content, c)[None] for c in columns})
            raise error

    with pytest.raises(KeyboardInterrupt):
        append("kept.jpg", KeyboardInterrupt())
    with pytest.raises(RuntimeError):
        append("dropped.jpg", RuntimeError())
    ids = store["photos"].ids()
    assert "kept.jpg" in ids
    assert "dropped.jpg" not in ids
