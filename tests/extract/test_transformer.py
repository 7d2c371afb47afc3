"""A frozen backbone in a scikit-learn pipeline: rows follow the paths, and no image is computed twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.extract import FrozenBackbone, Preprocess, features_of, load_backbone
from icecore.extract.errors import ImageError
from icecore.extract.layers import columns_for
from icecore.store import ContractMismatchError, FeatureStore
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

SMALL = Preprocess(resize=32, crop=32)


@pytest.fixture
def frozen(own_net: str, tmp_path: Path) -> FrozenBackbone:
    options = {"preprocess": SMALL, "batch_size": 4, "threads": 1, "dtype": "float32"}
    return FrozenBackbone(
        tmp_path / "store", backbone=own_net, weights=None, layers=["block1", "block2"], device="cpu", options=options
    )


def names(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


def test_rows_follow_the_paths_whatever_their_order_and_number(
    frozen: FrozenBackbone, photos: Path, own_net: str
) -> None:
    paths = names(photos)
    asked = [paths[5], paths[0], paths[5], paths[8], paths[2]]
    X = frozen.fit_transform(asked)
    assert X.shape == (5, 16) == (5, frozen.n_features_out_)
    assert X.dtype == np.float32
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block1", "block2"], ("avg",), dtype="float32")
    for row, (_, features) in zip(X, features_of(backbone, columns, asked, device="cpu", batch_size=4), strict=True):
        assert not isinstance(features, ImageError)
        np.testing.assert_allclose(row, np.concatenate([features[column] for column in columns]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(frozen.transform(np.array([[str(p)] for p in asked], dtype=object)), X)
    assert frozen.get_feature_names_out()[-1] == "frozenbackbone15"


def test_a_pipeline_fits_predicts_and_searches_and_every_image_is_forwarded_once(
    frozen: FrozenBackbone, photos: Path, forwards: list[int]
) -> None:
    paths = names(photos)
    y = [path.parent.name for path in paths]
    model = make_pipeline(clone(frozen), LogisticRegression(max_iter=2_000, C=1e4)).fit(paths, y)
    assert sum(forwards) == 8  # nine files, one a copy
    assert model.score(paths, y) >= 8 / 9
    search = GridSearchCV(model, {"logisticregression__C": [1.0, 10.0]}, cv=2).fit(paths, y)
    assert search.best_params_["logisticregression__C"] in (1.0, 10.0)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(paths), model.predict(paths))
    assert sum(forwards) == 8


def test_a_changed_file_is_computed_anew_and_a_new_one_alone(
    frozen: FrozenBackbone, photos: Path, noise: Callable[..., object], forwards: list[int]
) -> None:
    paths = names(photos)
    before = frozen.transform(paths)
    forwards.clear()
    noise(50, 50, seed=77).save(paths[3])  # type: ignore[attr-defined]
    noise(50, 50, seed=78).save(photos / "z.png")  # type: ignore[attr-defined]
    after = frozen.transform([*paths, photos / "z.png"])
    assert sum(forwards) == 2
    assert not np.allclose(after[3], before[3])
    np.testing.assert_array_equal(np.delete(after[:-1], 3, 0), np.delete(before, 3, 0))


def test_images_that_cannot_be_used_are_named_and_the_others_are_kept(
    frozen: FrozenBackbone, photos: Path, forwards: list[int]
) -> None:
    paths = names(photos)
    paths[2].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"2\.png: not an image"):
        frozen.transform(paths)
    with pytest.raises(ImageError, match=r"gone\.png"):
        frozen.transform([paths[0], photos / "gone.png"])
    forwards.clear()
    assert len(frozen.transform([path for path in paths if path != paths[2]])) == 8
    assert forwards == []


def test_other_features_under_the_same_name_are_refused(frozen: FrozenBackbone, photos: Path, tmp_path: Path) -> None:
    paths = names(photos)
    frozen.set_params(set_name="mine").transform(paths)
    other = clone(frozen).set_params(options={**frozen.options, "preprocess": Preprocess(resize=40, crop=32)})
    with pytest.raises(ContractMismatchError, match="another backbone, preprocessing or precision"):
        other.transform(paths[:2])
    assert other.set_params(set_name=None).transform(paths[:2]).shape == (2, 16)
    with FeatureStore.open(tmp_path / "store") as store:
        assert len(store.sets()) == 2


def test_what_is_no_list_of_paths_is_refused(frozen: FrozenBackbone) -> None:
    for wrong in ([], np.zeros((2, 3)), "a.png"):
        with pytest.raises(ValueError, match="expected paths of images"):
            frozen.transform(wrong)


def test_names_of_features_are_known_only_after_fit(frozen: FrozenBackbone) -> None:
    with pytest.raises(NotFittedError):
        frozen.get_feature_names_out()
