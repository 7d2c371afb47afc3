"""Files and disks that misbehave while a job runs cost nothing but another run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.extract import ExtractReport, pipeline, reading
from icecore.extract.errors import ImageError, SourceLostError
from icecore.extract.trunk import Trunk
from icecore.store import Column, FeatureStore, SourceImage
from PIL import Image

Extract = Callable[..., ExtractReport]
Matrix = Callable[..., tuple[list[str], np.ndarray]]
Noise = Callable[..., Image.Image]
Meddle = Callable[[Callable[[SourceImage], None]], None]


@pytest.fixture
def before_reading(monkeypatch: pytest.MonkeyPatch) -> Meddle:
    """Function that lets something happen just before each file is opened."""
    plain = reading._read

    def before_reading(meddle: Callable[[SourceImage], None]) -> None:
        def read(image: SourceImage) -> object:
            meddle(image)
            return plain(image)

        monkeypatch.setattr(reading, "_read", read)

    return before_reading


def failing(number: int, *ids: str) -> Callable[[SourceImage], None]:
    def meddle(image: SourceImage) -> None:
        if not ids or image.id in ids:
            raise OSError(number, os.strerror(number))

    return meddle


@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_changes_during_a_backfill_gets_all_its_columns(
    known: bool, extract: Extract, matrix: Matrix, photos: Path, noise: Noise, before_reading: Meddle, tmp_path: Path
) -> None:
    extract(layers=["block1"])

    def meddle(image: SourceImage) -> None:
        if image.id == "a/2.png" and image.path.stat().st_size == image.size:
            noise(90, 90, seed=77).save(image.path)
        if image.id == "a/1.png" and known:  # so that the new content is met with the missing column alone before
            noise(90, 90, seed=77).save(image.path)

    before_reading(meddle)
    report = extract(layers=["block1", "block2"])
    assert (report.plan.backfill, report.failures) == (9, ())
    ids, X = matrix("block1", "block2")
    assert X.shape == (9, 16)
    changed = X[ids.index("a/2.png")]
    (tmp_path / "store").rename(tmp_path / "first")
    before_reading(lambda image: None)
    extract(layers=["block1", "block2"])
    np.testing.assert_array_equal(matrix("block1", "block2")[1][ids.index("a/2.png")], changed)


def test_images_read_anew_are_counted_once(extract: Extract, noise: Noise, before_reading: Meddle) -> None:
    extract(layers=["block1"])
    before_reading(lambda image: noise(50, 50, seed=int(image.path.stat().st_mtime_ns)).save(image.path))
    calls: list[tuple[int, int]] = []
    report = extract(layers=["block1", "block2"], progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (9, 9)
    assert report.forwarded + report.linked == 9


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.EINTR])
def test_what_the_disk_says_for_a_while_is_transient(number: int, photos: Path, before_reading: Meddle) -> None:
    before_reading(failing(number))
    with pytest.raises(ImageError) as caught:
        reading.read_image_file(SourceImage("x", photos / "a/1.png", 0, 0, 0))
    assert (caught.value.kind, caught.value.reason) == ("transient", os.strerror(number))


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO])
def test_what_the_file_system_says_of_a_file_is_not(number: int, photos: Path, before_reading: Meddle) -> None:
    before_reading(failing(number))
    with pytest.raises(ImageError) as caught:
        reading.read_image_file(SourceImage("x", photos / "a/1.png", 0, 0, 0))
    assert caught.value.kind == "read"


def test_an_image_that_could_not_be_read_for_a_while_is_back_after_the_next_run(
    extract: Extract, matrix: Matrix, photos: Path, noise: Noise, before_reading: Meddle
) -> None:
    extract()
    noise(60, 60, seed=88).save(photos / "b/4.png")
    before_reading(failing(errno.ESTALE, "b/4.png"))
    assert [(f.id, f.kind) for f in extract().failures] == [("b/4.png", "transient")]
    before_reading(lambda image: None)
    report = extract()
    assert (report.plan.retried, report.forwarded, report.failures) == (1, 1, ())
    assert len(matrix()[0]) == 9


@pytest.mark.parametrize("threads", [0, 2])
def test_a_source_that_goes_away_stops_the_job_and_what_is_done_stays(
    threads: int,
    extract: Extract,
    photos: Path,
    noise: Noise,
    before_reading: Meddle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(pipeline, "MOST_TRANSIENT", 5)
    lost = [f"z{n}.png" for n in range(8)]
    for n, name in enumerate(lost):
        noise(30, 30, seed=100 + n).save(photos / name)
    before_reading(failing(errno.EIO, *lost))
    words = r"^5 files in a row could not be read, the last one 'z4.png' \(Input/output error\): .* run again"
    with pytest.raises(SourceLostError, match=words) as caught:
        extract(threads=threads)
    assert caught.value.failures == 5
    with FeatureStore.open(tmp_path / "store") as store:
        assert len(store["photos"].matrix("block2").ids) in range(4, 10)
    before_reading(lambda image: None)
    report = extract(threads=threads)
    assert report.failures == ()
    assert report.forwarded < 16


def test_failures_that_are_not_in_a_row_do_not_stop_the_job(
    extract: Extract, before_reading: Meddle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MOST_TRANSIENT", 2)
    before_reading(failing(errno.EIO, "a/0.png", "a/2.png", "b/4.png", "b/6.png"))
    assert [f.kind for f in extract().failures] == ["transient"] * 4


@pytest.mark.parametrize("batch_size", [4, 16])  # the copy in a later batch, and in the same
def test_a_refused_value_of_a_duplicate_is_told_and_leaves_its_other_columns(
    batch_size: int, extract: Extract, matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Trunk.start

    def overflowing(self: Trunk, pixels: np.ndarray) -> Callable[[], dict[Column, np.ndarray]]:
        wait = plain(self, pixels)

        def features() -> dict[Column, np.ndarray]:
            found = wait()
            next(rows for column, rows in found.items() if column.layer == "block2")[:] = 1e6
            return found

        return features

    monkeypatch.setattr(Trunk, "start", overflowing)
    report = extract(layers=["block1", "block2"], dtype="float16", batch_size=batch_size)
    assert {(f.id, f.kind) for f in report.failures} == {(f"{n}", "value") for n in matrix("block1")[0]}
    assert len(matrix("block1")[0]) == 9
    again = extract(layers=["block1", "block2"], dtype="float16", batch_size=batch_size, retry_failed=True)
    assert {f.id for f in again.failures} == set(matrix("block1")[0])
