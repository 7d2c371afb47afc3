"""Images come from a folder, a manifest or a scan, to the same features; what is gone leaves, or is kept, as asked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.extract import ExtractReport, RemovalRefusedError
from icecore.store import FeatureStore, SourceError, scan_folder, scan_manifest

Extract = Callable[..., ExtractReport]
Matrix = Callable[..., tuple[list[str], np.ndarray]]


@pytest.fixture
def manifest(tmp_path: Path, photos: Path) -> Path:
    """Five of the nine images, one of them twice under other names, with ids of their own."""
    rows = ["a/3.png,d", "b/7.png,c", "a/0.png,b", "b/4.png,e", f"{photos / 'a/0.png'},a"]
    path = photos / "images.csv"
    path.write_text("\n".join(["path,id", *rows]), "utf-8")
    return path


def recorded(tmp_path: Path) -> dict[str, Any]:
    with FeatureStore.open(tmp_path / "store") as store:
        return dict(store["photos"].source)


def test_a_manifest_gives_the_features_that_the_folder_gives(
    extract: Extract, matrix: Matrix, manifest: Path, photos: Path, tmp_path: Path
) -> None:
    extract()
    by_path = dict(zip(*matrix(), strict=True))
    assert recorded(tmp_path)["folder"] == str(photos)
    shutil.rmtree(tmp_path / "store")
    report = extract(manifest)
    assert (report.plan.added, report.forwarded, report.linked, report.failures) == (5, 4, 1, ())
    ids, X = matrix()
    assert ids == ["a", "b", "c", "d", "e"]
    for row, path in zip(X, ["a/0.png", "a/0.png", "b/7.png", "a/3.png", "b/4.png"], strict=True):
        np.testing.assert_allclose(row, by_path[path], rtol=1e-5, atol=1e-6)  # another place in its batch
    assert (recorded(tmp_path)["folder"], recorded(tmp_path)["manifest"]) == (str(photos), str(manifest))


def test_a_second_run_over_a_manifest_has_nothing_to_do(
    extract: Extract, forwards: list[int], manifest: Path, photos: Path
) -> None:
    extract(manifest)
    forwards.clear()
    again = extract(scan_manifest(manifest, root=photos))
    assert (forwards, again.plan.unchanged, again.plan.to_read) == ([], 5, 0)


def test_a_file_that_a_manifest_lists_and_that_is_not_there_is_a_failure_and_costs_no_features(
    extract: Extract, matrix: Matrix, manifest: Path, photos: Path
) -> None:
    extract(manifest)
    (photos / "a/3.png").rename(photos / "away.png")
    report = extract(manifest)
    assert [(f.id, f.kind, f.reason) for f in report.failures] == [("d", "read", "no such file")]
    assert (report.removed, matrix()[0]) == (0, ["a", "b", "c", "d", "e"])
    assert extract(manifest).plan.failed == 1
    (photos / "away.png").rename(photos / "a/3.png")
    back = extract(manifest)
    assert (back.plan.retried, back.forwarded, back.linked, back.failures) == (1, 0, 1, ())


def test_extensions_belong_to_the_scan(extract: Extract, photos: Path) -> None:
    assert extract(scan_folder(photos, extensions=[".png"]), dry_run=True).plan.added == 9
    with pytest.raises(ValueError, match=r"the scan of .*photos has extensions of its own; found \['\.png'\]"):
        extract(scan_folder(photos), extensions=[".png"])
    with pytest.raises(SourceError, match=r"images\.csv: no such manifest"):
        extract(photos / "images.csv")


def test_what_is_gone_leaves_the_current_version_and_stays_in_the_older_one(
    extract: Extract, matrix: Matrix, photos: Path, tmp_path: Path
) -> None:
    before = extract().version
    (photos / "b/7.png").unlink()
    report = extract(prune="tombstone")
    assert (report.removed, report.kept, len(matrix()[0])) == (1, 0, 8)
    with FeatureStore.open(tmp_path / "store") as store:
        assert len(store["photos"].matrix("block2", version=before).ids) == 9


def test_what_is_gone_is_kept_on_request_and_counted(extract: Extract, matrix: Matrix, photos: Path) -> None:
    first = extract()
    shutil.rmtree(photos / "a")
    (photos / "b/7.png").unlink()
    for _ in range(2):
        report = extract(prune="keep")  # more than half is gone, but nothing would be removed
        assert (report.plan.vanished, report.kept, report.removed) == (5, 5, 0)
        assert report.version == first.version
        assert len(matrix()[0]) == 9
    with pytest.raises(RemovalRefusedError, match=r"5 of its 9 images .* `--prune keep`"):
        extract()
    assert extract(max_removed=1).removed == 5


def test_a_recorded_failure_that_is_gone_is_kept_too(extract: Extract, photos: Path, tmp_path: Path) -> None:
    def failures() -> list[str]:
        with FeatureStore.open(tmp_path / "store") as store:
            return [failure.id for failure in store["photos"].failures()]

    (photos / "bad.png").write_bytes(b"")
    extract()
    (photos / "bad.png").unlink()
    assert (extract(prune="keep").kept, failures()) == (0, ["bad.png"])
    assert (extract().removed, failures()) == (0, [])


def test_an_unknown_policy_is_refused(extract: Extract) -> None:
    with pytest.raises(ValueError, match="expected prune to be tombstone or keep; found 'delete'"):
        extract(prune="delete")


def test_a_dry_run_says_what_would_be_kept(extract: Extract, photos: Path) -> None:
    extract()
    (photos / "b/7.png").unlink()
    assert extract(prune="keep", dry_run=True).kept == 1
    assert extract(dry_run=True).kept == 0


def test_an_image_deeper_than_a_path_can_tell_is_extracted(extract: Extract, matrix: Matrix, photos: Path) -> None:
    descriptor = os.open(photos, os.O_RDONLY)
    for name in ["n" * 199] * 20:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.link(photos / "a/0.png", "deep.png", dst_dir_fd=descriptor)
    os.close(descriptor)
    report = extract()
    assert (report.failures, report.linked, len(matrix()[0])) == ((), 2, 10)
    assert f"{'n' * 199}/" * 20 + "deep.png" in matrix()[0]
