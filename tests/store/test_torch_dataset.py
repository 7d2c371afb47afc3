"""The torch dataset: the features and labels of the store, in any kind of DataLoader worker."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import StoreError
from icecore.store.array import FeatureArray
from icecore.store.errors import UnknownLabelError
from icecore.store.places import Extent, Places

torch = pytest.importorskip("torch")

from icecore.store.torch_dataset import FeatureDataset  # noqa: E402  (skips where there is no torch)
from torch.utils.data import DataLoader  # noqa: E402

Segment = Callable[..., tuple[Extent, np.ndarray]]
IDS = [f"{row:02}.jpg" for row in range(40)]


@pytest.fixture
def stored(segment: Segment) -> tuple[FeatureArray, np.ndarray]:
    extent, X = segment()
    places = Places(extent.column, (extent,), np.zeros(40, np.int32), np.arange(40))
    return FeatureArray([places], IDS), X.astype(np.float32)


def test_a_sample_is_float32_features_and_its_label(stored: tuple[FeatureArray, np.ndarray]) -> None:
    array, X = stored
    dataset = FeatureDataset(array, {**{image_id: i % 3 for i, image_id in enumerate(IDS)}, "other.jpg": 9})
    assert len(dataset) == 40
    features, label = dataset[4]
    assert (features.dtype, label.dtype, int(label)) == (torch.float32, torch.int64, 1)
    np.testing.assert_array_equal(features.numpy(), X[4])
    np.testing.assert_array_equal(FeatureDataset(array)[-1].numpy(), X[39])
    with pytest.raises(IndexError, match="row 40 is outside"):
        dataset[40]


def test_several_samples_are_those_taken_singly(stored: tuple[FeatureArray, np.ndarray]) -> None:
    rows = [7, 3, 3, 39]
    bare, labelled = FeatureDataset(stored[0]), FeatureDataset(stored[0], np.linspace(0, 1, 40))
    assert all(map(torch.equal, bare.__getitems__(rows), (bare[row] for row in rows)))
    for several, single in zip(labelled.__getitems__(rows), (labelled[row] for row in rows), strict=True):
        assert all(map(torch.equal, several, single))


def test_pickled_it_gives_the_same_samples(stored: tuple[FeatureArray, np.ndarray]) -> None:
    dataset = pickle.loads(pickle.dumps(FeatureDataset(stored[0], np.arange(40))))
    features, label = dataset[11]
    np.testing.assert_array_equal(features.numpy(), stored[1][11])
    assert int(label) == 11


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([0, 1] * 20, torch.int64),
        (np.eye(40, 5, dtype=bool), torch.int64),
        (np.linspace(0, 1, 40), torch.float32),
        (dict.fromkeys(IDS, 0.5), torch.float32),
    ],
)
def test_labels_are_classes_or_amounts(stored: tuple[FeatureArray, np.ndarray], labels: Any, dtype: Any) -> None:
    dataset = FeatureDataset(stored[0], labels)
    assert dataset.labels is not None
    assert (dataset.labels.dtype, len(dataset.labels)) == (dtype, 40)
    np.testing.assert_allclose(dataset.labels, list(labels.values()) if isinstance(labels, dict) else labels, rtol=1e-6)


def test_images_without_a_label_and_labels_that_do_not_fit_are_told(stored: tuple[FeatureArray, np.ndarray]) -> None:
    array, _ = stored
    with pytest.raises(UnknownLabelError, match=r"37 of 40 images have no label: '00\.jpg', .*, \.\.\.$"):
        FeatureDataset(array, {"02.jpg": 1, "04.jpg": 0, "05.jpg": 0})
    assert issubclass(UnknownLabelError, StoreError)
    with pytest.raises(ValueError, match="39 labels for 40 images"):
        FeatureDataset(array, [0] * 39)
    with pytest.raises(ValueError, match="must be numbers, found <U3: number the classes first"):
        FeatureDataset(array, ["cat"] * 40)


def gathered(batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    features, labels = zip(*batches, strict=True)
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_rows_in_the_same_order(stored: tuple[FeatureArray, np.ndarray], start: str) -> None:
    array, X = stored
    assert array[0].shape == (3,), "the parent has read before it forks"
    dataset = FeatureDataset(array, np.arange(40))
    loader = DataLoader(dataset, batch_size=7, num_workers=2, multiprocessing_context=start)
    features, labels = gathered(loader)
    np.testing.assert_array_equal(features, X)
    np.testing.assert_array_equal(labels, np.arange(40))
    shuffled, labels = gathered(DataLoader(dataset, batch_size=16, shuffle=True))
    np.testing.assert_array_equal(shuffled, X[labels])


def test_the_store_itself_loads_no_torch() -> None:
    code = "import sys, icecore.store, icecore.store.array; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parent).returncode == 0
