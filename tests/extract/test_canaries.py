"""Canaries: a library, driver or decoder that changes the numbers stops the run; nothing else does."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import NumericsMovedError
from icecore.extract import canaries as module
from icecore.extract.trunk import Trunk
from icecore.store import FeatureStore, repair_store
from icecore.store.canaries import Canaries, canaries_path, read_canaries
from PIL import Image

Extract = Callable[..., Any]
Matrix = Callable[..., tuple[list[str], np.ndarray]]


@pytest.fixture
def held(tmp_path: Path) -> Callable[[], Canaries | None]:
    """Function that reads the canaries of the set's current generation."""

    def held() -> Canaries | None:
        with FeatureStore.open(tmp_path / "store") as store:
            return read_canaries(tmp_path / "store", store["photos"].generation)

    return held


@pytest.fixture
def another(photos: Path, noise: Callable[..., Image.Image]) -> Callable[[], None]:
    """Function that adds an image, so that a run has something to forward."""
    seeds: Iterator[int] = iter(range(100, 200))

    def another() -> None:
        seed = next(seeds)
        noise(41, 37, seed=seed).save(photos / f"new-{seed}.png")

    return another


def other_filter(patch: pytest.MonkeyPatch) -> None:
    """Resize as a library would after its default filter changed."""
    patch.setitem(__import__("icecore.extract.images").extract.images._RESAMPLING, "bilinear", Image.Resampling.BOX)


def louder_pooling(patch: pytest.MonkeyPatch) -> None:
    """Pool to numbers one percent larger: the directions stay, so that no cosine would tell."""
    plain = module.Trunk.start

    def start(self: Trunk, pixels: np.ndarray) -> Any:
        wait = plain(self, pixels)
        return lambda: {column: X * np.float32(1.01) for column, X in wait().items()}

    patch.setattr(Trunk, "start", start)


def test_a_first_run_keeps_a_few_small_files_and_what_they_give(
    extract: Extract, held: Any, photos: Path, matrix: Matrix
) -> None:
    extract()
    canaries = held()
    ids, X = matrix()
    rows = dict(zip(ids, X, strict=True))
    assert len(canaries.ids) == 8  # nine images, of which one is a copy
    for place, (image_id, data) in enumerate(zip(canaries.ids, canaries.files, strict=True)):
        assert data == (photos / image_id).read_bytes()
        for features in canaries.features.values():
            np.testing.assert_allclose(features[place], rows[image_id], rtol=1e-5, atol=1e-6)
    assert len({hashlib.sha256(data).digest() for data in canaries.files}) == 8
    assert canaries.versions["block2:avg:float32"]["torch"] == torch.__version__
    assert canaries.precision == "fp32"


@pytest.mark.parametrize("change", [other_filter, louder_pooling])
def test_numbers_that_moved_stop_the_run_before_a_feature_is_written(
    extract: Extract, matrix: Matrix, another: Callable[[], None], change: Callable[..., None]
) -> None:
    extract()
    before = matrix()
    another()
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        with pytest.raises(NumericsMovedError) as refused:
            extract()
        told = str(refused.value)
        assert "gives other features in block2:avg:float32: moved by" in told
        assert "(cosine " in told
        assert "no library that is recorded, so look at driver" in told
        assert "--set set=NAME" in told
        assert any(f"the canary {image!r}" in told for image in before[0])
        ids, X = matrix()
        assert ids == before[0]
        np.testing.assert_array_equal(X, before[1])
    assert extract().forwarded == 1  # what changed was put back
    assert len(matrix()[0]) == 10


def test_the_libraries_that_changed_since_are_named(
    extract: Extract, another: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icecore.extract.job.library_versions", lambda: {"torch": "1.0", "pillow": "11"})
    extract()
    monkeypatch.setattr("icecore.extract.job.library_versions", lambda: {"torch": "2.0", "pillow": "11"})
    another()
    other_filter(monkeypatch)
    with pytest.raises(NumericsMovedError, match=r"changed since: torch 1\.0 -> 2\.0;") as refused:
        extract()
    assert (refused.value.then["torch"], refused.value.now["torch"]) == ("1.0", "2.0")


def test_a_decoder_that_no_longer_reads_a_canary_stops_the_run(
    extract: Extract, photos: Path, noise: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract()
    noise(41, 37, seed=100).save(photos / "new.jpg")
    monkeypatch.setattr("icecore.extract.decoding._FORMATS", ("JPEG",))
    with pytest.raises(NumericsMovedError, match="can no longer be decoded"):
        extract()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 16, "threads": 0}, {"threads": 4}])
def test_batches_and_threads_raise_no_alarm(
    extract: Extract, another: Callable[[], None], options: dict[str, Any]
) -> None:
    extract()
    another()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert extract(**options).forwarded == 1
    finally:
        torch.set_num_threads(before)


def test_bf16_has_canaries_of_its_own_and_raises_no_alarm(
    extract: Extract, another: Callable[[], None], held: Any
) -> None:
    extract()
    extract(precision="bf16")
    assert held().precision == "bf16"
    another()
    assert extract(precision="bf16", batch_size=2).forwarded == 1


@pytest.mark.slow
def test_a_compiled_pass_raises_no_alarm(extract: Extract, another: Callable[[], None]) -> None:
    extract()
    another()
    report = extract(compilation="always")
    assert (report.forwarded, report.engine) == (1, "compiled")


def test_what_canaries_cost(
    extract: Extract, another: Callable[[], None], monkeypatch: pytest.MonkeyPatch, forwards: list[int]
) -> None:
    """Eight images in a run that forwards something, and none in one that does not."""
    seen: list[int] = []
    plain = Trunk.start

    def counting(self: Trunk, pixels: np.ndarray) -> Any:
        seen.append(len(pixels))
        return plain(self, pixels)

    monkeypatch.setattr(Trunk, "start", counting)
    extract()
    assert seen == [4, 4, *forwards]
    seen.clear()
    extract()
    assert seen == []
    another()
    extract()
    assert seen == [4, 4, 1]


def test_a_new_column_is_entered_once_the_others_gave_what_they_gave(
    extract: Extract, held: Any, another: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract()
    with pytest.MonkeyPatch.context() as patch:
        other_filter(patch)
        with pytest.raises(NumericsMovedError):
            extract(layers=["block1", "block2"])
        assert [column.layer for column in held().features] == ["block2"]
    extract(layers=["block1", "block2"])
    assert [column.layer for column in held().features] == ["block2", "block1"]
    another()
    louder_pooling(monkeypatch)
    with pytest.raises(NumericsMovedError, match="block1:avg"):
        extract(layers=["block1"])


def test_a_generation_without_canaries_gets_them_from_the_next_run_that_forwards(
    extract: Extract, held: Any, another: Callable[[], None], tmp_path: Path
) -> None:
    """A store of an earlier release."""
    extract()
    shutil.rmtree(tmp_path / "store" / "canaries")
    extract()
    assert held() is None
    another()
    extract()
    assert held().ids == ("new-100.png",)


def test_files_are_few_and_small_and_one_large_file_is_better_than_none(
    extract: Extract, held: Any, photos: Path, noise: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sorted({path.stat().st_size for path in photos.rglob("*.png")})
    monkeypatch.setattr(module, "MOST_BYTES", sum(sizes[:3]))
    extract()
    assert [len(data) for data in held().files] == sizes[:3]
    monkeypatch.setattr(module, "MOST_BYTES", 1)
    extract(preprocess_changes={"resize": 40})
    assert [len(data) for data in held().files] == sizes[:1]


def test_a_copy_of_the_store_and_a_catalog_made_anew_are_guarded_too(
    extract: Extract, another: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract()
    shutil.move(tmp_path / "store", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "store")
    for name in ("catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    repair_store(tmp_path / "store", accept_loss=True)
    another()
    other_filter(monkeypatch)
    with pytest.raises(NumericsMovedError):
        extract()


def test_a_run_killed_while_canaries_were_written_leaves_nothing_for_good(
    extract: Extract, another: Callable[[], None], tmp_path: Path
) -> None:
    extract()
    with FeatureStore.open(tmp_path / "store") as store:
        path = canaries_path(tmp_path / "store", store["photos"].generation)
    path.rename(path.with_suffix(".npz.tmp"))
    another()
    extract()
    assert list(path.parent.iterdir()) == [path]
