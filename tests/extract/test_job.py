"""A folder of images becomes a feature set, stays up to date, and survives whatever happens to the run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from icecore.extract import ExtractReport, Preprocess, extract_images, features_of, load_backbone, stream_features
from icecore.extract.errors import ImageError, RemovalRefusedError, UnknownLayerError, WeightsError
from icecore.extract.images import load_image
from icecore.extract.known import read_known
from icecore.extract.layers import columns_for
from icecore.extract.pipeline import Failed, Row
from icecore.extract.trunk import Trunk
from icecore.store import FeatureStore, SourceError, SourceImage
from PIL import Image

Extract = Callable[..., ExtractReport]
SMALL = Preprocess(resize=32, crop=32)


Matrix = Callable[..., tuple[list[str], np.ndarray]]


def test_every_image_has_its_own_features_in_the_order_of_ids(extract: Extract, matrix: Matrix, photos: Path) -> None:
    report = extract(progress=None)
    ids, X = matrix()
    assert ids == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png", "b/6.png", "b/7.png", "b/copy.png"]
    assert (report.plan.added, report.forwarded, report.linked, report.failures) == (9, 8, 1, ())
    np.testing.assert_array_equal(X[1], X[8])
    backbone = load_backbone(report.source["backbone"], preprocess=SMALL)
    asked = features_of(backbone, report.columns, [photos / name for name in ids], device="cpu", batch_size=2)
    for name, (path, features), row in zip(ids, asked, X, strict=True):
        assert path == photos / name
        np.testing.assert_allclose(features[report.columns[0]], row, rtol=1e-5, atol=1e-6)  # another batch size


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 999),
    threads=st.integers(0, 64),
    device=st.sampled_from(["auto", "cpu"]),
    max_pixels=st.integers(1, 10**9),
    folder=st.sampled_from(["photos", "photos/a", "photos/../photos/b"]),
    extensions=st.sampled_from([(".png",), (".PNG", ".jpg")]),
    command=st.text(),
)
def test_what_no_feature_depends_on_is_not_in_the_contract(
    folder: str, photos: Path, own_net: str, **options: Any
) -> None:
    def planned(folder: Path, **options: Any) -> ExtractReport:
        return extract_images(
            *(photos / "nowhere", "photos", folder),
            backbone_name=own_net,
            weights=None,
            layers=["block2"],
            preprocess=SMALL,
            dry_run=True,
            **options,
        )

    assert planned(photos.parent / folder, **options).contract_hash == planned(photos).contract_hash


def test_a_second_run_forwards_and_writes_nothing(extract: Extract, forwards: list[int], tmp_path: Path) -> None:
    first = extract()
    forwards.clear()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.h5")}
    second = extract()
    assert forwards == []
    assert (second.forwarded, second.plan.unchanged, second.version) == (0, 9, first.version)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.h5")} == before


def test_a_run_says_what_it_ran_as_and_what_the_others_waited_for(extract: Extract) -> None:
    done = extract()
    assert (done.engine, done.precision, done.precision_why) == ("eager", "fp32", "")
    assert done.why.endswith("images are too few to compile for")
    assert set(done.busy) == {"decode", "forward", "write"}
    assert all(0 < share <= 1 for share in done.busy.values())
    assert done.bound_by == max(done.busy, key=lambda stage: done.busy[stage])
    again = extract()
    assert (again.engine, again.busy, again.bound_by) == ("", {}, None)


@pytest.mark.parametrize("first", ["fp32", "bf16"])
def test_auto_goes_on_in_the_precision_of_the_set(extract: Extract, first: str) -> None:
    extract(precision=first)
    again = extract(precision="auto")
    assert (again.precision, again.precision_why) == (first, "")
    assert (again.forwarded, again.plan.differences) == (0, ())


def test_only_what_is_new_changed_or_moved_is_looked_at(
    extract: Extract, forwards: list[int], matrix: Matrix, photos: Path, noise: Callable[..., Image.Image]
) -> None:
    extract()
    _, before = matrix()
    forwards.clear()
    noise(50, 50, seed=99).save(photos / "a/new.png")
    noise(40, 36, seed=98).save(photos / "a/0.png")
    (photos / "b/4.png").rename(photos / "a/moved.png")
    (photos / "b/5.png").unlink()
    report = extract()
    ids, after = matrix()
    assert forwards == [2]
    assert (report.plan.added, report.plan.changed, report.linked, report.removed) == (2, 1, 1, 2)
    assert ids == [
        "a/0.png",
        "a/1.png",
        "a/2.png",
        "a/3.png",
        "a/moved.png",
        "a/new.png",
        *("b/6.png", "b/7.png", "b/copy.png"),
    ]
    np.testing.assert_array_equal(after[4], before[4])
    assert not np.array_equal(after[0], before[0])


def test_an_image_overwritten_with_the_same_size_and_mtime_is_noticed(
    extract: Extract, matrix: Matrix, photos: Path, encode: Callable[..., bytes], noise: Callable[..., Image.Image]
) -> None:
    path = photos / "a/0.bmp"
    path.write_bytes(encode(noise(40, 40, seed=50), "BMP"))
    extract()
    _, before = matrix()
    times = path.stat()
    path.write_bytes(encode(noise(40, 40, seed=51), "BMP"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    report = extract()
    assert report.forwarded == 1
    assert not np.array_equal(matrix()[1][0], before[0])


def test_a_layer_added_later_computes_only_its_own_column(
    extract: Extract, forwards: list[int], matrix: Matrix
) -> None:
    extract()
    _, before = matrix("block2")
    forwards.clear()
    report = extract(layers=["block1", "block2"], poolings=["avg"])
    assert (report.plan.backfill, sum(forwards)) == (9, 8)
    np.testing.assert_array_equal(matrix("block2")[1], before)
    assert matrix("block1", "block2")[1].shape == (9, 16)


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 0), (7, 3), (64, 1)])
def test_rows_do_not_depend_on_batch_size_or_threads(
    batch_size: int, threads: int, extract: Extract, matrix: Matrix, tmp_path: Path
) -> None:
    extract(batch_size=4, threads=2)
    ids, reference = matrix()
    shutil.rmtree(tmp_path / "store")
    extract(batch_size=batch_size, threads=threads)
    assert matrix()[0] == ids
    # Convolutions of another shape may add up in another order: float32 rounding, nothing more.
    np.testing.assert_allclose(matrix()[1], reference, rtol=1e-5, atol=1e-6)


def test_a_bad_image_is_recorded_and_the_job_goes_on(extract: Extract, matrix: Matrix, photos: Path) -> None:
    (photos / "a/1bad.png").write_bytes(b"not an image")
    (photos / "b/0empty.png").write_bytes(b"")
    (photos / "loop.png").symlink_to("loop.png")
    report = extract()
    assert {(f.id, f.kind, f.reason) for f in report.failures} == {
        ("a/1bad.png", "decode", "not an image: first bytes b'not an i'"),
        ("b/0empty.png", "decode", "empty file"),
        ("loop.png", "read", "Too many levels of symbolic links"),
    }
    assert len(matrix()[0]) == 9
    again = extract()
    assert (again.failures, again.plan.failed, again.forwarded) == ((), 3, 0)
    assert len(extract(retry_failed=True).failures) == 3


def test_a_value_that_float16_cannot_hold_names_image_and_layer_for_duplicates_too(
    extract: Extract, matrix: Matrix, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bright = Trunk.start, load_image((photos / "a/1.png").read_bytes(), SMALL)

    def overflowing(self: Trunk, pixels: np.ndarray) -> Any:
        wait, hit = plain(self, pixels), (pixels == bright).all((1, 2, 3))

        def features() -> Any:
            found = wait()
            for rows in found.values():
                rows[hit, 0] = 1e6
            return found

        return features

    monkeypatch.setattr(Trunk, "start", overflowing)
    report = extract(dtype="float16", batch_size=16)
    assert {(f.id, f.kind) for f in report.failures} == {("a/1.png", "value"), ("b/copy.png", "value")}
    assert "block2:avg: 1e+06 does not fit float16" in report.failures[0].reason
    assert len(matrix()[0]) == 7


def test_a_dry_run_writes_nothing_and_takes_no_lock(extract: Extract, tmp_path: Path) -> None:
    plan = extract(dry_run=True)
    assert (plan.dry_run, plan.plan.added, plan.forwarded) == (True, 9, 0)
    assert not (tmp_path / "store").exists()
    extract()
    with FeatureStore.open(tmp_path / "store") as store:
        contract, columns = store["photos"].contract, store["photos"].columns
        with store.writer("photos", contract, columns):
            assert extract(dry_run=True).plan.unchanged == 9


def test_a_folder_that_lost_most_images_is_refused_with_the_cure(
    extract: Extract, matrix: Matrix, photos: Path
) -> None:
    extract()
    shutil.rmtree(photos / "a")
    (photos / "b/7.png").unlink()
    with pytest.raises(RemovalRefusedError, match=r"5 of its 9 images .* `--set source.max_removed=1`") as caught:
        extract()
    assert (caught.value.gone, caught.value.total) == (5, 9)
    assert len(matrix()[0]) == 9
    assert extract(max_removed=1).removed == 5
    assert len(matrix()[0]) == 4


def test_an_empty_folder_is_refused_and_the_set_stays(extract: Extract, matrix: Matrix, photos: Path) -> None:
    extract()
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(SourceError, match="no images"):
        extract(max_removed=1)
    assert len(matrix()[0]) == 9


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"layers": ["blok2"]}, UnknownLayerError),
        ({"weights": "no-such.pth"}, WeightsError),
        ({"poolings": ["median"]}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"max_removed": 2}, ValueError),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_written(
    options: dict[str, Any], error: type[Exception], extract: Extract, tmp_path: Path
) -> None:
    with pytest.raises(error):
        extract(**options)
    assert not (tmp_path / "store").exists()


def test_stopped_and_started_again_with_other_weights_no_row_of_the_old_ones_is_left(
    extract: Extract, matrix: Matrix, tmp_path: Path, own_net: str
) -> None:
    state = load_backbone(own_net, preprocess=SMALL).module.state_dict()
    torch.save({name: tensor * 2 for name, tensor in state.items()}, tmp_path / "other.pth")
    with pytest.raises(KeyboardInterrupt):
        extract(progress=_interrupt_after(4))
    extract(weights=tmp_path / "other.pth")
    ids, mixed = matrix()
    with FeatureStore.open(tmp_path / "store") as store:
        assert (
            store["photos"].contract.weights
            == load_backbone(own_net, tmp_path / "other.pth", preprocess=SMALL).weights_sha256
        )
    (tmp_path / "store").rename(tmp_path / "first")
    extract(weights=tmp_path / "other.pth")
    assert matrix()[0] == ids
    np.testing.assert_array_equal(mixed, matrix()[1])


def _interrupt_after(images: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise KeyboardInterrupt

    return progress


def test_progress_counts_every_image_once(extract: Extract, photos: Path) -> None:
    (photos / "a/bad.png").write_bytes(b"x")
    calls: list[tuple[int, int]] = []
    extract(progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (10, 10)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_an_interrupt_keeps_what_was_done_and_leaves_no_thread(extract: Extract, forwards: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(progress=_interrupt_after(4))
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("icecore")]
    assert set(forwards) == {4}  # what was begun beside it is not waited for
    assert extract().forwarded == 4


def test_passes_that_were_made_smaller_are_told(extract: Extract, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trunk, "pass_size", 2)
    assert "room for passes of 2 images, not of 4" in extract(batch_size=4).why


CHILD = """
import sys, torch
from icecore.extract import Preprocess, extract_images
from icecore.store import writer
writer.FIRST_ROWS = 4
torch.set_num_threads(1)
extract_images(sys.argv[1], "photos", sys.argv[2], backbone_name="ownnets:net", weights=None, layers=["block*"],
    preprocess=Preprocess(resize=32, crop=32), dtype="float32", device="cpu", batch_size=4, threads=2,
    progress=lambda done, total: print(done, flush=True))
"""


@pytest.mark.slow
def test_killed_and_started_again_the_rows_are_the_same_to_the_last_bit(
    tmp_path: Path, extract: Extract, matrix: Matrix, photos: Path, noise: Callable[..., Image.Image]
) -> None:
    for n in range(60):
        noise(33, 33, seed=n % 50).save(photos / f"{n:02}.png")
    (photos / "07.png").write_bytes(b"bad")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "own")}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "store"), str(photos)]
    for stop_at in (4, 21):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            while int(child.stdout.readline()) < stop_at:
                pass
            child.kill()
        assert child.returncode == -signal.SIGKILL
    resumed = extract(layers=["block*"])
    assert 0 < resumed.forwarded < 58
    ids, X = matrix("block1", "block2")
    shutil.rmtree(tmp_path / "store")
    whole = extract(layers=["block*"])
    assert whole.forwarded == 58  # 8 and 50 different images; the broken one has a twin that is whole
    assert matrix("block1", "block2")[0] == ids
    np.testing.assert_array_equal(matrix("block1", "block2")[1], X)
    assert [f.id for f in whole.failures] == ["07.png"]


def test_features_of_tells_each_image_in_order_with_its_failure(photos: Path, own_net: str) -> None:
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block1", "mean"], ["max"])
    bad = photos / "bad.png"
    bad.write_bytes(b"")
    asked = [photos / "a/2.png", bad, photos / "a/1.png", photos / "a/2.png", photos / "gone.png"]
    found = list(features_of(backbone, columns, asked, device="cpu", batch_size=2))
    assert [path for path, _ in found] == asked
    kinds = [features.kind if isinstance(features, ImageError) else "" for _, features in found]
    assert kinds == ["", "decode", "", "", "read"]
    first, again = found[0][1], found[3][1]
    for column in columns:
        np.testing.assert_array_equal(first[column], again[column])
        np.testing.assert_array_equal(first[column], first[column].astype(np.float16))  # as stored


def test_known_images_are_read_without_decoding_up_to_the_first_unknown_one(photos: Path) -> None:
    import hashlib

    names = ["a/0.png", "a/1.png", "gone.png", "a/2.png", "a/3.png", "b/4.png"]
    images = [SourceImage(name, photos / name, 0, 0, 0) for name in names]
    known = {
        hashlib.sha256((photos / name).read_bytes()).digest() for name in names if name not in ("gone.png", "a/3.png")
    }
    for threads in (0, 3):
        told, stream = [], read_known(iter(images), known.__contains__, threads=threads)
        while True:
            try:
                told += next(stream).outcomes
            except StopIteration as end:
                rest = end.value
                break
        assert [outcome.image.id for outcome in told] == names[:4]
        assert [isinstance(outcome, Failed) for outcome in told] == [False, False, True, False]
        assert [image.id for image in rest] == (names[4:5] if threads == 0 else names[4:])


def test_features_stream_in_order_with_what_needs_none(photos: Path, own_net: str) -> None:
    import hashlib

    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block1", "mean"], ["max"])
    names = ["a/2.png", "gone.png", "a/1.png", "a/2.png", "b/4.png"]
    known = {hashlib.sha256((photos / "a/1.png").read_bytes()).digest()}
    plain = {str(path): row for path, row in features_of(backbone, columns, [photos / name for name in names])}
    stream = stream_features(
        *(backbone, columns, (SourceImage(name, photos / name, 0, 0, 0) for name in names)),
        count=len(names),
        is_known=known.__contains__,
        device="cpu",
        batch_size=4,
    )
    seen = []
    for outcomes, X in stream:
        rows = iter(X)
        for outcome in outcomes:
            seen.append((outcome.image.id, type(outcome).__name__))
            if isinstance(outcome, Row):
                expected = np.concatenate([plain[str(photos / outcome.image.id)][column] for column in columns])
                np.testing.assert_array_equal(next(rows), expected)
    assert seen == list(zip(names, ["Row", "Failed", "Linked", "Linked", "Row"], strict=True))
