"""Stored features are found by what a file holds, in every set of the contract, whatever the store does meanwhile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureStore, SourceImage
from icecore.store.by_content import StoredFeatures

Vectors = Callable[[bytes, Column], np.ndarray]


def content(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@pytest.fixture
def write(
    tmp_path: Path, contract: Contract, columns: Sequence[Column], vectors: Vectors
) -> Callable[..., FeatureStore]:
    def run(names: Sequence[str], *, into: str = "photos", only: Sequence[Column] = (), **options: Any) -> FeatureStore:
        chosen = only or columns
        store = FeatureStore.create(tmp_path / "features")
        images = [SourceImage(f"{name}.png", tmp_path / f"{name}.png", 10, 1_000, 1_000) for name in names]
        with store.writer(into, options.get("contract", contract), chosen, source={"folder": str(tmp_path)}) as writer:
            contents = [content(name) for name in names]
            writer.append(images, contents, {c: np.array([vectors(x, c) for x in contents]) for c in chosen})
        return store

    return run


def test_features_are_found_by_content_side_by_side_in_the_order_asked_for(
    write: Any, contract: Contract, columns: Sequence[Column], vectors: Vectors
) -> None:
    store = write("abc")
    write("cdef", into="others")
    with StoredFeatures(store, contract, columns[::-1]) as stored:
        assert (set(stored.sets), len(stored)) == ({"others", "photos"}, 7)
        places = stored.find([content(name) for name in "fxa"])
        assert (places[1], stored.has(content("x")), stored.has(content("e"))) == (None, False, True)
        X = stored.read([places[2], places[0], places[2]])
    expected = [np.concatenate([vectors(content(name), column) for column in columns[::-1]]) for name in "afa"]
    np.testing.assert_array_equal(X, expected)
    assert X.dtype == np.float32


def test_another_contract_or_a_column_that_is_lacking_finds_nothing(
    write: Any, contract: Contract, other_contract: Contract, columns: Sequence[Column]
) -> None:
    store = write("abc", only=columns[:1])
    assert StoredFeatures(store, other_contract, columns[:1]).find([content("a")]) == [None]
    both = StoredFeatures(store, contract, columns)
    assert (len(both), both.has(content("a"))) == (0, False)
    assert StoredFeatures(store, contract, columns[:1]).has(content("a"))


def test_a_file_as_it_was_is_known_unread_and_one_that_changed_is_not(
    write: Any, contract: Contract, columns: Sequence[Column], tmp_path: Path
) -> None:
    store = write("abc")
    here = SourceImage("x", tmp_path / "a.png", 10, 1_000, 1_000)
    changed = [replace(here, size=11), replace(here, mtime_ns=1_001), replace(here, ctime_ns=1_001)]
    elsewhere = replace(here, path=tmp_path.parent / "a.png")
    with StoredFeatures(store, contract, columns) as stored:
        found = stored.find_unread([here, *changed, elsewhere])
        assert found == [*stored.find([content("a")]), None, None, None, None]
        assert found[0] is not None


def test_what_is_committed_compacted_or_collected_later_changes_nothing(
    write: Any, contract: Contract, columns: Sequence[Column], vectors: Vectors
) -> None:
    store = write("ab")
    with StoredFeatures(store, contract, columns) as stored:
        places = stored.find([content("b")])
        write("cd")
        store.compact()
        store.collect()
        assert stored.find([content("c")]) == [None]
        expected = np.concatenate([vectors(content("b"), column) for column in columns])
        np.testing.assert_array_equal(stored.read(places), [expected])
