"""What processes beside the writer know of the contents that were committed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureStore, GenerationNotFoundError, SourceImage
from icecore.store.committed import CommittedContents


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_contents_that_have_every_column_are_known_and_later_ones_are_not(
    fill: Callable[..., FeatureStore],
    tmp_path: Path,
    contract: Contract,
    columns: Sequence[Column],
    image: Callable[..., SourceImage],
    vectors: Callable[[bytes, Column], np.ndarray],
) -> None:
    store = fill({"a": "one", "b": "two"})
    with store.writer("photos", contract, columns) as writer:
        features = {columns[0]: vectors(digest("half"), columns[0])[None]}
        writer.append([image("c")], [digest("half")], features)
        writer.commit()
        generation = writer.generation
        with CommittedContents(tmp_path / "features", generation, columns) as known:
            assert digest("one") in known
            assert digest("two") in known
            assert digest("half") not in known
            assert digest("none") not in known
            writer.append([image("d")], [digest("new")], {c: vectors(digest("new"), c)[None] for c in columns})
            writer.commit()
            assert digest("new") not in known  # forwarded again at worst
            answers: list[bool] = []
            threads = [threading.Thread(target=lambda: answers.append(digest("one") in known)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert answers == [True] * 8
        with CommittedContents(tmp_path / "features", generation, columns[:1]) as known:
            assert digest("half") in known
            assert digest("new") in known


def test_refused_contents_count_unless_they_are_tried_again(
    tmp_path: Path, contract: Contract, columns: Sequence[Column], image: Callable[..., SourceImage]
) -> None:
    store = FeatureStore.create(tmp_path / "features")
    with store.writer("photos", contract, columns) as writer:
        bad = {column: np.full((1, column.width), np.nan, np.float32) for column in columns}
        assert writer.append([image("a")], [digest("nan")], bad)
        writer.commit()
        generation, retries = writer.generation, writer.retries
    assert not retries
    with CommittedContents(tmp_path / "features", generation, columns) as known:
        assert digest("nan") in known
    with CommittedContents(tmp_path / "features", generation, columns, retries=True) as known:
        assert digest("nan") not in known


def test_an_unknown_generation_is_told(fill: Callable[..., FeatureStore], tmp_path: Path) -> None:
    fill({"a": "one"})
    with pytest.raises(GenerationNotFoundError, match="no generation 0123"):
        CommittedContents(tmp_path / "features", "0123", [])
