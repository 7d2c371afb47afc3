from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable

import pytest
from icecore.store import FeatureStore, StoreDamagedError, verify_store
from icecore.store.holdings import pack_ids, unpack_ids

FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(40)}


def test_a_sound_store_passes_and_is_counted(fill: Callable[..., FeatureStore]) -> None:
    report = verify_store(fill(FILES).path)
    assert report.ok
    assert (report.segments, report.rows) == (1, 40)


def test_any_flipped_byte_is_found(fill: Callable[..., FeatureStore]) -> None:
    store = fill(FILES)
    (path,) = store.path.glob("segments/**/*.h5")
    sound = path.read_bytes()
    for offset in random.Random(7).sample(range(len(sound)), 60):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0x40]) + sound[offset + 1 :])
        (problem,) = verify_store(store.path).problems
        assert "bytes changed" in problem.what
    path.write_bytes(sound)
    assert verify_store(store.path).ok


def test_a_segment_cut_short_is_found_and_refused(fill: Callable[..., FeatureStore]) -> None:
    """Peer defects 6 and 7: that a file exists does not mean that it is whole."""
    store = fill(FILES)
    (path,) = store.path.glob("segments/**/*.h5")
    path.write_bytes(path.read_bytes()[:2000])
    (problem,) = verify_store(store.path).problems
    assert "has 2,000 bytes" in problem.what
    with pytest.raises(StoreDamagedError, match=r"cut short.* store verify"):
        store["photos"].matrix("layer4")
    path.unlink()
    assert verify_store(store.path).problems[0].what == "is missing"
    with pytest.raises(StoreDamagedError, match="missing"):
        store["photos"].matrix("layer4")


def test_a_catalog_that_points_at_other_rows_is_found(fill: Callable[..., FeatureStore]) -> None:
    store = fill(FILES)
    with sqlite3.connect(store.path / "catalog.sqlite") as db:
        packed, rows = db.execute("SELECT contents, rows FROM segments").fetchone()
        db.execute("UPDATE segments SET contents = ?", (pack_ids(unpack_ids(packed, rows)[::-1]),))
    db.close()
    (problem,) = verify_store(store.path).problems
    assert problem.what == "its rows are not those that the catalog names"


def test_a_segment_that_the_catalog_does_not_know_is_named(fill: Callable[..., FeatureStore]) -> None:
    store = fill(FILES)
    (path,) = store.path.glob("segments/**/*.h5")
    (path.parent / "stranger.h5").write_bytes(path.read_bytes())
    (problem,) = verify_store(store.path).problems
    assert problem.what == "is not in the catalog"
