"""What a store holds at most, really held: long ids of any bytes, wide columns; and what lies beyond is told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecore.store import Column, Contract, FeatureStore, FormatError, Pooling, SourceError, SourceImage, scan_folder
from icecore.store.long_paths import open_path
from icecore.store.scan import MAX_ID_BYTES, decode_id, encode_id

AVG = Pooling.parse("avg")
Make = Callable[..., SourceImage]


# --- ids --------------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=MAX_ID_BYTES).filter(lambda key: b"\0" not in key))
def test_every_id_without_nul_up_to_the_limit_comes_back_byte_for_byte(key: bytes) -> None:
    assert encode_id(decode_id(key)) == key


@pytest.mark.parametrize(
    ("image_id", "message"),
    [
        ("", "must not be empty"),
        ("a\0.jpg", r"image id 'a\\x00\.jpg': a NUL byte is not allowed"),
        ("z" * 4097, r"image id 'z{60}'\.\.\. has 4,097 bytes, it may have 4,096 at most"),
        ("é" * 2049, r"has 4,098 bytes"),
        ("\ud800", "stands for no byte"),
    ],
)
def test_an_id_that_cannot_be_stored_is_refused_and_the_writer_goes_on(
    image_id: str, message: str, tmp_path: Path, contract: Contract, columns: Sequence[Column], image: Make
) -> None:
    def append(name: str) -> None:
        X = {column: np.ones((2, column.width)) for column in columns}
        contents = [hashlib.sha256(b"%d" % n).digest() for n in range(2)]
        writer.append([image("good.jpg"), image(name)], contents, X)

    with FeatureStore.create(tmp_path / "features") as store:
        with store.writer("photos", contract, columns) as writer:
            with pytest.raises(SourceError, match=message):
                append(image_id)
            with pytest.raises(SourceError, match=message):
                writer.fail(image(image_id), "decode", "not an image")
            with pytest.raises(SourceError, match=message):
                writer.remove([image_id])
            append("other.jpg")
        assert store["photos"].ids() == ["good.jpg", "other.jpg"]
        assert store["photos"].failures() == ()


def test_ids_of_4096_bytes_of_any_kind_are_stored_and_read(
    tmp_path: Path, contract: Contract, columns: Sequence[Column], image: Make
) -> None:
    every = bytes(byte for byte in range(1, 256))
    keys = sorted([b"\xff" * 4096, b"a" * 4096, b"a" * 4095 + b"b", b"\n", (every * 17)[:4096], "é".encode() * 2048])
    with FeatureStore.create(tmp_path / "features") as store:
        with store.writer("photos", contract, columns) as writer:
            contents = [hashlib.sha256(key).digest() for key in keys]
            X = {c: np.arange(len(keys), dtype=float)[:, None].repeat(c.width, 1) for c in columns}
            writer.append([image(decode_id(key)) for key in keys], contents, X)
        ids, X4 = store["photos"].matrix("layer4")
        assert [encode_id(image_id) for image_id in ids] == keys
        assert X4[:, 0].tolist() == list(range(len(keys)))
    (segment,) = (tmp_path / "features").rglob("*.h5")
    with h5py.File(segment) as file:
        assert file["ids"][()].tobytes() == b"".join(key + b"\0" for key in keys)


@contextmanager
def inside(root: Path, names: Sequence[str]) -> Iterator[int]:
    """Make folders in one another, far deeper than a path can tell, and give the last one's descriptor."""
    descriptor = os.open(root, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    yield descriptor
    os.close(descriptor)


def write(descriptor: int, name: str, content: bytes) -> None:
    with open(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=descriptor), "wb") as file:
        file.write(content)


def test_a_file_whose_path_is_too_long_for_the_system_is_found_looked_at_and_read(tmp_path: Path) -> None:
    folders = ["d" * 199] * 20  # 4,000 bytes, and the temporary folder's own path before them
    with inside(tmp_path, folders) as deepest:
        write(deepest, "x" * 92 + ".jpg", b"deep")
        write(deepest, "notes.txt", b"")
        os.symlink("x" * 92 + ".jpg", "linked.jpg", dir_fd=deepest)
        os.symlink("nowhere.jpg", "dead.jpg", dir_fd=deepest)
    (tmp_path / "flat.jpg").write_bytes(b"flat")
    scan = scan_folder(tmp_path)
    found = {image.id.rpartition("/")[2]: image for image in scan.images()}
    assert set(found) == {"flat.jpg", "linked.jpg", "x" * 92 + ".jpg"}
    deep = found["x" * 92 + ".jpg"]
    assert len(deep.key) == MAX_ID_BYTES
    assert (deep.size, deep.is_there) == (4, True)
    assert [reason for _, reason in scan.broken()] == ["symbolic link that leads nowhere"]
    with pytest.raises(OSError, match="File name too long"):
        os.stat(deep.path)
    with open(open_path(os.fsencode(deep.path), os.O_RDONLY), "rb") as file:
        assert file.read() == b"deep"


def test_an_id_that_folders_make_too_long_is_told_by_its_start_and_length(tmp_path: Path) -> None:
    with inside(tmp_path, ["e" * 199] * 20) as deepest:
        write(deepest, "y" * 93 + ".jpg", b"too deep")
    message = rf"{tmp_path}: image id 'e{{60}}'\.\.\. has 4,097 bytes, it may have 4,096 at most; shorten its folders'"
    with pytest.raises(SourceError, match=message):
        list(scan_folder(tmp_path))


def test_a_single_name_that_is_too_long_is_refused_as_by_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long"):
        open_path(os.fsencode(tmp_path / ("f" * 2000)), os.O_RDONLY)
    with pytest.raises(FileNotFoundError):
        open_path(os.fsencode(tmp_path) + b"/a" * 3000, os.O_RDONLY)


# --- widths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1_000_001, 0, -1])
def test_a_column_wider_than_a_million_or_empty_is_refused(width: int) -> None:
    with pytest.raises(FormatError, match=rf"column layer4: {width:,} numbers an image, expected 1 to 1,000,000"):
        Column("layer4", AVG, width)
    assert issubclass(FormatError, ValueError)


def test_a_million_wide_column_is_written_and_read_and_committed_before_memory_grows(
    tmp_path: Path, contract: Contract, image: Make
) -> None:
    """2 MB a row: 64 MiB are full after 34 rows, long before the first segment's 256."""
    column = Column("wide", AVG, 1_000_000)
    row = (np.arange(1_000_000) % 1000).astype(np.float16)  # exact
    with FeatureStore.create(tmp_path / "features") as store:
        with store.writer("photos", contract, [column]) as writer:
            for n in range(35):
                writer.append([image(f"{n:02}.jpg")], [hashlib.sha256(b"%d" % n).digest()], {column: (row + n)[None]})
                segments = list((tmp_path / "features").rglob("*.h5"))
                assert len(segments) == (n >= 33), n
        (first,) = segments
        features = store["photos"]
        assert features.coverage() == {column: 35}
        ids, X = features.matrix("wide")
        assert (len(ids), X.shape, X.dtype) == (35, (35, 1_000_000), np.float32)
        for n in (0, 33, 34):
            np.testing.assert_array_equal(X[n], (row + n).astype(np.float32))
    with h5py.File(first) as file:
        stored = file["columns/wide:avg"]
        assert (stored.shape, stored.dtype, stored.chunks) == ((34, 1_000_000), np.dtype("<f2"), None)
        np.testing.assert_array_equal(stored[33], row + 33)
