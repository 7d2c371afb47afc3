"""``icecore store``: what is there, and whether it is sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

Icecore = Callable[..., Any]


@pytest.fixture
def segment(trained: Any) -> Path:
    (found,) = trained.store.rglob("*.h5")
    return found


def test_ls_names_the_sets(icecore: Icecore, trained: Any) -> None:
    done = icecore("store", "ls", trained.store)
    assert (done.code, done.told) == (0, "")
    header, _, *lines = done.text.splitlines()
    assert header.split() == ["set", "images", "failed", "layers", "version", "architecture"]
    assert [line.split() for line in lines] == [["photos", "18", "0", "1", "1", "torchvision.models.squeezenet1_1"]]
    facts = icecore("store", "ls", trained.store, "--json").outcome["sets"]
    assert [(row["set"], row["images"], row["version"]) for row in facts] == [("photos", 18, 1)]


def test_ls_of_an_empty_store_says_so(icecore: Icecore, tmp_path: Path) -> None:
    from icecore.store import FeatureStore

    FeatureStore.create(tmp_path / "new").close()
    done = icecore("store", "ls", tmp_path / "new")
    assert (done.code, done.text) == (0, f"{tmp_path / 'new'}: no feature sets yet\n")


def test_show_tells_columns_and_contract(icecore: Icecore, trained: Any) -> None:
    done = icecore("store", "show", trained.store, "photos")
    assert done.code == 0
    facts = icecore("store", "show", trained.store, "photos", "--json").outcome
    assert facts["columns"] == [{"name": "features.3:avg", "width": 128, "dtype": "float16", "images": 18}]
    assert facts["source"]["weights"].endswith("squeezenet.safetensors")
    assert facts["failures"] == []
    assert f"contract {facts['contract_hash']}" in done.text
    assert f"  weights: {facts['contract']['weights']}" in done.text
    assert "photos: 18 images, 0 failed, version 1" in done.text


@pytest.mark.parametrize("command", ["ls", "show", "verify"])
def test_a_folder_without_a_store_ends_with_3_and_is_left_as_it_was(
    icecore: Icecore, tmp_path: Path, command: str
) -> None:
    done = icecore("store", command, tmp_path, *(["photos"] if command == "show" else []))
    assert (done.code, done.out) == (3, b"")
    assert f"{tmp_path}: no feature store here (no catalog.sqlite); `icecore extract` makes one" in done.told
    assert list(tmp_path.iterdir()) == []


def test_show_of_another_name_says_what_there_is(icecore: Icecore, trained: Any) -> None:
    done = icecore("store", "show", trained.store, "phtos")
    assert done.code == 2
    assert "no feature set 'phtos'; it has photos; did you mean 'photos'?" in done.told


def test_verify_of_a_sound_store_counts_what_it_read(icecore: Icecore, trained: Any, segment: Path) -> None:
    done = icecore("store", "verify", trained.store)
    size = segment.stat().st_size
    assert (done.code, done.text) == (0, f"{trained.store}: 1 segment, 18 rows, {size:,} bytes: all sound\n")
    facts = icecore("store", "verify", trained.store, "--json").outcome
    assert (facts["ok"], facts["rows"], facts["problems"]) == (True, 18, [])


def flip_feature(path: Path) -> None:
    """Change one bit of one feature, on disk."""
    with h5py.File(path) as file:
        found: list[h5py.Dataset] = []
        file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        (features,) = [item for item in found if item.shape == (18, 128)]
        offset = features.id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + 777] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (flip_feature, "bytes changed in columns/features.3:avg"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, should have"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.rename(path.with_name("other.h5")), "is missing"),
    ],
    ids=["flipped", "cut", "deleted", "renamed"],
)
def test_verify_of_a_damaged_store_ends_with_3_naming_the_file(
    icecore: Icecore, trained: Any, segment: Path, damage: Callable[[Path], object], what: str
) -> None:
    name = segment.relative_to(trained.store).as_posix()
    damage(segment)
    done = icecore("store", "verify", trained.store, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["ok"]) == (3, "store invalid", False)
    assert f"  {name}: " in done.told
    (problem,) = [problem for problem in done.outcome["problems"] if problem["path"] == name]
    assert what in problem["what"]
    many = "1 problem" if len(done.outcome["problems"]) == 1 else "2 problems"
    assert f"{trained.store}: {many}\n" in done.told


def test_a_damaged_catalog_ends_with_3(icecore: Icecore, trained: Any) -> None:
    for path in trained.store.glob("catalog.sqlite*"):
        path.write_bytes(b"something else altogether " * 400)
    for command in ("ls", "verify"):
        done = icecore("store", command, trained.store)
        assert done.code == 3
        assert "catalog.sqlite" in done.told


def test_a_missing_segment_stops_training_naming_it(icecore: Icecore, trained: Any, segment: Path) -> None:
    segment.unlink()
    done = icecore("train", trained.config)
    assert done.code == 3
    assert segment.name in done.told


def test_a_store_can_be_moved(icecore: Icecore, trained: Any) -> None:
    moved = trained.store.rename(trained.folder / "elsewhere")
    assert icecore("store", "verify", moved).code == 0
    assert icecore("train", trained.config, "--set", "store=elsewhere").code == 0


def test_compact_merges_segments_and_says_what_it_would_do(icecore: Icecore, trained: Any) -> None:
    photo = next(path for path in sorted((trained.photos / "train").rglob("*")) if path.is_file())
    photo.with_name(f"zzz{photo.suffix}").write_bytes(photo.read_bytes() + b"\0")
    assert icecore("extract", trained.config).code == 0
    would = icecore("store", "compact", trained.store, "photos", "--dry-run")
    assert would.text == "photos: 2 segments would be merged into 1, 19 rows into 19\n"
    assert len(list(trained.store.rglob("*.h5"))) == 2
    done = icecore("store", "compact", trained.store, "--json")
    assert done.code == 0
    assert [(m["segments_before"], m["segments_after"], m["version"]) for m in done.outcome["merged"]] == [(2, 1, 3)]
    again = icecore("store", "compact", trained.store)
    assert (again.code, again.text) == (0, f"{trained.store}: nothing to merge\n")
    assert icecore("store", "verify", trained.store).code == 0
    unknown = icecore("store", "compact", trained.store, "photo")
    assert unknown.code == 2
    assert "did you mean 'photos'" in unknown.told
