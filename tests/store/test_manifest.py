"""A list of images is a source like a folder: the same order, the same interface, and faults with their places."""

from __future__ import annotations

import builtins
import csv
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    MissingExtraError,
    Plan,
    SourceError,
    plan_sync,
    scan_folder,
    scan_manifest,
    scan_source,
)
from icecore.store.scan import NOT_THERE

Columns = tuple[Column, Column]
Sync = Callable[..., Plan]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ["b/2.jpg", "a/1.jpg", "a b.png", "blob"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def ids(manifest: Path, **options: Any) -> list[str]:
    return [image.id for image in scan_manifest(manifest, **options).images()]


# --- what it gives ----------------------------------------------------------------------------------------------


def test_images_come_in_the_order_of_their_bytes_whatever_the_order_of_the_rows(photos: Path) -> None:
    manifest = write(photos / "images.csv", "path\nb/2.jpg\nblob\na/1.jpg\na b.png\n")
    scan = scan_manifest(manifest)
    assert [found[0] for found in scan] == [b"a b.png", b"a/1.jpg", b"b/2.jpg", b"blob"]
    assert [image.path.read_bytes() for image in scan.images()] == [image.key for image in scan.images()]
    assert (len(scan), scan.root, scan.manifest, scan.ignored) == (4, photos, manifest, 0)


def test_without_ids_a_manifest_gives_what_the_folder_gives(photos: Path) -> None:
    (photos / "blob").unlink()
    folder = scan_folder(photos)
    names = "".join(f'"{image.id}"\n' for image in reversed(folder.images()))
    assert list(scan_manifest(write(photos / "m.csv", f"path\n{names}"))) == list(folder)
    elsewhere = write(photos.parent / "m.csv", f"path\n{names}")
    assert scan_manifest(elsewhere, root=photos).images() == folder.images()


def test_ids_name_images_whose_paths_lie_anywhere(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    text = f"label,id,path\nx,patient 7,../photos/a/1.jpg\ny,../é,{photos / 'b/2.jpg'}\nz,0,./../photos/blob\n"
    images = scan_manifest(write(tmp_path / "lists" / "m.csv", text)).images()
    assert {image.id: image.path.read_bytes() for image in images} == {
        "../é": b"b/2.jpg",
        "0": b"blob",
        "patient 7": b"a/1.jpg",
    }
    assert [image.key for image in images] == sorted(image.key for image in images)


def test_what_is_not_there_is_told_with_its_reason_and_not_left_out(photos: Path) -> None:
    (photos / "loop").symlink_to("loop")
    (photos / "dead").symlink_to("nowhere")
    os.mkfifo(photos / "pipe")
    rows = ["a/1.jpg", "gone.jpg", "a/1.jpg/below", "loop", "dead", "pipe", "b", "x" * 300]
    scan = scan_manifest(write(photos / "m.csv", "path\n" + "\n".join(rows)))
    assert {image.id: reason for image, reason in scan.broken()} == {
        "gone.jpg": "no such file",
        "a/1.jpg/below": "no such file",
        "dead": "no such file",
        "loop": "Too many levels of symbolic links",
        "pipe": "not a regular file",
        "b": "not a regular file",
        "x" * 300: "File name too long",
    }
    assert {image.id for image, _ in scan.broken() if not image.is_there} == {*rows} - {"a/1.jpg", "pipe", "b"}
    assert all(found[1:4] == NOT_THERE for found in scan if found[4] == "no such file")


def test_where_no_file_at_all_is_there_the_walk_ends_in_an_error(photos: Path, tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", "path\nphotos/b/2.jpg\nphotos/a/1.jpg\n")
    scan = scan_manifest(manifest)
    assert len(list(scan)) == 2
    photos.rename(tmp_path / "unmounted")
    message = (
        rf"m\.csv: none of the 2 files that it lists is there under {tmp_path}, such as 'photos/a/1.jpg' \(no such"
    )
    with pytest.raises(SourceError, match=message):
        list(scan)


def test_endings_are_asked_for_only_on_request(photos: Path) -> None:
    manifest = write(photos / "m.csv", "path\na/1.jpg\nblob\na b.png\n")
    assert ids(manifest) == ["a b.png", "a/1.jpg", "blob"]
    scan = scan_manifest(manifest, extensions=[".JPG"])
    assert ([image.id for image in scan.images()], scan.ignored, scan.extensions) == (["a/1.jpg"], 2, (".jpg",))
    with pytest.raises(SourceError, match=r"m\.csv: lists no images \(3 other files\)"):
        scan_manifest(manifest, extensions=[".tif"])


# --- the CSV itself ---------------------------------------------------------------------------------------------


def test_a_csv_may_have_a_byte_order_mark_quotes_line_breaks_and_empty_lines(photos: Path) -> None:
    (photos / "two\nlines.jpg").write_bytes(b"")
    (photos / 'q",".jpg').write_bytes(b"")
    text = '\ufeff path ,note\r\n\r\n"two\nlines.jpg",x\r\n"q"","".jpg",y\r\n\r\na b.png,"z\n\n"\r\n'
    assert ids(write(photos / "m.csv", text)) == ["a b.png", 'q",".jpg', "two\nlines.jpg"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m.csv: no column 'path'; found an empty file; expected path[,id] among its columns"),
        (b"file;label\na;b\n", "m.csv: no column 'path'; found 'file;label'"),
        (b"path,id,path\na,b,c\n", "m.csv: column 'path' is there more than once"),
        (b"path\n", "m.csv: lists no images (0 other files)"),
        (b"path\n\n\xe9.jpg\n", "m.csv:3: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        (b"path,label\na.jpg,\xe9t\xe9\n", "m.csv:2: byte 0xe9 is not UTF-8"),
        ("path\na.jpg\n".encode("utf-16"), "m.csv:1: byte 0xff is not UTF-8"),
        (b"path,id\na.jpg,1\n,2\n", "m.csv:3: empty path"),
        (b"path,id\na.jpg,1\nb.jpg,\n", "m.csv:3: an image id must not be empty"),
        (b"path\na.jpg\nb\0.jpg\n", r"m.csv:3: path 'b\x00.jpg': a NUL byte is not allowed"),
        (b"path,id\na.jpg,b\0\n", r"m.csv:2: image id 'b\x00': a NUL byte is not allowed"),
        (b"path\n" + b"y" * 4097 + b"\n", "m.csv:2: image id 'yyyyyyyy"),
        (b"path\n" + b"y" * 4097 + b"\n", "'... has 4,097 bytes, it may have 4,096 at most"),
        (b"path\n/abs/a.jpg\n", "m.csv:2: path '/abs/a.jpg' is absolute or has a part '..', so it cannot be the image"),
        (b"path\na/../b.jpg\n", "'a/../b.jpg' is absolute or has a part '..', so it cannot be the image's id; add a"),
        (b"path,label\na.jpg\n", "m.csv:2: 1 fields, the header has 2"),
        (b'path\n"two\nlines.jpg"\n"open.jpg\n', "m.csv:4: malformed CSV (unexpected end of data)"),
        (b'path\n"' + b"x" * 200_000 + b'"\n', "m.csv:2: malformed CSV (field larger than field limit"),
        (b"path\na.jpg\nb.jpg\na.jpg\na.jpg\n", "m.csv:5: id 'a.jpg' is given 3 times, first in line 2"),
        (b"path,id\na.jpg,x\nb.jpg,x\n", "m.csv:3: id 'x' is given 2 times, first in line 2"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where_and_why(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(SourceError) as refused:
        scan_manifest(tmp_path / "m.csv")
    assert message in str(refused.value)


def test_ten_faults_are_named_and_the_others_counted(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", "path,id\n" + ",x\n" * 12)
    with pytest.raises(SourceError) as refused:
        scan_manifest(manifest)
    lines = str(refused.value).splitlines()
    assert lines == [*(f"{manifest}:{n}: empty path" for n in range(2, 12)), "... and 2 rows more"]
    write(manifest, "path\n" + "".join(f"{n}\n{n}\n" for n in range(11)))
    with pytest.raises(SourceError, match=r"\n\.\.\. and 1 rows more$"):
        scan_manifest(manifest)


def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"m\.csv: no such manifest"):
        scan_manifest(tmp_path / "m.csv")
    with pytest.raises(SourceError, match=r"m\.tsv: not a manifest by its ending, expected \.csv or \.parquet"):
        scan_manifest(write(tmp_path / "m.tsv", "path\n"))
    with pytest.raises(SourceError, match=r"nosuch: no such image folder; the paths of .*m\.csv start there"):
        scan_manifest(tmp_path / "m.csv", root=tmp_path / "nosuch")


names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(names, names), min_size=1, max_size=8, unique_by=lambda row: row[1]))
def test_whatever_a_csv_can_say_is_read_as_it_was_written(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "m.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "id"), *rows])
    pq.write_table(pa.table({"path": [r[0] for r in rows], "id": [r[1] for r in rows]}), tmp_path / "m.parquet")
    (tmp_path / "there").touch()
    expected = sorted((image_id.encode(), tmp_path / path) for path, image_id in rows)
    for name in ("m.csv", "m.parquet"):
        scan = scan_manifest(tmp_path / name)
        keys = [key for key, _ in expected]
        assert [(key, scan.image(key, 0, 0, 0).path) for key in keys] == expected
        assert len(scan) == len(rows)


# --- Parquet ----------------------------------------------------------------------------------------------------

KINDS = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parquet_columns_may_be_of_any_kind_of_text(photos: Path, kind: Any) -> None:
    values = [b"b/2.jpg", b"a/1.jpg"] if "binary" in str(kind) else ["b/2.jpg", "a/1.jpg"]
    table = pa.table({"path": pa.array(values, kind), "label": [1, 2], "id": pa.array(["z", "y"])})
    pq.write_table(table, photos / "m.parquet")
    images = scan_manifest(photos / "m.parquet").images()
    assert [(image.id, image.path) for image in images] == [("y", photos / "a/1.jpg"), ("z", photos / "b/2.jpg")]


def test_names_that_are_not_utf8_can_be_listed_in_parquet_as_binary(photos: Path) -> None:
    name = b"caf\xe9\xff.jpg"
    (photos / os.fsdecode(name)).write_bytes(b"x")
    pq.write_table(pa.table({"path": pa.array([name], pa.binary())}), photos / "m.parquet")
    (image,) = scan_manifest(photos / "m.parquet").images()
    assert (image.key, image.path.read_bytes()) == (name, b"x")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"]}, "m.parquet: no column 'path'; found 'file'"),
        ({"path": [1, 2]}, "m.parquet: column 'path' is int64, expected strings"),
        ({"path": ["a"], "id": [7]}, "m.parquet: column 'id' is int64, expected strings"),
        ({"path": ["a", None]}, "m.parquet, row 2: empty path"),
        ({"path": ["a", "b"], "id": ["x", None]}, "m.parquet, row 2: an image id must not be empty"),
        ({"path": ["a", "b", "a"]}, "m.parquet, row 3: id 'a' is given 2 times, first in row 1"),
        ({"path": pa.array([], pa.string())}, "m.parquet: lists no images"),
    ],
)
def test_a_parquet_file_that_cannot_be_used_says_where_and_why(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(SourceError) as refused:
        scan_manifest(tmp_path / "m.parquet")
    assert message in str(refused.value)


@pytest.mark.parametrize("keep", [0, 20, 300])
def test_a_damaged_parquet_file_is_told(tmp_path: Path, keep: int) -> None:
    pq.write_table(pa.table({"path": [f"{n}.jpg" for n in range(100)]}), tmp_path / "m.parquet")
    (tmp_path / "m.parquet").write_bytes((tmp_path / "m.parquet").read_bytes()[:keep])
    with pytest.raises(SourceError, match=r"m\.parquet: not readable as a Parquet file \("):
        scan_manifest(tmp_path / "m.parquet")


def test_without_pyarrow_the_cure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1")
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"a Parquet manifest needs pyarrow: pip install 'icecore\[arrow\]'"):
        scan_manifest(tmp_path / "m.parquet")


# --- folder or manifest -----------------------------------------------------------------------------------------


def test_a_source_is_a_manifest_by_its_ending_and_a_folder_otherwise(photos: Path) -> None:
    write(photos / "m.CSV", "path\nblob\n")
    assert [image.id for image in scan_source(photos / "m.CSV").images()] == ["blob"]
    assert scan_source(photos / "m.CSV", root=photos).manifest == photos / "m.CSV"
    assert [image.id for image in scan_source(photos).images()] == ["a b.png", "a/1.jpg", "b/2.jpg"]
    assert [image.id for image in scan_source(photos, extensions=[".png"]).images()] == ["a b.png"]
    (photos / "folder.csv").mkdir()
    (photos / "folder.csv" / "x.jpg").touch()
    assert scan_source(photos / "folder.csv").manifest is None
    with pytest.raises(SourceError, match="belongs to a manifest, and this is a folder"):
        scan_source(photos, root=photos)
    with pytest.raises(SourceError, match=r"nosuch\.parquet: no such manifest"):
        scan_source(photos / "nosuch.parquet")
    with pytest.raises(SourceError, match="nosuch: no such image folder"):
        scan_source(photos / "nosuch")


# --- in a set ---------------------------------------------------------------------------------------------------


@pytest.fixture
def sync(tmp_path: Path, contract: Contract, columns: Columns, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """Bring the set up to date with a manifest, as extraction does, and give the plan that was followed."""
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else every file is too fresh to be trusted for 2 s

    def bring(manifest: Path) -> Plan:
        with (
            FeatureStore.create(tmp_path / "features") as store,
            store.writer("photos", contract, columns) as writer,
        ):
            plan = writer.plan(scan_manifest(manifest))
            for image, reason in plan.broken:
                writer.fail(image, "read", reason)
            for group in plan.groups:
                for image in group.images:
                    content = hashlib.sha256(image.path.read_bytes()).digest()
                    if writer.is_known(content, group.columns):
                        writer.link(image, content)
                    else:
                        writer.append([image], [content], {c: np.ones((1, c.width)) for c in group.columns})
            writer.remove(plan.gone)
            return plan

    return bring


def state(tmp_path: Path) -> tuple[list[str], list[tuple[str, str, str]]]:
    with FeatureStore.open(tmp_path / "features") as store:
        failures = [(failure.id, failure.kind, failure.reason) for failure in store["photos"].failures()]
        return store["photos"].ids(), failures


def test_ids_no_longer_listed_are_removed_and_missing_files_are_failures_that_keep_their_features(
    photos: Path, tmp_path: Path, sync: Sync
) -> None:
    manifest = write(photos / "m.csv", "path,id\na/1.jpg,one\nb/2.jpg,two\nblob,three\n")
    assert sync(manifest).added == 3
    assert sync(manifest).unchanged == 3
    (photos / "a/1.jpg").rename(photos / "away.jpg")
    write(manifest, "path,id\na/1.jpg,one\nb/2.jpg,two\nnever.jpg,four\n")
    plan = sync(manifest)
    assert (plan.gone, plan.vanished, plan.unchanged, len(plan.broken)) == (("three",), 1, 1, 2)
    missing = [("four", "read", "no such file"), ("one", "read", "no such file")]
    assert state(tmp_path) == (["one", "two"], missing)
    again = sync(manifest)
    assert (again.failed, again.broken, again.to_read) == (2, (), 0)
    (photos / "away.jpg").rename(photos / "a/1.jpg")
    assert sync(manifest).retried == 1
    assert state(tmp_path) == (["one", "two"], missing[:1])


def test_an_id_that_points_at_another_file_is_read_again(photos: Path, tmp_path: Path, sync: Sync) -> None:
    manifest = write(photos / "m.csv", "path,id\na/1.jpg,one\nb/2.jpg,two\n")
    sync(manifest)
    write(manifest, "path,id\nblob,one\nb/2.jpg,two\n")
    plan = sync(manifest)
    assert (plan.changed, plan.unchanged) == (1, 1)
    with FeatureStore.open(tmp_path / "features") as store:
        assert store["photos"].ids() == ["one", "two"]


def test_a_missing_file_is_not_taken_for_a_folder_of_the_images_whose_ids_go_on_behind_it(
    photos: Path, tmp_path: Path, sync: Sync
) -> None:
    """Ids are names here: ``case`` may be missing while ``case/1`` was taken off the list."""
    manifest = write(photos / "m.csv", "path,id\na/1.jpg,case/1\nb/2.jpg,two\n")
    sync(manifest)
    write(manifest, "path,id\nnever.jpg,case\nb/2.jpg,two\n")
    assert sync(manifest).gone == ("case/1",)
    assert state(tmp_path)[0] == ["two"]


def test_changing_from_a_folder_to_a_manifest_of_the_same_paths_changes_nothing(
    photos: Path, tmp_path: Path, sync: Sync, contract: Contract, columns: Columns
) -> None:
    sync(write(photos / "m.csv", "path\na/1.jpg\nb/2.jpg\na b.png\n"))
    plan = plan_sync(tmp_path / "features", "photos", contract, columns, scan_folder(photos))
    assert (plan.unchanged, plan.to_read, plan.gone) == (3, 0, ())
