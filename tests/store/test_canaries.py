"""The file of canaries: whole or refused, and gone with the generation."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, DiskError, FeatureStore, FormatError, StoreDamagedError
from icecore.store.canaries import Canaries, canaries_path, forget_canaries, read_canaries, write_canaries

GENERATION = "0" * 32


@pytest.fixture
def canaries(columns: Sequence[Column]) -> Canaries:
    rng = np.random.default_rng(0)
    return Canaries(
        ids=("a.jpg", "b\udcff.jpg"),
        files=(b"\xff\xd8one", b""),
        features={column: rng.normal(size=(2, column.width)).astype(np.float32) for column in columns},
        versions={column.name: {"torch": "2.15.0"} for column in columns},
        precision="fp32",
        created="2026-01-01T00:00:00+00:00",
    )


def test_what_is_written_is_read(tmp_path: Path, canaries: Canaries) -> None:
    assert read_canaries(tmp_path, GENERATION) is None
    write_canaries(tmp_path, GENERATION, canaries)
    found = read_canaries(tmp_path, GENERATION)
    assert found is not None
    assert (found.ids, found.files, found.versions) == (canaries.ids, canaries.files, canaries.versions)
    assert (found.precision, found.created) == (canaries.precision, canaries.created)
    assert list(found.features) == list(canaries.features)
    for column, X in canaries.features.items():
        np.testing.assert_array_equal(found.features[column], X)
    assert [path.name for path in (tmp_path / "canaries").iterdir()] == [f"{GENERATION}.npz"]


def test_numpy_alone_reads_it_as_the_format_page_says(tmp_path: Path, canaries: Canaries) -> None:
    write_canaries(tmp_path, GENERATION, canaries)
    with np.load(tmp_path / "canaries" / f"{GENERATION}.npz", allow_pickle=False) as arrays:
        about = json.loads(arrays["about"].tobytes())
        assert (about["format"], about["format_version"], about["generation"]) == ("icecore-canaries", 1, GENERATION)
        assert arrays["file-0"].tobytes() == b"\xff\xd8one"
        for number, told in enumerate(about["columns"]):
            assert (arrays[f"column-{number}"].dtype, arrays[f"column-{number}"].shape) == ("<f4", (2, told["width"]))


@pytest.mark.parametrize("place", [0.02, 0.2, 0.5, 0.8, 0.98])
def test_a_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, canaries: Canaries, place: float) -> None:
    write_canaries(tmp_path, GENERATION, canaries)
    path = canaries_path(tmp_path, GENERATION)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(bytes(data))
    try:
        found = read_canaries(tmp_path, GENERATION)
    except StoreDamagedError:
        return
    assert found is not None  # a byte of the archive's own that means nothing
    assert found.files == canaries.files
    for column, X in canaries.features.items():
        np.testing.assert_array_equal(found.features[column], X)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not an archive"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, canaries: Canaries, data: bytes) -> None:
    write_canaries(tmp_path, GENERATION, canaries)
    canaries_path(tmp_path, GENERATION).write_bytes(data)
    with pytest.raises(StoreDamagedError, match=r"not as it was written .*delete it: the next run takes new canaries"):
        read_canaries(tmp_path, GENERATION)


def test_a_later_version_is_refused(tmp_path: Path, canaries: Canaries, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("icecore.store.canaries.FORMAT_VERSION", 2)
        write_canaries(tmp_path, GENERATION, canaries)
    with pytest.raises(FormatError, match="canaries format 2, this release reads 1; upgrade icecore"):
        read_canaries(tmp_path, GENERATION)


def test_a_full_disk_leaves_those_that_were_there(small_disk: Callable[[int], Any], canaries: Canaries) -> None:
    disk = small_disk(256)
    write_canaries(disk.path, GENERATION, canaries)
    before = canaries_path(disk.path, GENERATION).read_bytes()
    disk.leave(0)
    with pytest.raises(DiskError, match="No space left"):
        write_canaries(disk.path, GENERATION, canaries)
    assert canaries_path(disk.path, GENERATION).read_bytes() == before
    assert [path.name for path in (disk.path / "canaries").iterdir()] == [f"{GENERATION}.npz"]


def test_others_are_forgotten(tmp_path: Path, canaries: Canaries) -> None:
    for generation in ("0" * 32, "1" * 32):
        write_canaries(tmp_path, generation, canaries)
    assert forget_canaries(tmp_path, ["1" * 32]) == 1
    assert read_canaries(tmp_path, "0" * 32) is None
    assert read_canaries(tmp_path, "1" * 32) is not None
    assert forget_canaries(tmp_path / "nosuch", []) == 0


def test_gc_keeps_those_of_generations_with_rows_and_deletes_the_rest(
    fill: Callable[..., FeatureStore], canaries: Canaries
) -> None:
    with fill({"a.jpg": "a"}) as store:
        generation = store["photos"].generation
        for name in (generation, "f" * 32):
            write_canaries(store.path, name, canaries)
        store.collect()
        assert [path.stem for path in (store.path / "canaries").iterdir()] == [generation]
