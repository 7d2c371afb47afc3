"""From layers and a version to open files: of one commit, whatever happens between the question and the answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, FeatureStore, StoreDamagedError, VersionNotFoundError, opening
from icecore.store.session import writing

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}


def two_segments(fill: Fill) -> FeatureStore:
    fill({name: text for name, text in FILES.items() if name < "010"})
    return fill(FILES)


def test_an_array_is_the_matrix_read_later(fill: Fill, expected: Expected, columns: tuple[Column, Column]) -> None:
    photos = two_segments(fill)["photos"]
    array = photos.array(["layer4", "layer3"])
    whole = np.hstack([expected(FILES, columns[1]), expected(FILES, columns[0])])
    assert array.shape == whole.shape
    np.testing.assert_array_equal(array[[3, 19, 3]], whole[[3, 19, 3]])
    np.testing.assert_array_equal(array.take(["007.jpg", "001.jpg"]), whole[[7, 1]])
    assert array.ids == sorted(FILES)


def test_an_open_array_stays_of_its_commit_while_the_set_goes_on(
    fill: Fill, expected: Expected, columns: tuple[Column, Column]
) -> None:
    store = two_segments(fill)
    array = store["photos"].array("layer4")
    fill({**FILES, "000.jpg": "edited", "zzz.jpg": "new"})
    store.compact()
    for path in (store.path / "segments").rglob("*.h5"):
        path.unlink()  # what a collection does, and more
    np.testing.assert_array_equal(array[:], expected(FILES, columns[1]))
    assert array.ids == sorted(FILES)


def test_a_layer_named_twice_comes_twice(fill: Fill) -> None:
    X = two_segments(fill)["photos"].matrix(["layer4", "layer4"]).X
    np.testing.assert_array_equal(X[:, :6], X[:, 6:])


def test_the_question_is_asked_again_when_a_file_went_meanwhile(
    fill: Fill, expected: Expected, columns: tuple[Column, Column], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compaction and a collection come right between the catalog's answer and the opening of the files."""
    store = two_segments(fill)
    real, calls = opening.FeatureArray, []

    def open_late(*args: Any) -> Any:
        if not calls:
            old = set((store.path / "segments").rglob("*.h5"))
            store.compact()
            for path in old:
                path.unlink()
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(opening, "FeatureArray", open_late)
    ids, X = store["photos"].matrix("layer4")
    assert len(calls) == 2
    assert ids == sorted(FILES)
    np.testing.assert_array_equal(X, expected(FILES, columns[1]))


def test_a_segment_that_is_really_missing_is_told(fill: Fill) -> None:
    store = two_segments(fill)
    shutil.rmtree(store.path / "segments")
    with pytest.raises(StoreDamagedError, match="missing"):
        store["photos"].matrix("layer4")


def test_ids_asked_for_too_late_are_refused_and_never_those_of_other_rows(fill: Fill) -> None:
    store = two_segments(fill)
    array = store["photos"].array("layer4")
    version = store["photos"].version
    with writing(store.path) as db:  # as a collection would
        db.execute("DELETE FROM images WHERE id = ? AND added_in <= ?", (b"004.jpg", version))
    with pytest.raises(VersionNotFoundError, match="collected by gc"):
        _ = array.ids


def test_a_matrix_as_another_type_is_an_array_of_its_own(fill: Fill) -> None:
    store = fill(FILES)
    assert not store["photos"].matrix("layer4", dtype=None).X.flags.writeable
    X = store["photos"].matrix("layer4", dtype="float16").X
    assert X.dtype == np.float16
    X[:] = 0
    assert store["photos"].matrix("layer4").X.any()
