"""Stores of earlier formats, kept under tests/golden, read as they did when they were written."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from icecore.store import Column, FeatureStore, Pooling, SourceImage, verify_store

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DUMPED = next(path for path in sorted(GOLDEN.rglob("*.h5")) if path.stem == "f92b38d5e88d4ccf9051a3f50137de4c")
FORMAT = Path(__file__).resolve().parents[2] / "store" / "FORMAT.md"
STATES: list[dict[str, Any]] = json.loads((GOLDEN / "store-v1.json").read_text("utf-8"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "store-v1", tmp_path / "store"))


def check(path: Path, state: dict[str, Any]) -> None:
    with FeatureStore.open(path) as store:
        photos = store["photos"].as_of(state["version"])
        assert (photos.generation, photos.contract.hash) == (state["generation"], state["contract_hash"])
        assert [list(failure[:3]) for failure in photos.failures()] == state["failures"]
        assert [column.name for column in photos.columns] == list(state["columns"])
        for name, expected in state["columns"].items():
            ids, X = photos.matrix(name, missing="drop")
            assert [i.encode("utf-8", "surrogateescape").hex() for i in ids] == expected["ids"]
            np.testing.assert_array_equal(X, np.array(expected["X"], dtype=np.float32))


@pytest.mark.parametrize("state", STATES, ids=lambda state: f"version-{state['version']}")
def test_every_version_of_a_store_of_format_1_reads_as_it_did(store: Path, state: dict[str, Any]) -> None:
    before = (store / "catalog.sqlite").read_bytes()
    check(store, state)
    assert verify_store(store).ok
    assert (store / "catalog.sqlite").read_bytes() == before, "a reader changes nothing"


def test_a_writer_brings_a_store_of_format_1_up_to_date_and_every_version_stays(store: Path) -> None:
    column = Column("layer3", Pooling.parse("avg"), 4)
    with FeatureStore.create(store) as opened:
        contract = opened["photos"].contract
        with opened.writer("photos", contract, [column]) as writer:
            features = {column: np.ones((1, 4))}
            writer.append([SourceImage("new.jpg", Path("new.jpg"), 1, 1, 1)], [b"n" * 32], features)
        assert "new.jpg" in opened["photos"].matrix("layer3").ids
    with sqlite3.connect(store / "catalog.sqlite") as db:
        assert db.execute("SELECT value FROM meta WHERE key = 'format_version'").fetchone() == ("2",)
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'old_%'").fetchall() == []
    for state in STATES:
        check(store, state)
    assert verify_store(store).ok


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("*.h5")), ids=lambda path: path.stem[:8])
def test_the_segments_of_format_1_keep_what_the_format_says(path: Path) -> None:
    """By bare h5py: what FORMAT.md promised then it must promise for ever."""
    with h5py.File(path) as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("icecore-segment", 1)
        ids = file["ids"][()].tobytes().split(b"\0")[:-1]
        assert len(ids) == file.attrs["rows"] == file["content"].shape[0]
        for dataset in file["columns"].values():
            assert dataset.chunks is None
            assert dataset.id.get_offset() is not None
            assert np.isfinite(dataset[()]).all()


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed (Debian: hdf5-tools)")
def test_the_format_shows_what_h5dump_prints_of_a_golden_segment(tmp_path: Path) -> None:
    shutil.copy(DUMPED, tmp_path / "segment.h5")
    done = subprocess.run(["h5dump", "-H", "segment.h5"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in FORMAT.read_text("utf-8")
