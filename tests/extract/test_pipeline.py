"""Files become batches in order, read once, in bounded memory, whatever happens to any of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from icecore.extract import pipeline, reading
from icecore.extract.errors import ImageError
from icecore.extract.images import load_image
from icecore.extract.pipeline import Batch, Failed, Linked, Row, read_batches
from icecore.extract.preprocess import Preprocess
from icecore.extract.reading import read_image_file
from icecore.store import SourceImage, scan_folder
from PIL import Image

SMALL = Preprocess(resize=8, crop=8)


@pytest.fixture
def folder(tmp_path: Path, noise: Callable[..., Image.Image]) -> Path:
    """Twenty images, of which 03 and 11 are broken and 05, 06, 17 repeat 02."""
    for n in range(20):
        noise(12, 10, seed=n).save(tmp_path / f"{n:02}.png")
    for n in (3, 11):
        (tmp_path / f"{n:02}.png").write_bytes(b"broken")
    for n in (5, 6, 17):
        (tmp_path / f"{n:02}.png").write_bytes((tmp_path / "02.png").read_bytes())
    return tmp_path


def image(path: Path) -> SourceImage:
    return SourceImage(path.name, path, 0, 0, 0)


def batches(folder: Path, **options: object) -> list[Batch]:
    settings = {"preprocess": SMALL, "batch_size": 4, "threads": 2, **options}
    return list(read_batches(scan_folder(folder).images(), **settings))


def remembering() -> tuple[Callable[[bytes], bool], Callable[[Batch], Batch]]:
    """Stand in for the store: knows what was appended."""
    known: set[bytes] = set()

    def append(batch: Batch) -> Batch:
        known.update(row.content for row in batch.rows)
        return batch

    return known.__contains__, append


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_order_rows_links_and_failures_do_not_depend_on_threads_or_batch_size(
    folder: Path, threads: int, batch_size: int
) -> None:
    is_known, append = remembering()
    stream = read_batches(
        scan_folder(folder).images(), preprocess=SMALL, batch_size=batch_size, threads=threads, is_known=is_known
    )
    found = [append(batch) for batch in stream]
    outcomes = [outcome for batch in found for outcome in batch.outcomes]
    assert [outcome.image.id for outcome in outcomes] == [f"{n:02}.png" for n in range(20)]
    kinds = {Row: "row", Linked: "link", Failed: "fail"}
    expected = {3: "fail", 11: "fail", 5: "link", 6: "link", 17: "link"}
    assert [kinds[type(outcome)] for outcome in outcomes] == [expected.get(n, "row") for n in range(20)]
    pixels = np.concatenate([batch.pixels for batch in found])
    rows = [row for batch in found for row in batch.rows]
    for row, picture in zip(rows, pixels, strict=True):
        data = (folder / row.image.id).read_bytes()
        assert row.content == hashlib.sha256(data).digest()
        np.testing.assert_array_equal(picture, load_image(data, SMALL))
    assert all(len(batch.rows) == batch_size for batch in found[:-1])


def test_a_failed_image_never_takes_the_row_of_another(folder: Path) -> None:
    batch = batches(folder, batch_size=64)[0]
    position = [row.image.id for row in batch.rows].index("04.png")
    np.testing.assert_array_equal(batch.pixels[position], load_image((folder / "04.png").read_bytes(), SMALL))
    failed = [outcome for outcome in batch.outcomes if isinstance(outcome, Failed)]
    assert [(f.image.id, f.error.kind) for f in failed] == [("03.png", "decode"), ("11.png", "decode")]


def test_without_is_known_every_image_is_a_row(folder: Path) -> None:
    assert sum(len(batch.rows) for batch in batches(folder)) == 18


def test_what_is_known_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr("icecore.extract.pipeline.load_image", lambda data, *_, **__: decoded.append(data))
    found = batches(folder, is_known=lambda content: True)
    assert decoded == []
    assert [len(batch.outcomes) for batch in found] == [20]


def test_memory_is_bounded_whatever_the_number_of_images(folder: Path) -> None:
    taken = 0

    def endless() -> Iterator[SourceImage]:
        nonlocal taken
        while True:
            taken += 1
            yield image(folder / "00.png")

    stream = read_batches(endless(), preprocess=SMALL, batch_size=4, threads=3)
    with closing(stream):
        for _ in range(5):
            next(stream)
            time.sleep(0.02)
    assert taken <= 5 * 4 + 4 + 2 * 3 + 1


def test_many_known_images_are_told_in_pieces_and_rows_fill_the_same_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over a million known files must not hold them all until a batch of new ones is full."""
    new = {hashlib.sha256((folder / f"{n:02}.png").read_bytes()).digest() for n in (0, 8, 9, 18)}
    plain = batches(folder, batch_size=3, is_known=lambda content: content not in new)
    monkeypatch.setattr(pipeline, "MOST_OUTCOMES", 2)
    pieces = batches(folder, batch_size=3, is_known=lambda content: content not in new)
    assert len(plain) == 2
    assert max(len(batch.outcomes) for batch in pieces) <= 5
    assert {o.image.id: type(o) for b in pieces for o in b.outcomes} == {
        o.image.id: type(o) for b in plain for o in b.outcomes
    }
    assert [b.rows for b in pieces if b.rows] == [b.rows for b in plain]
    assert all(len(batch.rows) == len(batch.pixels) for batch in pieces)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not tie processes to processors")
def test_threads_follow_the_processors_that_the_process_may_use() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from icecore.extract.pipeline import default_threads; print(default_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_threads_are_at_most_32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.os, "sched_getaffinity", lambda _: set(range(256)), raising=False)
    assert pipeline.default_threads() == 32


def test_many_copies_of_one_waiting_row_are_told_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were sifted again and again for what could be told early: 16,000 placeholders took half a minute."""
    for n in range(20):
        (folder / f"{n:02}.png").write_bytes((folder / "02.png").read_bytes())
    monkeypatch.setattr(pipeline, "MOST_OUTCOMES", 2)
    (batch,) = batches(folder, batch_size=3, is_known=lambda content: False)
    assert [type(outcome) for outcome in batch.outcomes] == [Row] + [Linked] * 19


def test_closing_early_ends_the_threads(folder: Path) -> None:
    before = threading.active_count()
    stream = read_batches(scan_folder(folder).images(), preprocess=SMALL, batch_size=2, threads=3)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        next(read_batches([], preprocess=SMALL, batch_size=0, threads=0))


# --- reading one file -------------------------------------------------------------------------------------------


def test_the_status_handed_on_describes_the_bytes_read(folder: Path) -> None:
    path = folder / "00.png"
    os.utime(path, ns=(1, 1_234_567_891))
    fresh, data, digest = read_image_file(image(path))
    assert (fresh.size, fresh.mtime_ns, fresh.id) == (path.stat().st_size, 1_234_567_891, "00.png")
    assert data == path.read_bytes()
    assert digest == hashlib.sha256(data).digest()


def test_a_file_that_changes_while_being_read_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain, calls = folder / "00.png", os.fstat, 0

    def meddling(descriptor: int) -> os.stat_result:
        nonlocal calls
        calls += 1
        if calls == 2:  # after the first read, before the second look
            path.write_bytes(b"new content")
            os.utime(path, ns=(5, 5))
        return plain(descriptor)

    monkeypatch.setattr(reading.os, "fstat", meddling)
    fresh, data, _ = read_image_file(image(path))
    assert (data, fresh.size, fresh.mtime_ns) == (b"new content", 11, 5)


def test_a_file_that_never_rests_is_a_failure(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plain, tick = folder / "00.png", os.fstat, iter(range(1, 1000))

    def restless(descriptor: int) -> os.stat_result:
        os.utime(path, ns=(0, next(tick) * 10**9))
        return plain(descriptor)

    monkeypatch.setattr(reading.os, "fstat", restless)
    with pytest.raises(ImageError, match="file changes while being read") as caught:
        read_image_file(image(path))
    assert caught.value.kind == "transient"


def test_a_file_that_vanished_a_folder_a_pipe_and_a_circle_of_links_are_failures(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    reasons = {}
    for name in ("gone.jpg", "folder.jpg", "pipe.jpg", "loop.jpg"):
        with pytest.raises(ImageError) as caught:
            read_image_file(image(tmp_path / name))
        assert caught.value.kind == "read"
        reasons[name] = caught.value.reason
    assert reasons == {
        "gone.jpg": "No such file or directory",
        "folder.jpg": "Is a directory",
        "pipe.jpg": "not a regular file",
        "loop.jpg": "Too many levels of symbolic links",
    }


def test_a_file_beyond_the_byte_limit_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    with pytest.raises(ImageError, match="bytes, the limit is 100") as caught:
        read_image_file(image(folder / "00.png"))
    assert caught.value.kind == "too-large"


READ_AS_NOBODY = """
import os, sys
from pathlib import Path
from icecore.extract.errors import ImageError
from icecore.extract.reading import read_image_file
from icecore.store import SourceImage
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    read_image_file(SourceImage("a", Path(sys.argv[1]), 0, 0, 0))
except ImageError as exc:
    print(exc.kind, exc.reason, sep="|")
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs POSIX users")
def test_a_file_without_read_permission_is_a_failure(tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"x")
    secret.chmod(0)
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        if parent.owner() == secret.owner() and parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)  # so that only the file itself is closed to others
    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY, str(secret)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("read|Permission denied\n", "")


@pytest.mark.parametrize("name", [b"with space.png", b"new\nline.png", "größe-日本.png".encode(), b"latin-\xe9.png"])
def test_any_file_name_is_read_under_its_own_id(name: bytes, tmp_path: Path, noise: Callable[..., Image.Image]) -> None:
    noise(9, 9).save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/" + name)
    (batch,) = batches(tmp_path)
    assert [os.fsencode(row.image.id) for row in batch.rows] == [name]
