"""Features and labels meet by id, and data that nothing can be learned from is refused."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, FeatureStore, LayerNotFoundError, Pooling
from icecore.train import CsvLabels, Dataset, DatasetError, FolderLabels, HashSplit, LabelError, load_dataset
from icecore.train.data import check_finite
from icecore.train.rows import label_rows


def csv(folder: Path, rows: list[str], header: str = "path,label") -> CsvLabels:
    path = folder / "labels.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8", errors="surrogateescape")
    return CsvLabels(path)


def test_rows_are_matched_by_id_whatever_the_order_of_the_labels(lab: Any, tmp_path: Path) -> None:
    ids = ["a.jpg", "b.jpg", "c d.jpg", "z\udcff.jpg", "é.jpg"]  # in the order of their bytes
    X = np.arange(10, dtype=np.float32).reshape(5, 2)
    labels = csv(
        tmp_path,
        ["é.jpg,two,val", "z\udcff.jpg,one,train", "b.jpg,one,val", "c d.jpg,two,train", "a.jpg,one,train"],
        "path,label,split",
    )
    with FeatureStore.open(lab.store(ids, layer=X)) as store:
        data = load_dataset(store, "photos", "layer", labels=labels)
    assert data.rows.ids == tuple(ids)
    assert data.rows.classes == ("one", "two")
    assert data.rows.y.tolist() == [0, 0, 1, 0, 1]
    assert data.rows.train.tolist() == [True, False, True, True, False]
    np.testing.assert_array_equal(data.X, X)
    assert data.rows.held_out_ids == ("b.jpg", "é.jpg")
    np.testing.assert_array_equal(data.held_out()[0], X[[1, 4]])


def test_skipped_images_take_their_rows_with_them(lab: Any, tmp_path: Path) -> None:
    ids = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    X = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = csv(tmp_path, ["e.jpg,two,train", "d.jpg,one,val", "b.jpg,one,train"], "path,label,split")
    labels = CsvLabels(found.path, missing="skip")
    with FeatureStore.open(lab.store(ids, layer=X)) as store:
        data = load_dataset(store, "photos", "layer", labels=labels)
    assert data.rows.ids == ("b.jpg", "d.jpg", "e.jpg")
    np.testing.assert_array_equal(data.X, X[[1, 3, 4]])


def test_layers_are_joined_in_the_order_asked(store_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        joined = load_dataset(store, "photos", ["good", "poor"])
        good, poor = (load_dataset(store, "photos", layer) for layer in ("good", "poor"))
    assert [column.name for column in joined.columns] == ["good:avg", "poor:avg"]
    np.testing.assert_array_equal(joined.X, np.hstack([good.X, poor.X]))


def test_failed_images_named_in_the_labels_are_reported(lab: Any, tmp_path: Path) -> None:
    ids = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    rows = ["a.jpg,x,train", "b.jpg,y,train", "c.jpg,x,val", "d.jpg,y,val", "bad.jpg,x,val"]
    labels = csv(tmp_path, rows, "path,label,split")
    path = lab.store(ids, failed=["bad.jpg"], layer=np.ones((4, 2), np.float32))
    with FeatureStore.open(path) as store:
        data = load_dataset(store, "photos", "layer", labels=labels)
    assert data.rows.match.failed == ("bad.jpg",)


def test_labels_of_unknown_images_are_refused_through_the_whole_path(store_path: Path, tmp_path: Path) -> None:
    with FeatureStore.open(store_path) as store, pytest.raises(LabelError, match=r"not in the store: 'nowhere\.jpg'"):
        load_dataset(store, "photos", "good", labels=csv(tmp_path, ["nowhere.jpg,ants"]))


def test_without_a_split_in_the_labels_rows_are_divided_by_hash(store_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        data = load_dataset(store, "photos", "good", labels=FolderLabels("label"))
        same = load_dataset(store, "photos", "good", labels=FolderLabels("label"), split=HashSplit(0.2))
    assert data.rows.split.description == "hash of the id, 0.2 held out"
    assert data.rows.split.digest == same.rows.split.digest


def test_groups_of_the_labels_reach_split_and_rows(store_path: Path, tmp_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        ids = store["photos"].ids()
        rows = [f"{image},{image.split('/')[1]},{'' if i < 3 else f'g{i // 4}'}" for i, image in enumerate(ids)]
        labels = csv(tmp_path, rows, "path,label,group")
        data = load_dataset(store, "photos", "good", labels=labels, split=HashSplit(0.4))
    assert data.rows.groups is not None
    assert data.rows.groups[0] == ids[0]  # an image without a group stands alone
    sides = set(zip(data.rows.groups, data.rows.train.tolist(), strict=True))
    assert len(sides) == len(set(data.rows.groups))


def test_the_training_digest_names_the_training_ids(store_path: Path) -> None:
    with FeatureStore.open(store_path) as store:
        data = load_dataset(store, "photos", "good")
        ids = sorted(image for image in store["photos"].ids() if image.startswith("train/"))
    assert data.rows.train_digest == hashlib.sha256("\n".join(ids).encode()).hexdigest()


def test_one_class_is_refused(lab: Any) -> None:
    path = lab.store(["train/ants/a.jpg", "val/ants/b.jpg"])
    with FeatureStore.open(path) as store, pytest.raises(DatasetError, match="all images have the label 'ants'"):
        load_dataset(store, "photos", "good")


def test_a_class_without_training_rows_is_refused(lab: Any) -> None:
    path = lab.store(["train/ants/a.jpg", "train/bees/a.jpg", "val/ants/b.jpg", "val/wasps/c.jpg"])
    with FeatureStore.open(path) as store, pytest.raises(DatasetError, match="class 'wasps' has held-out rows but no"):
        load_dataset(store, "photos", "good")


def test_a_missing_layer_lists_those_there_are(store_path: Path) -> None:
    with FeatureStore.open(store_path) as store, pytest.raises(LayerNotFoundError, match="good:avg"):
        load_dataset(store, "photos", "goof")


def test_held_out_copies_of_training_images_are_found(lab: Any) -> None:
    ids = lab.ids(3, 2, ("ants", "bees"))
    X = lab.features(ids, 4, signal=1)
    X[ids.index("val/bees/001.jpg")] = X[ids.index("train/ants/000.jpg")]
    with FeatureStore.open(lab.store(ids, layer=X)) as store:
        assert load_dataset(store, "photos", "layer").repeated_held_out() == ("val/bees/001.jpg",)


def test_looking_for_copies_does_not_copy_the_features(lab: Any) -> None:
    ids = lab.ids(1500, 500, ("ants", "bees"))
    rows = label_rows(ids, labels=FolderLabels())
    data = Dataset(rows, np.random.default_rng(0).normal(size=(4000, 1000)).astype(np.float32), (), None)  # type: ignore[arg-type]
    tracemalloc.start()
    try:
        assert data.repeated_held_out() == ()
        assert tracemalloc.get_traced_memory()[1] < 0.1 * data.X.nbytes
    finally:
        tracemalloc.stop()


def test_features_that_are_not_finite_are_refused_with_image_and_layer() -> None:
    """The store refuses to write them; this holds for whatever a damaged file may give."""
    columns = [Column("a", Pooling.parse("avg"), 2), Column("b", Pooling.parse("max"), 3)]
    X = np.zeros((4, 5), np.float32)
    X[2, 2] = np.inf
    with pytest.raises(DatasetError, match="image 'z', layer b:max: a feature is inf"):
        check_finite(X, ["x", "y", "z", "w"], columns)
